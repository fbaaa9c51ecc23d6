#include "server/worker/workspaces.h"

#include <utility>

namespace sinq {

Workspaces::Workspaces(MemoryBudget& budget, kernels::HostMemory* memory, uint64_t size_bytes,
                       int most)
    : budget_(budget), memory_(memory), size_bytes_(size_bytes), most_(most) {
  budget_.AddReclaimer(*this);
}

Workspaces::~Workspaces() { budget_.RemoveReclaimer(*this); }

Workspaces::Claim Workspaces::TryClaim() {
  {
    MutexLock lock(&mutex_);
    if (count_ > 0) {
      ++claims_;
      return Claim(this);
    }
  }
  std::optional<MemoryBudget::Reservation> reservation = budget_.TryReserve(size_bytes_);
  if (!reservation) return nullptr;
  absl::StatusOr<Claim> claim = ClaimWith(*std::move(reservation));
  return claim.ok() ? *std::move(claim) : nullptr;
}

absl::StatusOr<Workspaces::Claim> Workspaces::AwaitClaim(absl::FunctionRef<bool()> cancelled) {
  if (Claim claim = TryClaim(); claim != nullptr) return claim;
  absl::StatusOr<MemoryBudget::Reservation> granted = budget_.Reserve(size_bytes_, cancelled);
  if (!granted.ok()) return granted.status();
  return ClaimWith(*std::move(granted));
}

absl::StatusOr<Workspaces::Claim> Workspaces::ClaimWith(MemoryBudget::Reservation reservation) {
  if (absl::Status status = Add(std::move(reservation), 1); !status.ok()) return status;
  return Claim(this);
}

absl::Status Workspaces::Add(MemoryBudget::Reservation reservation, int claims) {
  absl::StatusOr<PooledBuffer> workspace = AllocatePooled(memory_, std::move(reservation));
  if (!workspace.ok()) return workspace.status();
  MutexLock lock(&mutex_);
  ++count_;
  claims_ += claims;
  idle_.push_back(*std::move(workspace));
  return absl::OkStatus();
}

void Workspaces::Drop() {
  MutexLock lock(&mutex_);
  --claims_;
}

bool Workspaces::HasFree() {
  {
    MutexLock lock(&mutex_);
    if (!idle_.empty()) return true;
    if (count_ >= most_) return false;
  }
  std::optional<MemoryBudget::Reservation> reservation = budget_.TryReserve(size_bytes_);
  // Without memory for another, those that there are will do.
  return reservation && Add(*std::move(reservation), 0).ok();
}

PooledBuffer Workspaces::TakeIdle() {
  PooledBuffer workspace = std::move(idle_.back());
  idle_.pop_back();
  return workspace;
}

std::optional<PooledBuffer> Workspaces::TryTake(const Claim& /*claim*/) {
  if (!HasFree()) return std::nullopt;
  MutexLock lock(&mutex_);
  if (idle_.empty()) return std::nullopt;  // another was quicker
  return TakeIdle();
}

PooledBuffer Workspaces::Take(const Claim& /*claim*/) {
  MutexLock lock(&mutex_);
  const auto has_idle = [this] {
    mutex_.AssertHeld();
    return !idle_.empty();
  };
  mutex_.Await(absl::Condition(&has_idle));
  return TakeIdle();
}

void Workspaces::Release(PooledBuffer workspace) {
  std::optional<PooledBuffer> given_up;  // destroyed outside the lock: unmapping takes its time
  const bool is_wanted = budget_.HasWaiters();
  MutexLock lock(&mutex_);
  if (is_wanted && MayGo()) {
    --count_;
    given_up = std::move(workspace);
  } else {
    idle_.push_back(std::move(workspace));
  }
}

void Workspaces::GiveUpIdle() {
  std::vector<PooledBuffer> given_up;
  MutexLock lock(&mutex_);
  while (!idle_.empty() && MayGo()) {
    --count_;
    given_up.push_back(TakeIdle());
  }
}

}  // namespace sinq
