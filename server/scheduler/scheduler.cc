#include "server/scheduler/scheduler.h"

#include <algorithm>
#include <exception>
#include <map>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/base/error.h"
#include "server/base/limits.h"
#include "server/base/log.h"
#include "server/base/mutex.h"
#include "server/scheduler/failure_class.h"
#include "server/scheduler/running_job.h"

namespace sinq {
namespace {

constexpr absl::Duration kLongestTick = absl::Seconds(1);  // of heartbeats: progress is due
constexpr absl::Duration kWorkPoll =
    absl::Milliseconds(500);  // an idle runner sees a drain so soon
constexpr absl::Duration kStoreRetry = absl::Seconds(1);
constexpr absl::Duration kGaugeInterval = absl::Seconds(5);
constexpr absl::Duration kSweepInterval = absl::Hours(1);

std::string ResultLabel(JobState state) { return absl::AsciiStrToLower(JobStateName(state)); }

bool IsLeaseLost(const absl::Status& status) {
  return absl::IsAborted(status) && GetErrorDetails(status).reason == Reason::kLeaseLost;
}

// Nothing a job does may take the server down.
template <typename Run>
RunResult RunGuarded(const Job& job, Run run) {
  try {
    return run();
  } catch (const std::bad_alloc&) {
    return {MakeError(absl::StatusCode::kResourceExhausted, Reason::kMemoryBudgetTooSmall,
                      "The server ran out of memory; lower --memory-budget or --workers."),
            job.progress};
  } catch (const std::exception& error) {
    return {MakeError(absl::StatusCode::kInternal, Reason::kInternal,
                      absl::StrCat("The job stopped on an unexpected error: ", error.what())),
            job.progress};
  }
}

// Invariants:
//  1. A lease is taken only while not draining, checked again after it was taken.
//  2. A job is in running_ from its lease until its heartbeats have stopped; only then is it
//  finished.
//  3. The heartbeat thread outlives the runner threads, so that a draining job keeps its lease.
class ThreadScheduler final : public Scheduler {
 public:
  ThreadScheduler(const SchedulerOptions& options, JobStore& store, JobRunner& runner,
                  const Clock& clock, Metrics& metrics)
      : options_(options), store_(store), runner_(runner), clock_(clock), metrics_(metrics) {}
  ~ThreadScheduler() override { Drain(absl::ZeroDuration()); }

  void Start() override;
  void Drain(absl::Duration grace) override;
  void Wake(absl::string_view job_id) override;

 private:
  using RunningPtr = std::shared_ptr<RunningJob>;

  void RunnerLoop();
  void RunOne(const Job& job, const Lease& lease);
  RunningPtr Admit(const Job& job, const Lease& lease) ABSL_LOCKS_EXCLUDED(mutex_);
  void Dismiss(const RunningJob& running) ABSL_LOCKS_EXCLUDED(mutex_);
  // Ends the lease as the result says. Returns what happened, for the log.
  void Conclude(const RunningJob& running, const RunResult& result);
  void Complete(const RunningJob& running, JobState state, const RunResult& result);
  void TryAgain(const RunningJob& running, const RunResult& result);
  void CountStorageError(const absl::Status& status);
  void HandBack(const RunningJob& running, absl::string_view how);
  void Observe(const RunningJob& running, JobState state, const JobError& error);
  // Repeats while the store cannot be written, at most until the lease has run out.
  template <typename Call>
  absl::Status Insist(const RunningJob& running, Call call);

  void HeartbeatLoop();
  void HousekeepingLoop();
  void UpdateGauges();
  void Sweep();
  // What is left of jobs that ended outside of a run: one, or all that the store still has.
  void DiscardIfOver(const std::string& job_id);
  void DiscardLeftovers();
  void Discard(const Job& job);
  std::vector<RunningPtr> Running() ABSL_LOCKS_EXCLUDED(mutex_);
  bool IsDraining() ABSL_LOCKS_EXCLUDED(mutex_);
  // False as soon as Drain has finished with the runners.
  bool Sleep(absl::Duration duration) ABSL_LOCKS_EXCLUDED(mutex_);

  const SchedulerOptions options_;
  JobStore& store_;
  JobRunner& runner_;
  const Clock& clock_;
  Metrics& metrics_;

  Mutex mutex_;
  CondVar changed_;
  bool started_ ABSL_GUARDED_BY(mutex_) = false;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool drain_begun_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  std::map<std::string, RunningPtr> running_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::string> woken_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::thread> runners_ ABSL_GUARDED_BY(mutex_);
  std::thread heartbeat_ ABSL_GUARDED_BY(mutex_);
  std::thread housekeeping_ ABSL_GUARDED_BY(mutex_);
};

// --- life ---

void ThreadScheduler::Start() {
  MutexLock lock(&mutex_);
  if (started_ || draining_) return;
  started_ = true;
  for (int i = 0; i < std::max(options_.concurrent_jobs, 1); ++i) {
    runners_.emplace_back([this] { RunnerLoop(); });
  }
  heartbeat_ = std::thread([this] { HeartbeatLoop(); });
  housekeeping_ = std::thread([this] { HousekeepingLoop(); });
}

void ThreadScheduler::Drain(absl::Duration grace) {
  std::vector<std::thread> runners;
  {
    MutexLock lock(&mutex_);
    if (drain_begun_) return;
    drain_begun_ = draining_ = true;
    runners.swap(runners_);
    const absl::Time deadline = absl::Now() + grace;
    changed_.SignalAll();
    while (!running_.empty() && absl::Now() < deadline) {
      changed_.WaitWithDeadline(&mutex_, deadline);
    }
    for (const auto& [id, running] : running_) running->RequestStop(StopReason::kDrain);
  }
  for (std::thread& runner : runners) runner.join();
  std::thread heartbeat, housekeeping;
  {
    MutexLock lock(&mutex_);
    stopped_ = true;
    changed_.SignalAll();
    heartbeat.swap(heartbeat_);
    housekeeping.swap(housekeeping_);
  }
  if (heartbeat.joinable()) heartbeat.join();
  if (housekeeping.joinable()) housekeeping.join();
}

void ThreadScheduler::Wake(absl::string_view job_id) {
  MutexLock lock(&mutex_);
  woken_.emplace_back(job_id);
  changed_.SignalAll();
}

bool ThreadScheduler::IsDraining() {
  MutexLock lock(&mutex_);
  return draining_;
}

bool ThreadScheduler::Sleep(absl::Duration duration) {
  const absl::Time deadline = absl::Now() + duration;
  MutexLock lock(&mutex_);
  while (!stopped_ && absl::Now() < deadline) changed_.WaitWithDeadline(&mutex_, deadline);
  return !stopped_;
}

// --- running ---

void ThreadScheduler::RunnerLoop() {
  while (!IsDraining()) {
    auto acquired = store_.Acquire(options_.worker_name, options_.lease_duration);
    if (!acquired.ok()) {
      Log(LogLevel::kError, "lease_failed", {{"error", std::string(acquired.status().message())}});
      // Drain must not wait for a store that is down.
      MutexLock lock(&mutex_);
      if (!draining_) changed_.WaitWithTimeout(&mutex_, kStoreRetry);
    } else if (acquired->has_value()) {
      RunOne((*acquired)->first, (*acquired)->second);
    } else {
      store_.WaitForWork(kWorkPoll);
    }
  }
}

ThreadScheduler::RunningPtr ThreadScheduler::Admit(const Job& job, const Lease& lease) {
  auto running = std::make_shared<RunningJob>(job, lease, options_, store_, clock_, metrics_);
  MutexLock lock(&mutex_);
  if (draining_) return nullptr;
  running_[job.id] = running;
  return running;
}

void ThreadScheduler::Dismiss(const RunningJob& running) {
  MutexLock lock(&mutex_);
  const auto found = running_.find(running.job().id);
  if (found != running_.end() && found->second.get() == &running) running_.erase(found);
  changed_.SignalAll();
}

void ThreadScheduler::RunOne(const Job& job, const Lease& lease) {
  const RunningPtr running = Admit(job, lease);
  if (running == nullptr) {               // the drain began between the two
    store_.Release(lease).IgnoreError();  // if this fails, the next process finds the job anyway
    return;
  }
  if (job.attempt == 1) {
    const absl::Duration wait = job.start_time - job.create_time;
    metrics_.Observe("sinq_queue_wait_seconds", std::max(absl::ToDoubleSeconds(wait), 0.0),
                     {{"priority", "normal"}});
  }
  Log(LogLevel::kInfo, "job_started",
      {{"job", job.id},
       {"attempt", absl::StrCat(job.attempt)},
       {"lease_epoch", absl::StrCat(lease.epoch)},
       {"worker", options_.worker_name}});
  const auto on_progress = [&running](const JobProgress& progress, absl::string_view tensor) {
    running->Report(progress, tensor);
  };
  const RunResult result =
      RunGuarded(job, [&] { return runner_.Run(job, lease, running->stop(), on_progress); });
  running->StopHeartbeats();
  Conclude(*running, result);
  Dismiss(*running);
}

void ThreadScheduler::Conclude(const RunningJob& running, const RunResult& result) {
  const StopReason stop = running.stop().load();
  if (result.status.ok()) return Complete(running, JobState::kSucceeded, result);
  if (stop == StopReason::kLeaseLost) return;  // nothing here is ours any more
  if (IsLeaseLost(result.status)) {
    metrics_.Add("sinq_leases_lost_total", 1);
    Log(LogLevel::kWarning, "lease_lost",
        {{"job", running.job().id}, {"why", std::string(result.status.message())}});
    return;
  }
  if (stop == StopReason::kCancel) return Complete(running, JobState::kCancelled, result);
  if (stop == StopReason::kDrain && absl::IsCancelled(result.status)) {
    return HandBack(running, "checkpointed");
  }
  CountStorageError(result.status);
  if (IsRetryable(result.status)) return TryAgain(running, result);
  Complete(running, JobState::kFailed, result);
}

void ThreadScheduler::CountStorageError(const absl::Status& status) {
  const Reason reason = GetErrorDetails(status).reason;
  if (reason != Reason::kDiskFull && reason != Reason::kIoError) return;
  metrics_.Add("sinq_storage_write_errors_total", 1,
               {{"errno_class", reason == Reason::kDiskFull ? "no_space" : "io"}});
}

template <typename Call>
absl::Status ThreadScheduler::Insist(const RunningJob& running, Call call) {
  const absl::Duration give_up = clock_.SinceBoot() + options_.lease_duration;
  while (true) {
    absl::Status status = call();
    const bool may_pass = absl::IsUnavailable(status) || absl::IsResourceExhausted(status);
    if (!may_pass || clock_.SinceBoot() >= give_up) return status;
    Log(LogLevel::kError, "store_write_failed",
        {{"job", running.job().id}, {"error", std::string(status.message())}});
    // A shutdown does not wait: the job stays leased, and the next start takes it up.
    if (IsDraining()) return status;
    MutexLock lock(&mutex_);
    changed_.WaitWithTimeout(&mutex_, kStoreRetry);
  }
}

void ThreadScheduler::Complete(const RunningJob& running, JobState state, const RunResult& result) {
  const JobError error = state == JobState::kFailed ? ToJobError(result.status) : JobError();
  const absl::Status status = Insist(
      running, [&] { return store_.Finish(running.lease(), state, result.progress, error); });
  if (status.ok()) return Observe(running, state, error);
  if (IsLeaseLost(status)) metrics_.Add("sinq_stale_completions_rejected_total", 1);
  Log(LogLevel::kError, "job_not_finished",
      {{"job", running.job().id},
       {"result", ResultLabel(state)},
       {"error", std::string(status.message())}});
}

void ThreadScheduler::TryAgain(const RunningJob& running, const RunResult& result) {
  const absl::Duration delay = RetryDelay(running.job().attempt);
  absl::StatusOr<Job> job = running.job();
  const absl::Status status = Insist(running, [&] {
    job = store_.Retry(running.lease(), delay, ToJobError(result.status));
    return job.status();
  });
  if (IsLeaseLost(status)) metrics_.Add("sinq_stale_completions_rejected_total", 1);
  if (status.ok() && IsTerminal(job->state)) {
    Discard(*job);
    return Observe(running, job->state, ToJobError(result.status));
  }
  Log(LogLevel::kWarning, "job_attempt_failed",
      {{"job", running.job().id},
       {"attempt", absl::StrCat(running.job().attempt)},
       {"retry_in_seconds", absl::StrCat(absl::ToInt64Seconds(delay))},
       {"error", std::string((status.ok() ? result.status : status).message())}});
}

void ThreadScheduler::HandBack(const RunningJob& running, absl::string_view how) {
  const absl::Status status = Insist(running, [&] { return store_.Release(running.lease()); });
  metrics_.Add("sinq_jobs_interrupted_total", 1, {{"how", std::string(how)}});
  Log(status.ok() ? LogLevel::kInfo : LogLevel::kError, "job_released",
      {{"job", running.job().id},
       {"how", std::string(how)},
       {"error", std::string(status.message())}});
}

void ThreadScheduler::Observe(const RunningJob& running, JobState state, const JobError& error) {
  const Job& job = running.job();
  const std::string result = ResultLabel(state);
  const double seconds = std::max(absl::ToDoubleSeconds(clock_.WallNow() - job.start_time), 0.0);
  metrics_.Observe("sinq_job_duration_seconds", seconds,
                   {{"method", job.spec.method}, {"result", result}});
  metrics_.Observe("sinq_job_attempts", job.attempt, {{"result", result}});
  const std::string reason = error.code.empty() ? "" : std::string(ReasonName(error.reason));
  metrics_.Add("sinq_jobs_completed_total", 1,
               {{"method", job.spec.method}, {"result", result}, {"reason", reason}});
  if (IsDraining()) metrics_.Add("sinq_jobs_interrupted_total", 1, {{"how", "finished"}});
  Log(state == JobState::kFailed ? LogLevel::kError : LogLevel::kInfo, "job_finished",
      {{"job", job.id},
       {"result", result},
       {"attempt", absl::StrCat(job.attempt)},
       {"duration_s", absl::StrCat(seconds)},
       {"reason", reason},
       {"error", error.message}});
}

// --- heartbeats and housekeeping ---

std::vector<ThreadScheduler::RunningPtr> ThreadScheduler::Running() {
  MutexLock lock(&mutex_);
  std::vector<RunningPtr> jobs;
  for (const auto& [id, running] : running_) jobs.push_back(running);
  return jobs;
}

void ThreadScheduler::HeartbeatLoop() {
  const absl::Duration tick = std::min(options_.heartbeat_interval, kLongestTick);
  while (true) {
    std::vector<std::string> woken;
    {
      const absl::Time deadline = absl::Now() + tick;
      MutexLock lock(&mutex_);
      while (!stopped_ && woken_.empty() && absl::Now() < deadline) {
        changed_.WaitWithDeadline(&mutex_, deadline);
      }
      if (stopped_) return;
      woken.swap(woken_);
    }
    for (const std::string& job_id : woken) DiscardIfOver(job_id);
    for (const RunningPtr& running : Running()) {
      const bool now = std::find(woken.begin(), woken.end(), running->job().id) != woken.end();
      running->Heartbeat(now);
    }
  }
}

void ThreadScheduler::HousekeepingLoop() {
  absl::Duration last_sweep = -absl::InfiniteDuration();  // once at the start, then hourly
  do {
    UpdateGauges();
    if (clock_.SinceBoot() - last_sweep >= kSweepInterval) {
      Sweep();
      last_sweep = clock_.SinceBoot();
    }
  } while (Sleep(kGaugeInterval));
}

void ThreadScheduler::UpdateGauges() {
  if (options_.update_gauges) options_.update_gauges();
  const auto counts = store_.CountByState();
  const auto age = store_.OldestQueuedAge();
  if (!counts.ok() || !age.ok()) {
    const absl::Status& status = counts.ok() ? age.status() : counts.status();
    Log(LogLevel::kWarning, "store_read_failed", {{"error", std::string(status.message())}});
    return;
  }
  for (const JobState state : {JobState::kQueued, JobState::kRunning}) {
    const auto found = counts->find(state);
    const double count = found == counts->end() ? 0 : static_cast<double>(found->second);
    metrics_.Set("sinq_jobs", count, {{"state", ResultLabel(state)}});
  }
  metrics_.Set("sinq_queue_oldest_age_seconds", absl::ToDoubleSeconds(*age),
               {{"priority", "normal"}});
}

void ThreadScheduler::Sweep() {
  const absl::StatusOr<int> deleted = store_.DeleteExpired(options_.retention);
  if (!deleted.ok()) {
    Log(LogLevel::kWarning, "retention_failed",
        {{"error", std::string(deleted.status().message())}});
  } else if (*deleted > 0) {
    Log(LogLevel::kInfo, "jobs_expired", {{"deleted", absl::StrCat(*deleted)}});
  }
  DiscardLeftovers();
}

void ThreadScheduler::DiscardIfOver(const std::string& job_id) {
  const absl::StatusOr<Job> job = store_.Get(job_id);
  if (job.ok() && (job->state == JobState::kCancelled || job->state == JobState::kFailed)) {
    Discard(*job);
  }
}

void ThreadScheduler::DiscardLeftovers() {
  ListQuery query{{JobState::kCancelled, JobState::kFailed}, kMaxPageSize, ""};
  do {
    const absl::StatusOr<ListResult> page = store_.List(query);
    if (!page.ok()) return;  // the next sweep tries again
    for (const Job& job : page->jobs) Discard(job);
    query.page_token = page->next_page_token;
  } while (!query.page_token.empty() && !IsDraining());
}

void ThreadScheduler::Discard(const Job& job) {
  const absl::Status status = runner_.Discard(job);
  if (status.ok()) return;
  Log(LogLevel::kWarning, "discard_failed",
      {{"job", job.id}, {"error", std::string(status.message())}});
}

}  // namespace

std::unique_ptr<Scheduler> MakeScheduler(const SchedulerOptions& options, JobStore& store,
                                         JobRunner& runner, const Clock& clock, Metrics& metrics) {
  return std::make_unique<ThreadScheduler>(options, store, runner, clock, metrics);
}

}  // namespace sinq
