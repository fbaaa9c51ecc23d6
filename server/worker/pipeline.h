// Reads ahead, computes and writes all unfinished tensors of one phase of a plan at once, within the
// memory budget.
#ifndef SINQ_SERVER_WORKER_PIPELINE_H_
#define SINQ_SERVER_WORKER_PIPELINE_H_

#include <atomic>
#include <functional>
#include <set>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "server/base/metrics.h"
#include "server/base/mutex.h"
#include "server/job/job.h"
#include "server/worker/bounded_queue.h"
#include "server/worker/checkpointer.h"
#include "server/worker/quantize_unit.h"

namespace sinq {

// One use: construct, Run. One reader thread fills a short queue, `workers` threads empty it.
class Pipeline {
 public:
  using OnProgress = absl::FunctionRef<void(const JobProgress&, absl::string_view tensor)>;
  Pipeline(const UnitContext& context, Checkpointer& checkpointer, Metrics& metrics, int workers,
           OnProgress on_progress)
      : context_(context),
        checkpointer_(checkpointer),
        metrics_(metrics),
        workers_(workers),
        on_progress_(on_progress),
        queue_(static_cast<size_t>(workers)) {}

  // All units of the context's phase but the tensors named in `finished`. The first error, or Cancelled once `stopped` is
  // true.
  absl::Status Run(const std::set<std::string>& finished, JobProgress progress,
                   absl::FunctionRef<bool()> stopped);
  JobProgress progress() const;

 private:
  struct Item {
    const PlannedTensor* tensor = nullptr;
    UnitMemory memory;  // empty for a copy
  };
  void ReadAhead(const std::set<std::string>& finished, absl::FunctionRef<bool()> cancelled);
  void Work(absl::FunctionRef<bool()> cancelled);
  absl::StatusOr<UnitRecord> Process(Item& item, absl::FunctionRef<bool()> cancelled);
  absl::StatusOr<UnitRecord> Compute(Item& item, absl::FunctionRef<bool()> cancelled,
                                     kernels::TensorStats* stats);
  void Fail(const absl::Status& status);
  void Done(const PlannedTensor& tensor, UnitRecord record);
  void Count(const PlannedTensor& tensor, const kernels::TensorStats& stats, double seconds);

  const UnitContext& context_;
  Checkpointer& checkpointer_;
  Metrics& metrics_;
  const int workers_;
  const OnProgress on_progress_;
  BoundedQueue<Item> queue_;
  std::atomic<bool> failed_ = false;
  mutable Mutex mutex_;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  JobProgress progress_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sinq

#endif  // SINQ_SERVER_WORKER_PIPELINE_H_
