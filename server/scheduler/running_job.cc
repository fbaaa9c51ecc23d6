#include "server/scheduler/running_job.h"

#include "absl/strings/str_cat.h"
#include "server/base/log.h"

namespace sinq {
namespace {

// Progress reaches watchers about this often, however long the heartbeat interval is.
constexpr absl::Duration kProgressInterval = absl::Seconds(1);

}  // namespace

RunningJob::RunningJob(const Job& job, const Lease& lease, const SchedulerOptions& options,
                       JobStore& store, const Clock& clock, Metrics& metrics)
    : job_(job),
      lease_(lease),
      options_(options),
      store_(store),
      clock_(clock),
      metrics_(metrics),
      progress_(job.progress),
      renewed_(clock.SinceBoot()) {
  // Asked for while no worker had the job: this attempt only cleans up.
  if (job.cancel_requested) RequestStop(StopReason::kCancel);
}

void RunningJob::RequestStop(StopReason reason) {
  const auto strength = [](StopReason r) {
    switch (r) {
      case StopReason::kNone:
        return 0;
      case StopReason::kDrain:
        return 1;
      case StopReason::kCancel:
        return 2;
      case StopReason::kLeaseLost:
        return 3;
    }
    return 0;
  };
  StopReason current = stop_.load();
  while (strength(current) < strength(reason) && !stop_.compare_exchange_weak(current, reason)) {
  }
}

void RunningJob::Report(const JobProgress& progress, absl::string_view tensor) {
  MutexLock lock(&progress_mutex_);
  progress_ = progress;
  tensor_ = std::string(tensor);
  reported_ = true;
}

bool RunningJob::IsDue(bool now) {
  if (stopped_ || stop_.load() == StopReason::kLeaseLost) return false;
  const absl::Duration age = clock_.SinceBoot() - renewed_;
  if (now || age >= options_.heartbeat_interval) return true;
  MutexLock lock(&progress_mutex_);
  return reported_ && age >= kProgressInterval;
}

void RunningJob::Heartbeat(bool now) {
  MutexLock lock(&renew_mutex_);
  if (!IsDue(now)) return;
  JobProgress progress;
  std::string tensor;
  {
    MutexLock progress_lock(&progress_mutex_);
    progress = progress_;
    tensor = tensor_;
    reported_ = false;
  }
  OnRenewed(store_.Renew(lease_, options_.lease_duration, progress, tensor));
}

void RunningJob::OnRenewed(const absl::StatusOr<Job>& job) {
  if (job.ok()) {
    renewed_ = clock_.SinceBoot();
    metrics_.Add("sinq_lease_renewals_total", 1);
    if (job->cancel_requested) RequestStop(StopReason::kCancel);
    return;
  }
  if (absl::IsAborted(job.status())) return LoseLease(job.status().message());
  Log(LogLevel::kWarning, "lease_renewal_failed",
      {{"job", lease_.job_id}, {"error", std::string(job.status().message())}});
  // Not told, but by now somebody else may hold it.
  if (clock_.SinceBoot() - renewed_ >= options_.lease_duration) {
    LoseLease("it could not be renewed in time");
  }
}

void RunningJob::LoseLease(absl::string_view why) {
  RequestStop(StopReason::kLeaseLost);
  metrics_.Add("sinq_leases_lost_total", 1);
  Log(LogLevel::kWarning, "lease_lost",
      {{"job", lease_.job_id},
       {"lease_epoch", absl::StrCat(lease_.epoch)},
       {"why", std::string(why)}});
}

void RunningJob::StopHeartbeats() {
  MutexLock lock(&renew_mutex_);
  stopped_ = true;
}

}  // namespace sinq
