// Where the time of one stream goes, measured by the device itself.
#ifndef SINQ_KERNELS_CUDA_PHASE_CLOCK_H_
#define SINQ_KERNELS_CUDA_PHASE_CLOCK_H_

#include <array>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cuda_runtime.h"

namespace sinq::kernels {

enum class CudaPhase : uint8_t { kCopyIn, kCompute, kCopyOut };
inline constexpr size_t kCudaPhases = 3;
using CudaPhaseSeconds = std::array<double, kCudaPhases>;

// Not thread-safe: one for each stream.
class CudaPhaseClock {
 public:
  static absl::StatusOr<std::unique_ptr<CudaPhaseClock>> Make(std::shared_ptr<CudaRuntime> runtime,
                                                              CudaStream stream);
  ~CudaPhaseClock();
  CudaPhaseClock(const CudaPhaseClock&) = delete;
  CudaPhaseClock& operator=(const CudaPhaseClock&) = delete;

  // Forgets everything; what the stream does from here on is measured.
  absl::Status Start();
  // What went into the stream since the last mark belongs to `phase`. Waits for the stream when
  // there are more marks than events.
  absl::Status Mark(CudaPhase phase);
  // Seconds by phase since Start; waits until the stream has passed the last mark.
  absl::StatusOr<CudaPhaseSeconds> Read();

 private:
  CudaPhaseClock(std::shared_ptr<CudaRuntime> runtime, CudaStream stream)
      : runtime_(std::move(runtime)), stream_(stream) {}
  absl::Status Collect();

  const std::shared_ptr<CudaRuntime> runtime_;
  const CudaStream stream_;
  std::vector<CudaEvent> events_;
  std::vector<CudaPhase> phases_;  // of the interval that ends with event i + 1
  CudaPhaseSeconds seconds_{};
};

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_CUDA_PHASE_CLOCK_H_
