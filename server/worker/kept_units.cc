#include "server/worker/kept_units.h"

#include <algorithm>
#include <utility>

namespace sinq {

KeptUnits::KeptUnits(MemoryBudget& budget, uint64_t room_bytes, std::function<bool()> is_idle)
    : budget_(budget),
      is_idle_(std::move(is_idle)),
      limit_bytes_(budget.budget_bytes() -
                   std::min(room_bytes, budget.budget_bytes() - budget.budget_bytes() / 2)) {
  budget_.AddReclaimer(*this);
}

KeptUnits::~KeptUnits() { budget_.RemoveReclaimer(*this); }

bool KeptUnits::HasRoom(uint64_t size_bytes) const {
  MutexLock lock(&mutex_);
  return Fits(size_bytes);
}

bool KeptUnits::Admit(uint64_t size_bytes) {
  MutexLock lock(&mutex_);
  if (!Fits(size_bytes)) return false;
  admitted_bytes_ += size_bytes;
  return true;
}

void KeptUnits::Keep(int tensor, UnitMemory memory) {
  MutexLock lock(&mutex_);
  units_.insert_or_assign(tensor, std::move(memory));
}

void KeptUnits::Drop(uint64_t size_bytes) {
  MutexLock lock(&mutex_);
  admitted_bytes_ -= size_bytes;
}

bool KeptUnits::Has(int tensor) const {
  MutexLock lock(&mutex_);
  return units_.contains(tensor);
}

std::vector<int> KeptUnits::Tensors() const {
  std::vector<int> tensors;
  MutexLock lock(&mutex_);
  for (const auto& [tensor, unused] : units_) tensors.push_back(tensor);
  return tensors;
}

std::optional<UnitMemory> KeptUnits::Take(int tensor) {
  MutexLock lock(&mutex_);
  const auto found = units_.find(tensor);
  if (found == units_.end()) return std::nullopt;
  std::optional<UnitMemory> memory(std::move(found->second));
  units_.erase(found);
  admitted_bytes_ -= memory->kept_bytes;
  return memory;
}

void KeptUnits::GiveUpIdle() {
  if (!is_idle_()) return;
  std::map<int, UnitMemory> given_up;
  {
    MutexLock lock(&mutex_);
    given_up.swap(units_);
    for (const auto& [unused, memory] : given_up) admitted_bytes_ -= memory.kept_bytes;
  }
  // Destroyed outside the lock: giving memory back takes its time.
}

}  // namespace sinq
