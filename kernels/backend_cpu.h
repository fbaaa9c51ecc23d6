// The CPU backend over one SIMD target's inner loops.
#ifndef SINQ_KERNELS_BACKEND_CPU_H_
#define SINQ_KERNELS_BACKEND_CPU_H_

#include "kernels/backend.h"
#include "kernels/tile_ops.h"

namespace sinq::kernels {

class CpuBackend : public Backend {
 public:
  // `threads`: how many work on one tensor at once, if the caller has them.
  explicit CpuBackend(const TileOps& ops, int threads = 1) : ops_(ops), threads_(threads) {}
  Capabilities GetCapabilities() const override { return {"cpu", ops_.target}; }
  // Room for `threads` bodies of `parallel_for` at once.
  size_t ScratchBytes(const QuantParams& params, int64_t rows, int64_t cols) const override;
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
  const TileOps& ops_;
  const int threads_;
};

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_BACKEND_CPU_H_
