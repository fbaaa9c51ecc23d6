// Units whose weights were read to be measured, until they are quantized: as long as memory lasts,
// no byte of the source is read twice.
#ifndef SINQ_SERVER_WORKER_KEPT_UNITS_H_
#define SINQ_SERVER_WORKER_KEPT_UNITS_H_

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "server/base/memory_budget.h"
#include "server/base/mutex.h"
#include "server/worker/quantize_unit.h"

namespace sinq {

// Thread-safe. Of one job. Takes what the budget has beyond `room_bytes`, which is for units in
// work, but half of the budget at least. Gives everything up when somebody waits for the budget and
// `is_idle` says that nothing else of this job will free any. What was given up is read again.
class KeptUnits : public MemoryBudget::Reclaimer {
 public:
  KeptUnits(MemoryBudget& budget, uint64_t room_bytes, std::function<bool()> is_idle);
  ~KeptUnits() override;
  KeptUnits(const KeptUnits&) = delete;
  KeptUnits& operator=(const KeptUnits&) = delete;

  bool HasRoom(uint64_t size_bytes) const ABSL_LOCKS_EXCLUDED(mutex_);
  // Whether a unit of `size_bytes` may be kept; if so it counts from now on, until it is taken,
  // dropped or given up.
  bool Admit(uint64_t size_bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  // Of a unit that was admitted: it is kept, or will not be.
  void Keep(int tensor, UnitMemory memory) ABSL_LOCKS_EXCLUDED(mutex_);
  void Drop(uint64_t size_bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  bool Has(int tensor) const ABSL_LOCKS_EXCLUDED(mutex_);
  // All that are here, ascending.
  std::vector<int> Tensors() const ABSL_LOCKS_EXCLUDED(mutex_);
  // Nothing if it is not here.
  std::optional<UnitMemory> Take(int tensor) ABSL_LOCKS_EXCLUDED(mutex_);
  void GiveUpIdle() override ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  bool Fits(uint64_t size_bytes) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return size_bytes <= limit_bytes_ - admitted_bytes_;
  }

  MemoryBudget& budget_;
  const std::function<bool()> is_idle_;
  const uint64_t limit_bytes_;
  mutable Mutex mutex_;
  uint64_t admitted_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<int, UnitMemory> units_ ABSL_GUARDED_BY(mutex_);  // by index in Plan::tensors
};

}  // namespace sinq

#endif  // SINQ_SERVER_WORKER_KEPT_UNITS_H_
