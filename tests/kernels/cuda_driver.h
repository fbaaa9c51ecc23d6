// Runs the CUDA steps in their order over host memory, for tests that execute the device code on
// the CPU: what CudaBackend does on a device, without streams and copies, and cut into panels and
// ranges as a test asks.
#ifndef SINQ_TESTS_KERNELS_CUDA_DRIVER_H_
#define SINQ_TESTS_KERNELS_CUDA_DRIVER_H_

#include <cstdint>

#include "kernels/backend.h"
#include "tests/fakes/cuda_on_cpu/cuda_on_cpu.h"
#include "tests/reference/run_backend.h"

namespace sinq::kernels {

// How a tensor is cut. 0: not at all.
struct CudaCuts {
  int64_t tiles = 0;        // to a panel; also blocks of 32 rows to a range of the search
  int64_t packed_rows = 0;  // to a range of the encoder
  int64_t moment_rows = 0;  // to a range of the moments
};

class CudaDriver : public Backend {
 public:
  explicit CudaDriver(const cuda_on_cpu::Schedule& schedule = {}, const CudaCuts& cuts = {})
      : schedule_(schedule), cuts_(cuts) {}
  Capabilities GetCapabilities() const override { return {"cuda", "executed on the CPU"}; }
  size_t ScratchBytes(const QuantParams&, int64_t, int64_t) const override { return 0; }
  // A pointer outside the pieces that a step was given is found by AddressSanitizer: every piece is
  // an allocation of its own.
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
  const cuda_on_cpu::Schedule schedule_;
  const CudaCuts cuts_;
};

}  // namespace sinq::kernels

#endif  // SINQ_TESTS_KERNELS_CUDA_DRIVER_H_
