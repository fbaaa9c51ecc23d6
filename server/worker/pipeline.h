// Reads ahead, computes and writes all unfinished tensors of one phase of a plan at once, within
// the memory budget.
#ifndef SINQ_SERVER_WORKER_PIPELINE_H_
#define SINQ_SERVER_WORKER_PIPELINE_H_

#include <atomic>
#include <cstddef>
#include <memory>
#include <set>
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
#include "server/worker/quantize_unit.h"

namespace sinq {

// One use: construct, Run. The thread that runs it reads, two units side by side where there is
// memory for both, because two digests take little more time than one. The pool's workers do the
// rest.
class Pipeline {
 public:
  using OnProgress = absl::FunctionRef<void(const JobProgress&, absl::string_view tensor)>;
  Pipeline(const UnitContext& context, Checkpointer& checkpointer, Metrics& metrics,
           OnProgress on_progress)
      : context_(context),
        checkpointer_(checkpointer),
        metrics_(metrics),
        on_progress_(on_progress) {}

  // All units of the context's phase but the tensors named in `finished`. The first error, or
  // Cancelled once `stopped` is true.
  absl::Status Run(const std::set<std::string>& finished, JobProgress progress,
                   absl::FunctionRef<bool()> stopped);
  JobProgress progress() const;

 private:
  struct Item {
    const PlannedTensor& tensor;
    UnitMemory memory;
    kernels::TensorStats stats;
    double seconds = 0;  // of quantizing
  };
  using Cancelled = absl::FunctionRef<bool()>;

  using Units = std::vector<const PlannedTensor*>;

  absl::Status ReadAhead(Units waiting, Cancelled cancelled);
  // The units of the phase that are not in `finished`, the first one last.
  Units UnitsLeft(const std::set<std::string>& finished) const;
  // Moves units from `waiting` to `reads`, as many as there is room for: at least one if there is
  // none, which may have to wait. What has nothing to read goes on at once.
  absl::Status BeginReads(Units& waiting, std::vector<UnitRead>& reads, Cancelled cancelled);
  absl::Status SubmitComplete(std::vector<UnitRead>& reads, Cancelled cancelled);
  // Until the pool has few enough of this job's tensors for `reads` to go on and one to be begun.
  // What waits for a worker then keeps the workers busy, so a read may as well wait for its mate.
  void AwaitRoomBeside(size_t reads) ABSL_LOCKS_EXCLUDED(mutex_);
  void AwaitAll() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Submit(UnitRead read, Cancelled cancelled);
  absl::Status Compute(Item& item, const kernels::Backend& backend, Cancelled cancelled);
  void Finish(Item& item, const absl::Status& computed, absl::string_view worker_kind,
              Cancelled cancelled);
  absl::StatusOr<UnitRecord> Write(Item& item, Cancelled cancelled);
  void Fail(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_);
  void Done(const PlannedTensor& tensor, UnitRecord record) ABSL_LOCKS_EXCLUDED(mutex_);
  void Count(const Item& item, absl::string_view worker_kind);
  void ObserveDeviceStages(const kernels::DeviceStats& before);

  const UnitContext& context_;
  Checkpointer& checkpointer_;
  Metrics& metrics_;
  const OnProgress on_progress_;
  std::atomic<bool> failed_ = false;
  mutable Mutex mutex_;
  int in_flight_ ABSL_GUARDED_BY(mutex_) = 0;  // items that the pool has
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  JobProgress progress_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sinq

#endif  // SINQ_SERVER_WORKER_PIPELINE_H_
