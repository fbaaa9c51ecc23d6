// Buffers of units in flight, kept for the next unit: fresh pages cost more than the copy into
// them.
#ifndef SINQ_SERVER_WORKER_BUFFER_POOL_H_
#define SINQ_SERVER_WORKER_BUFFER_POOL_H_

#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "server/base/aligned_buffer.h"
#include "server/base/memory_budget.h"
#include "server/base/mutex.h"

namespace sinq {

// Memory with the reservation that covers it.
struct PooledBuffer {
  MemoryBudget::Reservation reservation;
  AlignedBuffer buffer;
};

// Thread-safe. Idle buffers keep their reservation, so the budget counts them. Nothing is kept idle
// while anybody waits, for this pool or for the budget: all would wait for each other.
class BufferPool {
 public:
  explicit BufferPool(MemoryBudget& budget) : budget_(budget) {}

  // At least `size_bytes`; blocks while the budget is used up. Cancelled when `cancelled` says so.
  absl::StatusOr<PooledBuffer> Acquire(uint64_t size_bytes, absl::FunctionRef<bool()> cancelled);
  void Release(PooledBuffer buffer);

 private:
  // The smallest idle buffer that is large enough.
  std::optional<PooledBuffer> TakeIdle(uint64_t size_bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<MemoryBudget::Reservation> GiveUpIdleAndReserve(
      uint64_t size_bytes, absl::FunctionRef<bool()> cancelled) ABSL_LOCKS_EXCLUDED(mutex_);

  MemoryBudget& budget_;
  Mutex mutex_;
  std::vector<PooledBuffer> idle_ ABSL_GUARDED_BY(mutex_);
  int waiting_ ABSL_GUARDED_BY(mutex_) = 0;  // Acquire calls that found nothing idle
};

}  // namespace sinq

#endif  // SINQ_SERVER_WORKER_BUFFER_POOL_H_
