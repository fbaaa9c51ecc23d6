// One leased job while its runner works: the stop flag, the newest progress and the lease's age.
#ifndef SINQ_SERVER_SCHEDULER_RUNNING_JOB_H_
#define SINQ_SERVER_SCHEDULER_RUNNING_JOB_H_

#include <atomic>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/base/clock.h"
#include "server/base/metrics.h"
#include "server/base/mutex.h"
#include "server/job/job_store.h"
#include "server/scheduler/scheduler.h"
#include "server/worker/job_runner.h"

namespace sinq {

// Thread-safe: the runner's threads report, the heartbeat thread renews, anybody asks to stop.
class RunningJob {
 public:
  RunningJob(const Job& job, const Lease& lease, const SchedulerOptions& options, JobStore& store,
             const Clock& clock, Metrics& metrics);

  const Job& job() const { return job_; }  // as it was leased
  const Lease& lease() const { return lease_; }
  const std::atomic<StopReason>& stop() const { return stop_; }

  // A stronger reason replaces a weaker one: drain < cancel < lease lost.
  void RequestStop(StopReason reason);
  void Report(const JobProgress& progress, absl::string_view tensor);

  // Renews if the interval has passed, if there is progress to store, or if `now` asks for it;
  // obeys what the store answers.
  void Heartbeat(bool now) ABSL_LOCKS_EXCLUDED(renew_mutex_);
  // No renewal starts or is under way once this returns: the lease may be ended.
  void StopHeartbeats() ABSL_LOCKS_EXCLUDED(renew_mutex_);

 private:
  bool IsDue(bool now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(renew_mutex_);
  void OnRenewed(const absl::StatusOr<Job>& job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(renew_mutex_);
  void LoseLease(absl::string_view why);

  const Job job_;
  const Lease lease_;
  const SchedulerOptions options_;
  JobStore& store_;
  const Clock& clock_;
  Metrics& metrics_;

  std::atomic<StopReason> stop_{StopReason::kNone};

  Mutex progress_mutex_ ABSL_ACQUIRED_AFTER(renew_mutex_);
  JobProgress progress_ ABSL_GUARDED_BY(progress_mutex_);
  std::string tensor_ ABSL_GUARDED_BY(progress_mutex_);
  bool reported_ ABSL_GUARDED_BY(progress_mutex_) = false;

  Mutex renew_mutex_;  // held across a renewal
  bool stopped_ ABSL_GUARDED_BY(renew_mutex_) = false;
  absl::Duration renewed_ ABSL_GUARDED_BY(renew_mutex_);  // since boot: the last success
};

}  // namespace sinq

#endif  // SINQ_SERVER_SCHEDULER_RUNNING_JOB_H_
