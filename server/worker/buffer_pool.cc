#include "server/worker/buffer_pool.h"

#include <algorithm>
#include <utility>

namespace sinq {
namespace {

constexpr uint64_t kGranularityBytes = 1 << 20;  // near sizes share buffers

uint64_t Rounded(uint64_t size_bytes) {
  return (size_bytes + kGranularityBytes - 1) / kGranularityBytes * kGranularityBytes;
}

}  // namespace

absl::StatusOr<PooledBuffer> AllocatePooled(kernels::HostMemory* memory,
                                            MemoryBudget::Reservation reservation) {
  absl::StatusOr<HostBuffer> buffer = HostBuffer::Allocate(memory, reservation.bytes());
  if (!buffer.ok()) return buffer.status();
  return PooledBuffer{std::move(reservation), *std::move(buffer)};
}

BufferPool::BufferPool(MemoryBudget& budget, kernels::HostMemory* memory,
                       uint64_t max_special_bytes, uint64_t largest_bytes)
    : budget_(budget),
      memory_(memory),
      max_special_bytes_(max_special_bytes),
      largest_bytes_(Rounded(largest_bytes)) {
  budget_.AddReclaimer(*this);
}

BufferPool::~BufferPool() { budget_.RemoveReclaimer(*this); }

uint64_t BufferPool::SizeOfBuffer(uint64_t size_bytes) const {
  const bool is_nearly_largest = size_bytes > largest_bytes_ - largest_bytes_ / 4;
  return std::max(Rounded(size_bytes), is_nearly_largest ? largest_bytes_ : 0);
}

absl::StatusOr<PooledBuffer> BufferPool::Acquire(uint64_t size_bytes,
                                                 absl::FunctionRef<bool()> cancelled) {
  // While the budget has room, idle buffers are kept for units of their own size.
  absl::StatusOr<std::optional<PooledBuffer>> buffer = TryAcquire(size_bytes);
  if (!buffer.ok()) return buffer.status();
  if (buffer->has_value()) return **std::move(buffer);
  absl::StatusOr<MemoryBudget::Reservation> granted =
      budget_.Reserve(SizeOfBuffer(size_bytes), cancelled);
  if (!granted.ok()) return granted.status();
  return Allocate(*std::move(granted));
}

absl::StatusOr<std::optional<PooledBuffer>> BufferPool::TryAcquire(uint64_t size_bytes, Fit fit) {
  constexpr uint64_t kUnlimited = std::numeric_limits<uint64_t>::max();
  const uint64_t wanted_bytes = SizeOfBuffer(size_bytes);
  const uint64_t most_bytes = fit == Fit::kClose ? wanted_bytes + wanted_bytes / 2 : kUnlimited;
  if (std::optional<PooledBuffer> idle = TakeIdle(size_bytes, most_bytes)) return idle;
  std::optional<MemoryBudget::Reservation> reservation = budget_.TryReserve(wanted_bytes);
  if (!reservation) return TakeIdle(size_bytes, kUnlimited);
  absl::StatusOr<PooledBuffer> buffer = Allocate(*std::move(reservation));
  if (!buffer.ok()) return buffer.status();
  return *std::move(buffer);
}

absl::StatusOr<PooledBuffer> BufferPool::Allocate(MemoryBudget::Reservation reservation) {
  const bool is_special = reservation.bytes() <= max_special_bytes_;
  return AllocatePooled(is_special ? memory_ : nullptr, std::move(reservation));
}

std::optional<PooledBuffer> BufferPool::TakeIdle(uint64_t size_bytes, uint64_t most_bytes) {
  MutexLock lock(&mutex_);
  auto best = idle_.end();
  for (auto it = idle_.begin(); it != idle_.end(); ++it) {
    const uint64_t has_bytes = it->buffer.SizeBytes();
    if (has_bytes < size_bytes || has_bytes > most_bytes) continue;
    if (best == idle_.end() || has_bytes < best->buffer.SizeBytes()) best = it;
  }
  if (best == idle_.end()) return std::nullopt;
  std::optional<PooledBuffer> found(std::move(*best));
  idle_.erase(best);
  return found;
}

void BufferPool::GiveUpIdle() {
  std::vector<PooledBuffer> given_up;
  {
    MutexLock lock(&mutex_);
    given_up.swap(idle_);
  }
  // Destroyed outside the lock: giving memory back takes its time.
}

void BufferPool::Release(PooledBuffer buffer) {
  if (budget_.HasWaiters()) return;
  MutexLock lock(&mutex_);
  idle_.push_back(std::move(buffer));
}

}  // namespace sinq
