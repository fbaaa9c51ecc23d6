// Page-locked host memory: for callers (CudaHostMemory), and a small ring of it through which
// memory that is not page-locked goes to and from the device (StagingRing).
#ifndef SINQ_KERNELS_CUDA_STAGING_H_
#define SINQ_KERNELS_CUDA_STAGING_H_

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels/backend.h"  // HostMemory
#include "kernels/cuda_runtime.h"

namespace sinq::kernels {

// Two chunks are enough for host and device to work at the same time; the others absorb their
// unevenness.
inline constexpr size_t kStagingChunks = 4;
// Large enough that the time to start a copy (about 10 us) is little beside the copy (about 80 us
// at 50 GB/s), small enough to stay in the last-level cache between the two.
inline constexpr size_t kStagingChunkBytes = size_t{4} << 20;
static_assert(kStagingChunks * kStagingChunkBytes == kCudaStagingBytes);

// Page-locked memory that every device copies from and to by itself. Thread-safe. One is shared by
// the backends of all devices.
class CudaHostMemory final : public HostMemory {
 public:
  explicit CudaHostMemory(std::shared_ptr<CudaRuntime> runtime) : runtime_(std::move(runtime)) {}
  ~CudaHostMemory() override;
  absl::StatusOr<std::byte*> Allocate(size_t size_bytes) override;
  void Free(std::byte* memory, size_t size_bytes) override;
  // Whether all of [memory, memory + size_bytes) came from Allocate and is not freed.
  bool Contains(const std::byte* memory, size_t size_bytes) const;

 private:
  const std::shared_ptr<CudaRuntime> runtime_;
  mutable std::mutex mutex_;
  std::map<std::byte*, size_t, std::less<>> pieces_;  // guarded by mutex_; begin, bytes
};

// Rows of host memory, `pitch_bytes` apart; dense on the device.
struct HostRows {
  const std::byte* data = nullptr;
  size_t row_bytes = 0;
  size_t rows = 0;
  size_t pitch_bytes = 0;
};

// Not thread-safe: one ring for each stream. While the device copies one chunk, the host fills the
// next. A chunk is filled again only when the stream has passed its last use.
class StagingRing {
 public:
  static absl::StatusOr<std::unique_ptr<StagingRing>> Make(std::shared_ptr<CudaRuntime> runtime,
                                                           CudaStream stream, size_t chunk_bytes);
  ~StagingRing();
  StagingRing(const StagingRing&) = delete;
  StagingRing& operator=(const StagingRing&) = delete;

  // `from` may be changed as soon as this returns.
  absl::Status ToDevice(void* to, const HostRows& from);
  // `to` is complete after Flush.
  absl::Status ToHost(std::byte* to, const void* from, size_t size_bytes);
  // Waits for the copies to the host that are still under way, and delivers them.
  absl::Status Flush();
  // Forgets them instead. The stream must have nothing in it, or be lost.
  void Abandon();

 private:
  struct Chunk {
    std::byte* memory = nullptr;
    CudaEvent event = nullptr;
    bool in_use = false;  // the event was recorded after the last use
    std::byte* deliver_to = nullptr;
    size_t deliver_bytes = 0;
  };

  StagingRing(std::shared_ptr<CudaRuntime> runtime, CudaStream stream, size_t chunk_bytes)
      : runtime_(std::move(runtime)), stream_(stream), chunk_bytes_(chunk_bytes) {}
  absl::Status AllocateChunks();
  // Waits until the chunk is free, and hands over what was copied into it.
  absl::Status Release(Chunk& chunk);
  absl::StatusOr<Chunk*> NextChunk();
  absl::Status SendChunk(Chunk& chunk, std::byte* to, size_t size_bytes);

  const std::shared_ptr<CudaRuntime> runtime_;
  const CudaStream stream_;
  const size_t chunk_bytes_;
  std::vector<Chunk> chunks_;
  size_t next_ = 0;
};

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_CUDA_STAGING_H_
