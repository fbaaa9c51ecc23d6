// One stream of a device with all the memory that a tensor in work on it needs.
#ifndef SINQ_KERNELS_CUDA_SLOT_H_
#define SINQ_KERNELS_CUDA_SLOT_H_

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/cuda_arena.h"
#include "kernels/cuda_phase_clock.h"
#include "kernels/cuda_runtime.h"
#include "kernels/cuda_staging.h"

namespace sinq::kernels {

// Used by one thread at a time, with the device that was in use in Make in use.
class CudaSlot {
 public:
  // Everything that is ever allocated for this stream.
  static absl::StatusOr<std::unique_ptr<CudaSlot>> Make(std::shared_ptr<CudaRuntime> runtime,
                                                        size_t arena_bytes);
  ~CudaSlot();
  CudaSlot(const CudaSlot&) = delete;
  CudaSlot& operator=(const CudaSlot&) = delete;

  CudaStream stream() const { return stream_; }
  CudaArena& arena() const { return *arena_; }
  StagingRing& staging() const { return *staging_; }
  CudaPhaseClock& clock() const { return *clock_; }

  // Waits until the stream is empty, so that nothing reads or writes a caller's memory any more.
  absl::Status Drain();

 private:
  CudaSlot(std::shared_ptr<CudaRuntime> runtime, CudaStream stream)
      : runtime_(std::move(runtime)), stream_(stream) {}

  const std::shared_ptr<CudaRuntime> runtime_;
  const CudaStream stream_;
  std::unique_ptr<CudaArena> arena_;
  std::unique_ptr<StagingRing> staging_;
  std::unique_ptr<CudaPhaseClock> clock_;
};

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_CUDA_SLOT_H_
