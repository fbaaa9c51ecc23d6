// Buffers of units in flight, kept for the next unit: fresh pages cost more than the copy into
// them, and locking them costs more still.
#ifndef SINQ_SERVER_WORKER_BUFFER_POOL_H_
#define SINQ_SERVER_WORKER_BUFFER_POOL_H_

#include <limits>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "server/base/memory_budget.h"
#include "server/base/mutex.h"
#include "server/worker/host_buffer.h"

namespace sinq {

// Memory with the reservation that covers it.
struct PooledBuffer {
  MemoryBudget::Reservation reservation;
  HostBuffer buffer;  // goes before its reservation
};
// Of the reservation's size, from `memory` (null: from ordinary pages).
absl::StatusOr<PooledBuffer> AllocatePooled(kernels::HostMemory* memory,
                                            MemoryBudget::Reservation reservation);

// Thread-safe. Idle buffers keep their reservation, so the budget counts them. They are given up as
// soon as anybody waits for the budget: all would wait for each other.
class BufferPool : public MemoryBudget::Reclaimer {
 public:
  // Buffers of up to `max_special_bytes` come from `memory` (null: from ordinary pages). Whoever
  // asks for nearly `largest_bytes` gets as much, so that any of the largest can use the buffer
  // again; 0 if that is not known.
  explicit BufferPool(MemoryBudget& budget, kernels::HostMemory* memory = nullptr,
                      uint64_t max_special_bytes = std::numeric_limits<uint64_t>::max(),
                      uint64_t largest_bytes = 0);
  ~BufferPool() override;
  BufferPool(const BufferPool&) = delete;
  BufferPool& operator=(const BufferPool&) = delete;

  // At least `size_bytes`; blocks while the budget is used up. Cancelled when `cancelled` says so.
  absl::StatusOr<PooledBuffer> Acquire(uint64_t size_bytes, absl::FunctionRef<bool()> cancelled);
  // What is held for long should take no much larger buffer while the budget has room.
  enum class Fit : uint8_t { kAny, kClose };
  // The same without waiting: nothing while the budget has no room, or others wait for it.
  absl::StatusOr<std::optional<PooledBuffer>> TryAcquire(uint64_t size_bytes,
                                                         Fit fit = Fit::kAny);
  // Of a reservation of SizeOfBuffer.
  absl::StatusOr<PooledBuffer> Allocate(MemoryBudget::Reservation reservation);
  // What is reserved for such a request.
  uint64_t SizeOfBuffer(uint64_t size_bytes) const;
  void Release(PooledBuffer buffer);
  void GiveUpIdle() override ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // The smallest idle buffer that is large enough, if it has no more than `most_bytes`.
  std::optional<PooledBuffer> TakeIdle(uint64_t size_bytes, uint64_t most_bytes)
      ABSL_LOCKS_EXCLUDED(mutex_);

  MemoryBudget& budget_;
  kernels::HostMemory* const memory_;
  const uint64_t max_special_bytes_;
  const uint64_t largest_bytes_;
  Mutex mutex_;
  std::vector<PooledBuffer> idle_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sinq

#endif  // SINQ_SERVER_WORKER_BUFFER_POOL_H_
