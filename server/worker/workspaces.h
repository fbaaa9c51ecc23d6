// Memory that units compute in, beside their weights: their outputs and scratch.
//
// A unit needs its weights from the first byte read until it is computed, its workspace from there
// until its outputs are written. So there are few workspaces, and whoever has one always gets on.
#ifndef SINQ_SERVER_WORKER_WORKSPACES_H_
#define SINQ_SERVER_WORKER_WORKSPACES_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "server/base/memory_budget.h"
#include "server/base/mutex.h"
#include "server/worker/buffer_pool.h"

namespace sinq {

// The workspaces of one job, all of a size that does for any of its units. Thread-safe.
//
// A unit that has its weights must not wait for the budget (MemoryBudget). So it makes a claim
// before they are read: as long as there are claims there is at least one workspace, with a unit
// that will give it back or idle, and a claim can be met with it.
class Workspaces : public MemoryBudget::Reclaimer {
 public:
  // A unit's right to a workspace, until it is reset.
  struct DropClaim {
    void operator()(Workspaces* owner) const { owner->Drop(); }
  };
  using Claim = std::unique_ptr<Workspaces, DropClaim>;

  // At most `most` of `size_bytes`, from `memory` (null: from ordinary pages). All must have been
  // released before this goes.
  Workspaces(MemoryBudget& budget, kernels::HostMemory* memory, uint64_t size_bytes, int most);
  ~Workspaces() override;
  Workspaces(const Workspaces&) = delete;
  Workspaces& operator=(const Workspaces&) = delete;

  uint64_t size_bytes() const { return size_bytes_; }
  // Without waiting: null if there is no workspace, and the budget has no room for one.
  Claim TryClaim() ABSL_LOCKS_EXCLUDED(mutex_);
  // Waits for the budget: nobody who has weights that only his own progress will free may call it.
  absl::StatusOr<Claim> AwaitClaim(absl::FunctionRef<bool()> cancelled)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Makes the workspace that the claim needs from a reservation of `size_bytes`.
  absl::StatusOr<Claim> ClaimWith(MemoryBudget::Reservation reservation)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Whether one is idle, or could be made just now.
  bool HasFree() ABSL_LOCKS_EXCLUDED(mutex_);
  // Without waiting: nothing if all are in use and there is to be, or can be, no further one.
  std::optional<PooledBuffer> TryTake(const Claim& claim) ABSL_LOCKS_EXCLUDED(mutex_);
  // Waits until one is released, if it must.
  PooledBuffer Take(const Claim& claim) ABSL_LOCKS_EXCLUDED(mutex_);
  void Release(PooledBuffer workspace) ABSL_LOCKS_EXCLUDED(mutex_);
  void GiveUpIdle() override ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Drop() ABSL_LOCKS_EXCLUDED(mutex_);
  // An idle one, and `claims` to it from the same moment on.
  absl::Status Add(MemoryBudget::Reservation reservation, int claims) ABSL_LOCKS_EXCLUDED(mutex_);
  PooledBuffer TakeIdle() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Whether one may go although the job is not at its end.
  bool MayGo() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return count_ > 1 || claims_ == 0; }

  MemoryBudget& budget_;
  kernels::HostMemory* const memory_;
  const uint64_t size_bytes_;
  const int most_;
  Mutex mutex_;
  int count_ ABSL_GUARDED_BY(mutex_) = 0;  // idle or not
  int claims_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<PooledBuffer> idle_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sinq

#endif  // SINQ_SERVER_WORKER_WORKSPACES_H_
