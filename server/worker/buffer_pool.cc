#include "server/worker/buffer_pool.h"

#include <utility>

namespace sinq {
namespace {

constexpr uint64_t kGranularityBytes = 1 << 20;  // near sizes share buffers

}  // namespace

absl::StatusOr<PooledBuffer> BufferPool::Acquire(uint64_t size_bytes,
                                                 absl::FunctionRef<bool()> cancelled) {
  if (std::optional<PooledBuffer> idle = TakeIdle(size_bytes)) return *std::move(idle);
  const uint64_t rounded =
      (size_bytes + kGranularityBytes - 1) / kGranularityBytes * kGranularityBytes;
  // While the budget has room, idle buffers are kept for units of their own size.
  std::optional<MemoryBudget::Reservation> reservation = budget_.TryReserve(rounded);
  if (!reservation) {
    absl::StatusOr<MemoryBudget::Reservation> granted = GiveUpIdleAndReserve(rounded, cancelled);
    if (!granted.ok()) return granted.status();
    reservation = *std::move(granted);
  }
  absl::StatusOr<AlignedBuffer> buffer = AlignedBuffer::Allocate(rounded);
  if (!buffer.ok()) return buffer.status();
  return PooledBuffer{*std::move(reservation), *std::move(buffer)};
}

std::optional<PooledBuffer> BufferPool::TakeIdle(uint64_t size_bytes) {
  MutexLock lock(&mutex_);
  auto best = idle_.end();
  for (auto it = idle_.begin(); it != idle_.end(); ++it) {
    const uint64_t has_bytes = it->buffer.SizeBytes();
    if (has_bytes < size_bytes) continue;
    if (best == idle_.end() || has_bytes < best->buffer.SizeBytes()) best = it;
  }
  if (best == idle_.end()) return std::nullopt;
  std::optional<PooledBuffer> found(std::move(*best));
  idle_.erase(best);
  return found;
}

absl::StatusOr<MemoryBudget::Reservation> BufferPool::GiveUpIdleAndReserve(
    uint64_t size_bytes, absl::FunctionRef<bool()> cancelled) {
  std::vector<PooledBuffer> given_up;
  {
    MutexLock lock(&mutex_);
    given_up.swap(idle_);
    ++waiting_;
  }
  given_up.clear();  // outside the lock: giving memory back takes its time
  absl::StatusOr<MemoryBudget::Reservation> reservation = budget_.Reserve(size_bytes, cancelled);
  MutexLock lock(&mutex_);
  --waiting_;
  return reservation;
}

void BufferPool::Release(PooledBuffer buffer) {
  const bool wanted = budget_.HasWaiters();
  MutexLock lock(&mutex_);
  if (!wanted && waiting_ == 0) idle_.push_back(std::move(buffer));
}

}  // namespace sinq
