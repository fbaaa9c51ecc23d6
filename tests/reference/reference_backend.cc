#include "tests/reference/reference_backend.h"

#include <algorithm>

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

absl::Status ReferenceBackend::MeasureColumns(const MatrixView& in, const QuantParams& params,
                                              absl::Span<std::byte>, absl::Span<float> t,
                                              ParallelFor, absl::FunctionRef<bool()>) const {
  const absl::StatusOr<std::vector<float>> columns = ReferenceColumns(in, params);
  if (!columns.ok()) return columns.status();
  std::copy(columns->begin(), columns->end(), t.begin());
  return absl::OkStatus();
}

absl::Status ReferenceBackend::MeasureErrors(const MatrixView& in,
                                             absl::Span<const QuantParams> candidates,
                                             absl::Span<std::byte>,
                                             absl::Span<Measurement> measured, ParallelFor,
                                             absl::FunctionRef<bool()>) const {
  for (size_t c = 0; c < candidates.size(); ++c) {
    const absl::StatusOr<Measurement> measurement = ReferenceErrors(in, candidates[c]);
    if (!measurement.ok()) return measurement.status();
    measured[c] = *measurement;
  }
  return absl::OkStatus();
}

}  // namespace sinq::kernels
