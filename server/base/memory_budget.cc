#include "server/base/memory_budget.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "server/base/error.h"

namespace sinq {

MemoryBudget::Reservation::Reservation(Reservation&& other) noexcept
    : owner_(std::exchange(other.owner_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

MemoryBudget::Reservation& MemoryBudget::Reservation::operator=(Reservation&& other) noexcept {
  if (this == &other) return *this;
  if (owner_ != nullptr) owner_->Release(bytes_);
  owner_ = std::exchange(other.owner_, nullptr);
  bytes_ = std::exchange(other.bytes_, 0);
  return *this;
}

MemoryBudget::Reservation::~Reservation() {
  if (owner_ != nullptr) owner_->Release(bytes_);
}

MemoryBudget::Reservation MemoryBudget::Reservation::Split(uint64_t bytes) {
  bytes_ -= bytes;
  return Reservation(owner_, bytes);
}

bool MemoryBudget::CanGrant(uint64_t ticket, uint64_t bytes) const {
  if (waiting_.front() != ticket) return false;
  // Subtraction on the right, because the sum could wrap.
  return held_bytes_ == 0 || (held_bytes_ <= budget_bytes_ && bytes <= budget_bytes_ - held_bytes_);
}

absl::StatusOr<MemoryBudget::Reservation> MemoryBudget::Reserve(
    uint64_t bytes, absl::FunctionRef<bool()> cancelled) {
  if (bytes == 0) return Reservation();
  if (bytes > largest_request_bytes_) {
    return MakeError(
        absl::StatusCode::kResourceExhausted, Reason::kMemoryBudgetTooSmall,
        absl::StrCat("A tensor needs ", bytes, " bytes of memory in work; this server ",
                     "can give one tensor at most ", largest_request_bytes_, "."),
        {{"limit", absl::StrCat(largest_request_bytes_)}});
  }
  uint64_t ticket = 0;
  {
    MutexLock lock(&mutex_);
    ticket = next_ticket_++;
    waiting_.push_back(ticket);
  }
  while (true) {
    const bool stop = cancelled();
    // Each time round: memory may have become idle just before this request was in the line.
    if (!stop) Reclaim();
    MutexLock lock(&mutex_);
    if (stop) {
      waiting_.erase(std::find(waiting_.begin(), waiting_.end(), ticket));
      return MakeError(absl::StatusCode::kCancelled, Reason::kCancelled,
                       absl::StrCat("Stopped while waiting for ", bytes, " bytes of memory."));
    }
    const auto ready = [this, ticket, bytes]() {
      mutex_.AssertHeld();
      return CanGrant(ticket, bytes);
    };
    if (!mutex_.AwaitWithTimeout(absl::Condition(&ready), absl::Milliseconds(50))) continue;
    waiting_.pop_front();
    held_bytes_ += bytes;
    peak_bytes_ = std::max(peak_bytes_, held_bytes_);
    return Reservation(this, bytes);
  }
}

std::optional<MemoryBudget::Reservation> MemoryBudget::TryReserve(uint64_t bytes) {
  MutexLock lock(&mutex_);
  const bool fits = held_bytes_ <= budget_bytes_ && bytes <= budget_bytes_ - held_bytes_;
  if (!fits || !waiting_.empty()) return std::nullopt;
  held_bytes_ += bytes;
  peak_bytes_ = std::max(peak_bytes_, held_bytes_);
  return Reservation(this, bytes);
}

void MemoryBudget::AddReclaimer(Reclaimer& reclaimer) {
  MutexLock lock(&reclaim_mutex_);
  reclaimers_.push_back(&reclaimer);
}

void MemoryBudget::RemoveReclaimer(Reclaimer& reclaimer) {
  MutexLock lock(&reclaim_mutex_);
  reclaimers_.erase(std::find(reclaimers_.begin(), reclaimers_.end(), &reclaimer));
}

void MemoryBudget::Reclaim() {
  MutexLock lock(&reclaim_mutex_);
  for (Reclaimer* reclaimer : reclaimers_) reclaimer->GiveUpIdle();
}

void MemoryBudget::Release(uint64_t bytes) {
  MutexLock lock(&mutex_);
  held_bytes_ -= bytes;
}

bool MemoryBudget::HasWaiters() const {
  MutexLock lock(&mutex_);
  return !waiting_.empty();
}

uint64_t MemoryBudget::held_bytes() const {
  MutexLock lock(&mutex_);
  return held_bytes_;
}

uint64_t MemoryBudget::peak_bytes() const {
  MutexLock lock(&mutex_);
  return peak_bytes_;
}

}  // namespace sinq
