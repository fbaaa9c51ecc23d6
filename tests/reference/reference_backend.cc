#include "tests/reference/reference_backend.h"

namespace sinq::kernels {

size_t ReferenceBackend::ScratchBytes(const QuantParams&, int64_t, int64_t) const { return 0; }

absl::Status ReferenceBackend::Quantize(const MatrixView& in, const QuantParams& params,
                                        absl::Span<std::byte>,
                                        absl::Span<const absl::Span<std::byte>> planes, ParallelFor,
                                        absl::FunctionRef<bool()> cancelled,
                                        TensorStats* stats) const {
  *stats = TensorStats();
  if (cancelled()) return absl::CancelledError("stopped before the first tile");
  const absl::StatusOr<ReferenceTensor> tensor = ReferenceQuantize(in, params, options_, planes);
  if (!tensor.ok()) return tensor.status();
  *stats = tensor->stats;
  return absl::OkStatus();
}

}  // namespace sinq::kernels
