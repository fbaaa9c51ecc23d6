// Reads ahead, measures, computes and writes all unfinished tensors of a plan at once, within the
// memory budget.
//
// Where column scales are folded a tensor is measured some time before it can be quantized. The
// plan is then gone through by stages (fold_stages.h), and what was read to be measured is kept for
// its second turn (kept_units.h). As far as memory allows, each stage is measured before the one
// ahead of it is quantized, so that workers always have something to do.
#ifndef SINQ_SERVER_WORKER_PIPELINE_H_
#define SINQ_SERVER_WORKER_PIPELINE_H_

#include <atomic>
#include <cstddef>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "server/base/metrics.h"
#include "server/base/mutex.h"
#include "server/job/job.h"
#include "server/worker/checkpointer.h"
#include "server/plan/fold_stages.h"
#include "server/worker/kept_units.h"
#include "server/worker/quantize_unit.h"
#include "server/worker/turns.h"

namespace sinq {

// Where the units of one phase go, and what an earlier attempt did of it: records by tensor name.
// The pipeline takes those of Phase::kMeasure out of it.
struct PhaseLedger {
  Checkpointer& checkpointer;
  std::map<std::string, UnitRecord> finished;
};

// One use: construct, Run. The thread that runs it reads, two units side by side where there is
// memory for both, because two digests take little more time than one. The pool's workers do the
// rest.
class Pipeline {
 public:
  using OnProgress = absl::FunctionRef<void(const JobProgress&, absl::string_view tensor)>;
  // `measuring` and `scales` (the context's, without any yet): of a plan that folds, else null.
  Pipeline(const UnitContext& context, PhaseLedger* measuring, FoldScales* scales,
           PhaseLedger& quantizing, Metrics& metrics, OnProgress on_progress);

  // All units but those that the ledgers have. The first error, or Cancelled once `stopped` is
  // true.
  absl::Status Run(JobProgress progress, absl::FunctionRef<bool()> stopped);
  JobProgress progress() const;

 private:
  struct Step {
    Phase phase;
    size_t stage;
    int index;  // into Plan::tensors
  };
  // What is not begun yet, in order of stages.
  struct Steps {
    std::deque<Step> measuring;
    std::deque<Step> quantizing;
    bool empty() const { return measuring.empty() && quantizing.empty(); }
  };
  struct Reading {
    Step step;
    UnitRead read;
  };
  struct Item {
    Step step;
    const PlannedTensor& tensor;
    UnitMemory memory;
    bool was_kept;  // its weights were not read again
    bool has_weights = true;
    std::optional<uint64_t> turn = {};  // to be digested: what was quantized
    absl::Status computed = {};
    std::string worker_kind = {};
    kernels::TensorStats stats = {};
    double seconds = 0;  // of quantizing
  };
  using Cancelled = absl::FunctionRef<bool()>;

  absl::Status ReadAhead(Steps waiting, Cancelled cancelled);
  // All that the ledgers do not have.
  Steps StepsLeft();
  void AddMeasuring(size_t stage, std::deque<Step>& steps);
  void AddQuantizing(size_t stage, std::deque<Step>& steps) const;
  // The queue whose front is to be begun next; there must be one.
  std::deque<Step>& NextOf(Steps& waiting) const;
  bool IsQuantized(const FoldStage& stage) const;
  // The next pieces of what is not read yet, two side by side; if all is, waits for the workspace
  // of the first.
  absl::Status GoOnReading(std::vector<Reading>& reads);
  // Quantizes what is in memory and has its scales, as far as there are workspaces: workers need
  // not wait for what is read meanwhile.
  absl::Status SubmitKept(Steps& waiting, std::vector<Reading>& reads, Cancelled cancelled);
  // Whether MakeScales would not wait.
  bool IsMeasured(size_t stage, const Steps& waiting, const std::vector<Reading>& reads) const
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Moves units from `waiting` to `reads`, as many as there is room for: at least one if there is
  // none, which may have to wait. What has nothing to read goes on at once.
  absl::Status BeginReads(Steps& waiting, std::vector<Reading>& reads, Cancelled cancelled);
  // Nothing if there is no memory now and the unit must not wait for it.
  absl::StatusOr<std::optional<UnitRead>> Begin(const Step& step, bool may_wait,
                                                Cancelled cancelled);
  // The same of a unit that was kept; also nothing if it was given up just now.
  absl::StatusOr<std::optional<UnitRead>> BeginKept(const Step& step, bool may_wait,
                                                    Cancelled cancelled);
  // True if the read needs no workspace any more, because it has one.
  bool HasWorkspace(UnitRead& read);
  absl::Status SubmitComplete(std::vector<Reading>& reads, Cancelled cancelled);
  // Waits until all of the stage is measured, and makes its scales.
  absl::Status MakeScales(size_t stage) ABSL_LOCKS_EXCLUDED(mutex_);
  const PlannedTensor& TensorAt(int index) const {
    return context_.plan.tensors[static_cast<size_t>(index)];
  }
  bool IsIdle() const ABSL_LOCKS_EXCLUDED(mutex_);
  // Until few enough weights of this job are in work for `reads` to go on and one to be begun.
  // What waits for a worker then keeps the workers busy, so a read may as well wait for its mate.
  void AwaitRoomBeside(size_t reads) ABSL_LOCKS_EXCLUDED(mutex_);
  void AwaitAll() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Submit(Reading reading, Cancelled cancelled);
  absl::Status Compute(Item& item, const Computing& computing, Cancelled cancelled);
  // What follows a unit's arithmetic, its turn being there.
  void Finish(Item& item, Cancelled cancelled);
  // The same on a thread that finishes.
  void FinishLater(const std::shared_ptr<Item>& item, Cancelled cancelled);
  // Does all but write what was quantized.
  absl::StatusOr<UnitRecord> MakeRecord(Item& item, Cancelled cancelled);
  // The unit's memory, to be kept or used again.
  void GiveBack(Item& item, bool succeeded);
  void ReleaseWeights(Item& item);
  void NoteWithoutWeights(Item& item) ABSL_LOCKS_EXCLUDED(mutex_);
  void Fail(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_);
  void Done(const Item& item, UnitRecord record) ABSL_LOCKS_EXCLUDED(mutex_);
  void CountUnit(const PlannedTensor& tensor) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Count(const Item& item);
  void ObserveDeviceStages(const kernels::DeviceStats& before);

  const UnitContext& context_;
  PhaseLedger* const measuring_;
  FoldScales* const scales_;
  PhaseLedger& quantizing_;
  Metrics& metrics_;
  const OnProgress on_progress_;
  const std::vector<FoldStage> stages_;
  std::vector<bool> has_scales_;  // by stage; only the thread that reads
  std::atomic<bool> failed_ = false;
  Turns turns_;  // in the order in which units were submitted, which is nearly that of the files
  mutable Mutex mutex_;
  int in_flight_ ABSL_GUARDED_BY(mutex_) = 0;     // items that the pool has
  int with_weights_ ABSL_GUARDED_BY(mutex_) = 0;  // of them, those whose weights are still wanted
  std::vector<int> unmeasured_ ABSL_GUARDED_BY(mutex_);  // submitted, by stage
  std::map<std::string, UnitRecord> measured_ ABSL_GUARDED_BY(mutex_);  // of stages to come
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  JobProgress progress_ ABSL_GUARDED_BY(mutex_);
  KeptUnits kept_;  // last: asks the others whether it is idle
};

}  // namespace sinq

#endif  // SINQ_SERVER_WORKER_PIPELINE_H_
