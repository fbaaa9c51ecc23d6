// Admission by declared bytes: whoever holds a large buffer reserves it here first.
#ifndef SINQ_SERVER_BASE_MEMORY_BUDGET_H_
#define SINQ_SERVER_BASE_MEMORY_BUDGET_H_

#include <cstdint>
#include <deque>
#include <limits>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "server/base/mutex.h"

namespace sinq {

// Thread-safe. Requests are served in order of arrival, so that a large one cannot starve. A
// request larger than the whole budget is granted when nothing else is held: that is "the budget
// plus the largest tensor in flight". Whoever holds a reservation must not wait for a second one:
// reserve the sum at once. The budget must outlive its reservations.
class MemoryBudget {
 public:
  // `largest_request_bytes`: what the machine can hold at all; more is refused instead of granted.
  explicit MemoryBudget(uint64_t budget_bytes,
                        uint64_t largest_request_bytes = std::numeric_limits<uint64_t>::max())
      : budget_bytes_(budget_bytes), largest_request_bytes_(largest_request_bytes) {}

  // Somebody who keeps idle memory reserved. GiveUpIdle is called without the budget's lock, again
  // and again while anybody waits.
  class Reclaimer {
   public:
    virtual ~Reclaimer() = default;
    virtual void GiveUpIdle() = 0;
  };
  // `reclaimer` must be removed before it goes; no call of it is under way once Remove returns.
  void AddReclaimer(Reclaimer& reclaimer) ABSL_LOCKS_EXCLUDED(reclaim_mutex_);
  void RemoveReclaimer(Reclaimer& reclaimer) ABSL_LOCKS_EXCLUDED(reclaim_mutex_);

  // Gives its bytes back when destroyed. Movable.
  class Reservation {
   public:
    Reservation() = default;
    Reservation(Reservation&& other) noexcept;
    Reservation& operator=(Reservation&& other) noexcept;
    ~Reservation();
    uint64_t bytes() const { return bytes_; }
    // Moves `bytes` of it to a reservation of their own; there must be as many.
    Reservation Split(uint64_t bytes);

   private:
    friend class MemoryBudget;
    Reservation(MemoryBudget* owner, uint64_t bytes) : owner_(owner), bytes_(bytes) {}
    MemoryBudget* owner_ = nullptr;
    uint64_t bytes_ = 0;
  };

  // ResourceExhausted/kMemoryBudgetTooSmall for more than the largest request. Else blocks until
  // granted; Cancelled as soon as `cancelled` (asked at least every 50 ms while
  // waiting, without any lock held) says so.
  absl::StatusOr<Reservation> Reserve(uint64_t bytes, absl::FunctionRef<bool()> cancelled);
  uint64_t budget_bytes() const { return budget_bytes_; }
  // The same without waiting: nothing if it is not free now, or if others wait for it.
  std::optional<Reservation> TryReserve(uint64_t bytes);
  // True while somebody waits in Reserve: memory must not become idle now.
  bool HasWaiters() const;
  uint64_t held_bytes() const;
  uint64_t peak_bytes() const;

 private:
  void Release(uint64_t bytes);
  void Reclaim() ABSL_LOCKS_EXCLUDED(reclaim_mutex_, mutex_);
  bool CanGrant(uint64_t ticket, uint64_t bytes) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const uint64_t budget_bytes_;
  const uint64_t largest_request_bytes_;
  mutable Mutex mutex_;
  uint64_t held_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t peak_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t next_ticket_ ABSL_GUARDED_BY(mutex_) = 0;
  std::deque<uint64_t> waiting_ ABSL_GUARDED_BY(mutex_);  // tickets in order of arrival
  Mutex reclaim_mutex_;                                   // taken before mutex_
  std::vector<Reclaimer*> reclaimers_ ABSL_GUARDED_BY(reclaim_mutex_);
};

}  // namespace sinq

#endif  // SINQ_SERVER_BASE_MEMORY_BUDGET_H_
