#include "server/worker/buffer_pool.h"

#include <algorithm>
#include <utility>

namespace sinq {
namespace {

constexpr uint64_t kGranularityBytes = 1 << 20;  // near sizes share buffers

}  // namespace

absl::StatusOr<PooledBuffer> BufferPool::Acquire(uint64_t size_bytes,
                                                 absl::FunctionRef<bool()> cancelled) {
  std::vector<PooledBuffer> given_up;  // freed after the lock
  {
    MutexLock lock(&mutex_);
    auto best = idle_.end();
    for (auto it = idle_.begin(); it != idle_.end(); ++it) {
      if (it->buffer.SizeBytes() < size_bytes) continue;
      if (best == idle_.end() || it->buffer.SizeBytes() < best->buffer.SizeBytes()) best = it;
    }
    if (best != idle_.end()) {
      PooledBuffer found = std::move(*best);
      idle_.erase(best);
      return found;
    }
    given_up.swap(idle_);
    ++waiting_;
  }
  given_up.clear();
  const uint64_t rounded =
      (size_bytes + kGranularityBytes - 1) / kGranularityBytes * kGranularityBytes;
  absl::StatusOr<MemoryBudget::Reservation> reservation = budget_.Reserve(rounded, cancelled);
  {
    MutexLock lock(&mutex_);
    --waiting_;
  }
  if (!reservation.ok()) return reservation.status();
  absl::StatusOr<AlignedBuffer> buffer = AlignedBuffer::Allocate(rounded);
  if (!buffer.ok()) return buffer.status();
  return PooledBuffer{*std::move(reservation), *std::move(buffer)};
}

void BufferPool::Release(PooledBuffer buffer) {
  const bool wanted = budget_.HasWaiters();
  MutexLock lock(&mutex_);
  if (!wanted && waiting_ == 0) idle_.push_back(std::move(buffer));
}

}  // namespace sinq
