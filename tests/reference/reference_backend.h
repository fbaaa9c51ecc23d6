// The oracle behind the seam that the service uses, so that any test can swap it in. Slow; never
// linked into the server.
#ifndef SINQ_TESTS_REFERENCE_REFERENCE_BACKEND_H_
#define SINQ_TESTS_REFERENCE_REFERENCE_BACKEND_H_

#include "tests/reference/reference.h"

namespace sinq::kernels {

// Thread-safe: holds nothing but its options. Needs no scratch.
class ReferenceBackend : public Backend {
 public:
  explicit ReferenceBackend(const ReferenceOptions& options = {}) : options_(options) {}
  Capabilities GetCapabilities() const override { return {"reference", "scalar"}; }
  size_t ScratchBytes(const QuantParams& params, int64_t rows, int64_t cols) const override;
  // Serial whatever `parallel_for` does; `cancelled` is asked once, before anything is done.
  absl::Status Quantize(const MatrixView& in, const QuantParams& params,
                        absl::Span<std::byte> scratch,
                        absl::Span<const absl::Span<std::byte>> planes, ParallelFor parallel_for,
                        absl::FunctionRef<bool()> cancelled, TensorStats* stats) const override;
  absl::Status MeasureColumns(const MatrixView& in, const QuantParams& params,
                              absl::Span<std::byte> scratch, absl::Span<float> t,
                              ParallelFor parallel_for,
                              absl::FunctionRef<bool()> cancelled) const override;
  absl::Status MeasureErrors(const MatrixView& in, absl::Span<const QuantParams> candidates,
                             absl::Span<std::byte> scratch, absl::Span<Measurement> measured,
                             ParallelFor parallel_for,
                             absl::FunctionRef<bool()> cancelled) const override;

 private:
  const ReferenceOptions options_;
};

}  // namespace sinq::kernels

#endif  // SINQ_TESTS_REFERENCE_REFERENCE_BACKEND_H_
