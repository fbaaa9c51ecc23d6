// One piece of device memory that is cut up anew for every tensor, so that no tensor allocates.
#ifndef SINQ_KERNELS_CUDA_ARENA_H_
#define SINQ_KERNELS_CUDA_ARENA_H_

#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/cuda_runtime.h"

namespace sinq::kernels {

// Every piece of an arena begins at a multiple of this: what cudaMalloc itself promises.
inline constexpr size_t kArenaAlignment = 256;
constexpr size_t ArenaBytes(size_t size_bytes) {
  return (size_bytes + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
}

// Not thread-safe. Lies on the device that was the thread's current one in Make; to be made and
// destroyed with that device in use.
class CudaArena {
 public:
  static absl::StatusOr<std::unique_ptr<CudaArena>> Make(std::shared_ptr<CudaRuntime> runtime,
                                                         size_t size_bytes);
  ~CudaArena();
  CudaArena(const CudaArena&) = delete;
  CudaArena& operator=(const CudaArena&) = delete;

  size_t size_bytes() const { return size_bytes_; }
  // Bytes taken since the last Clear, and the most ever.
  size_t used_bytes() const { return used_bytes_; }
  size_t peak_bytes() const { return peak_bytes_; }

  // Gives everything back; pieces handed out before are no longer anybody's.
  void Clear() { used_bytes_ = 0; }
  // Internal error when the rest does not suffice: the memory plan promised that it does.
  absl::StatusOr<std::byte*> Take(size_t size_bytes);

 private:
  CudaArena(std::shared_ptr<CudaRuntime> runtime, std::byte* base, size_t size_bytes)
      : runtime_(std::move(runtime)), base_(base), size_bytes_(size_bytes) {}

  const std::shared_ptr<CudaRuntime> runtime_;
  std::byte* const base_;
  const size_t size_bytes_;
  size_t used_bytes_ = 0, peak_bytes_ = 0;
};

// Hands out a part of the arena, anew for every piece of a tensor: what was there before is read
// only by work that is earlier in the same stream.
class MovingMemory {
 public:
  MovingMemory() = default;
  MovingMemory(std::byte* base, size_t size_bytes) : at_(base), left_bytes_(size_bytes) {}
  // Internal error when the rest does not suffice: the memory plan promised that it does.
  absl::StatusOr<std::byte*> Take(size_t size_bytes);

 private:
  std::byte* at_ = nullptr;
  size_t left_bytes_ = 0;
};

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_CUDA_ARENA_H_
