#include "server/scheduler/scheduler.h"

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "server/base/error.h"
#include "server/base/limits.h"
#include "server/base/mutex.h"
#include "tests/fakes/fake_clock.h"
#include "tests/fakes/fake_metrics.h"
#include "tests/fakes/native_spec.h"
#include "tests/fakes/temp_dir.h"

namespace sinq {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(20);  // of the test, not of the code

bool Eventually(const std::function<bool()>& condition) {
  for (const absl::Time give_up = absl::Now() + kPatience; absl::Now() < give_up;) {
    if (condition()) return true;
    absl::SleepFor(absl::Milliseconds(5));
  }
  return condition();
}

struct Attempt {
  const Job& job;
  const Lease& lease;
  const std::atomic<StopReason>& stop;
  absl::FunctionRef<void(const JobProgress&, absl::string_view)> report;

  // Works until asked to stop.
  StopReason AwaitStop() const {
    for (const absl::Time give_up = absl::Now() + kPatience;
         stop.load() == StopReason::kNone && absl::Now() < give_up;) {
      absl::SleepFor(absl::Milliseconds(2));
    }
    return stop.load();
  }
};

class FakeRunner final : public JobRunner {
 public:
  using Body = std::function<absl::Status(const Attempt&)>;
  explicit FakeRunner(Body body) : body_(std::move(body)) {}
  RunResult Run(const Job& job, const Lease& lease, const std::atomic<StopReason>& stop,
                absl::FunctionRef<void(const JobProgress&, absl::string_view)> report) override {
    ++runs;
    return {body_({job, lease, stop, report}), job.progress};
  }
  absl::Status Discard(const Job& job) override {
    MutexLock lock(&mutex_);
    discarded_.push_back(job.id);
    return absl::OkStatus();
  }
  bool Discarded(const std::string& job_id) {
    MutexLock lock(&mutex_);
    return std::find(discarded_.begin(), discarded_.end(), job_id) != discarded_.end();
  }
  std::atomic<int> runs{0};

 private:
  const Body body_;
  Mutex mutex_;
  std::vector<std::string> discarded_ ABSL_GUARDED_BY(mutex_);
};

class SchedulerTest : public ::testing::Test {
 protected:
  SchedulerTest() {
    auto store = OpenSqliteJobStore(dir_.Join("jobs.db"), clock_);
    EXPECT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
    options_.worker_name = "test";
    options_.heartbeat_interval = absl::Milliseconds(20);
  }

  void Start(FakeRunner::Body body) {
    runner_ = std::make_unique<FakeRunner>(std::move(body));
    scheduler_ = MakeScheduler(options_, *store_, *runner_, clock_, metrics_);
    scheduler_->Start();
  }

  std::string Submit() {
    JobSpec spec = NativeSpec();
    spec.source_uri = "/in";
    spec.output_uri = "/out";
    return store_->Create(spec, "").value().job.id;
  }

  JobState State(const std::string& id) { return store_->Get(id).value().state; }
  bool Reaches(const std::string& id, JobState state) {
    return Eventually([&] { return State(id) == state; });
  }

  TempDir dir_;
  FakeClock clock_;
  FakeMetrics metrics_;
  SchedulerOptions options_;
  std::unique_ptr<JobStore> store_;
  std::unique_ptr<FakeRunner> runner_;
  std::unique_ptr<Scheduler> scheduler_;
};

TEST_F(SchedulerTest, RunsJobsOneAfterAnother) {
  Start([](const Attempt&) { return absl::OkStatus(); });
  const std::string first = Submit(), second = Submit();
  EXPECT_TRUE(Reaches(first, JobState::kSucceeded));
  EXPECT_TRUE(Reaches(second, JobState::kSucceeded));
  scheduler_->Drain(absl::ZeroDuration());
  EXPECT_EQ(runner_->runs, 2);
  EXPECT_EQ(metrics_.Get("sinq_queue_wait_seconds", {{"priority", "normal"}}), 2);
  EXPECT_EQ(
      metrics_.Get("sinq_job_duration_seconds", {{"method", "sinq"}, {"result", "succeeded"}}), 2);
  EXPECT_EQ(metrics_.Get("sinq_job_attempts", {{"result", "succeeded"}}), 2);
}

TEST_F(SchedulerTest, BadInputFailsAtOnce) {
  Start([](const Attempt&) {
    return MakeError(absl::StatusCode::kInvalidArgument, Reason::kNonFiniteWeight, "A NaN.");
  });
  const std::string id = Submit();
  EXPECT_TRUE(Reaches(id, JobState::kFailed));
  EXPECT_EQ(runner_->runs, 1);
  const Job job = *store_->Get(id);
  EXPECT_EQ(job.error.code, "INVALID_ARGUMENT");
  EXPECT_EQ(job.error.reason, Reason::kNonFiniteWeight);
}

TEST_F(SchedulerTest, WhatMayPassIsRetriedWithDelayUpToTheBound) {
  Start([](const Attempt&) { return ErrnoToStatus(EIO, "Cannot read the source"); });
  const std::string id = Submit();
  for (int attempt = 1; attempt < kMaxAttempts; ++attempt) {
    ASSERT_TRUE(Eventually([&] { return runner_->runs == attempt; }));
    ASSERT_TRUE(Reaches(id, JobState::kQueued));
    clock_.Advance(absl::Minutes(1));
  }
  EXPECT_TRUE(Reaches(id, JobState::kFailed));
  EXPECT_EQ(runner_->runs, kMaxAttempts);
  EXPECT_EQ(store_->Get(id)->error.reason, Reason::kIoError);
  EXPECT_TRUE(Eventually([&] {
    return metrics_.Get("sinq_job_attempts", {{"result", "failed"}}) == 1;
  }));
}

TEST_F(SchedulerTest, ARetriedJobWaits) {
  Start([](const Attempt&) { return absl::UnavailableError("x"); });
  const std::string id = Submit();
  ASSERT_TRUE(Eventually([&] { return runner_->runs == 1 && State(id) == JobState::kQueued; }));
  absl::SleepFor(absl::Milliseconds(100));  // the store's clock stands still
  EXPECT_EQ(runner_->runs, 1);
}

TEST_F(SchedulerTest, AnExceptionIsAFailureOfTheJobOnly) {
  Start([](const Attempt& attempt) -> absl::Status {
    if (attempt.job.attempt == 1) throw std::runtime_error("boom");
    throw std::bad_alloc();
  });
  const std::string id = Submit();
  ASSERT_TRUE(Eventually([&] { return runner_->runs == 1 && State(id) == JobState::kQueued; }));
  clock_.Advance(absl::Minutes(1));
  EXPECT_TRUE(Reaches(id, JobState::kFailed));
  EXPECT_EQ(store_->Get(id)->error.reason, Reason::kMemoryBudgetTooSmall);
}

TEST_F(SchedulerTest, CancelTakesEffectAtOnceWhenWoken) {
  options_.heartbeat_interval = absl::Hours(1);
  Start([](const Attempt& attempt) {
    EXPECT_EQ(attempt.AwaitStop(), StopReason::kCancel);
    return absl::CancelledError("x");
  });
  const std::string id = Submit();
  ASSERT_TRUE(Reaches(id, JobState::kRunning));
  ASSERT_TRUE(Eventually([&] { return runner_->runs == 1; }));
  ASSERT_TRUE(store_->RequestCancel(id).ok());
  scheduler_->Wake(id);
  EXPECT_TRUE(Reaches(id, JobState::kCancelled));
}

TEST_F(SchedulerTest, CancelIsSeenByTheHeartbeat) {
  Start([](const Attempt& attempt) {
    EXPECT_EQ(attempt.AwaitStop(), StopReason::kCancel);
    return absl::CancelledError("x");
  });
  const std::string id = Submit();
  ASSERT_TRUE(Reaches(id, JobState::kRunning));
  ASSERT_TRUE(store_->RequestCancel(id).ok());
  EXPECT_TRUE(Eventually([&] {
    clock_.Advance(absl::Milliseconds(20));
    return State(id) == JobState::kCancelled;
  }));
}

TEST_F(SchedulerTest, ACancelledJobOfADeadWorkerIsOnlyCleanedUp) {
  const std::string id = Submit();
  ASSERT_TRUE(store_->Acquire("dead", absl::Seconds(1)).value().has_value());
  ASSERT_TRUE(store_->RequestCancel(id).ok());
  clock_.Advance(absl::Seconds(1));
  Start([](const Attempt& attempt) {
    EXPECT_EQ(attempt.stop.load(), StopReason::kCancel);
    return absl::CancelledError("x");
  });
  EXPECT_TRUE(Reaches(id, JobState::kCancelled));
}

TEST_F(SchedulerTest, ALostLeaseStopsTheRunnerAndChangesNothing) {
  options_.lease_duration = absl::Seconds(30);
  options_.heartbeat_interval = absl::Hours(1);  // a worker that was paused
  std::atomic<bool> stopped{false};
  Start([&](const Attempt& attempt) {
    EXPECT_EQ(attempt.AwaitStop(), StopReason::kLeaseLost);
    stopped = true;
    return absl::CancelledError("x");
  });
  const std::string id = Submit();
  ASSERT_TRUE(Eventually([&] { return runner_->runs == 1; }));
  clock_.Advance(absl::Seconds(30));
  const auto other = store_->Acquire("other", absl::Hours(1));
  ASSERT_TRUE(other.ok() && other->has_value());
  scheduler_->Wake(id);
  EXPECT_TRUE(Eventually([&] { return stopped.load(); }));
  scheduler_->Drain(absl::ZeroDuration());
  EXPECT_EQ(metrics_.Get("sinq_leases_lost_total"), 1);
  EXPECT_EQ(State(id), JobState::kRunning);
  EXPECT_TRUE(store_->CheckLease((*other)->second).ok());
}

TEST_F(SchedulerTest, AStaleCompletionIsRejectedAndCounted) {
  options_.lease_duration = absl::Seconds(30);
  options_.heartbeat_interval = absl::Hours(1);
  std::atomic<bool> go{false};
  Start([&](const Attempt&) {
    Eventually([&] { return go.load(); });
    return absl::OkStatus();
  });
  const std::string id = Submit();
  ASSERT_TRUE(Eventually([&] { return runner_->runs == 1; }));
  clock_.Advance(absl::Seconds(30));
  const auto other = store_->Acquire("other", absl::Hours(1));
  ASSERT_TRUE(other.ok() && other->has_value());
  go = true;
  EXPECT_TRUE(
      Eventually([&] { return metrics_.Get("sinq_stale_completions_rejected_total") == 1; }));
  EXPECT_EQ(State(id), JobState::kRunning);
}

TEST_F(SchedulerTest, HeartbeatsRenewAndCarryProgress) {
  std::atomic<bool> go{false};
  Start([&](const Attempt& attempt) {
    attempt.report({JobStage::kQuantize, 5, 9, 50, 90, 0, 0}, "t5");
    Eventually([&] { return go.load(); });
    return absl::OkStatus();
  });
  const std::string id = Submit();
  ASSERT_TRUE(Reaches(id, JobState::kRunning));
  ASSERT_TRUE(Eventually([&] { return runner_->runs == 1; }));
  EXPECT_TRUE(Eventually([&] {
    clock_.Advance(absl::Seconds(1));
    return store_->Get(id)->progress.tensors_done == 5 &&
           metrics_.Get("sinq_lease_renewals_total") >= 2;
  }));
  go = true;
  EXPECT_TRUE(Reaches(id, JobState::kSucceeded));
}

TEST_F(SchedulerTest, DrainLetsAJobFinishWithinTheGraceTime) {
  Start([](const Attempt& attempt) {
    absl::SleepFor(absl::Milliseconds(100));
    EXPECT_EQ(attempt.stop.load(), StopReason::kNone);
    return absl::OkStatus();
  });
  const std::string running = Submit();
  ASSERT_TRUE(Eventually([&] { return runner_->runs == 1; }));
  const std::string queued = Submit();
  scheduler_->Drain(kPatience);
  EXPECT_EQ(State(running), JobState::kSucceeded);
  EXPECT_EQ(State(queued), JobState::kQueued);
  EXPECT_EQ(runner_->runs, 1);
}

TEST_F(SchedulerTest, DrainReleasesWhatDoesNotFinish) {
  Start([](const Attempt& attempt) {
    EXPECT_EQ(attempt.AwaitStop(), StopReason::kDrain);
    return absl::CancelledError("x");
  });
  const std::string id = Submit();
  ASSERT_TRUE(Eventually([&] { return runner_->runs == 1; }));
  const absl::Time start = absl::Now();
  scheduler_->Drain(absl::Milliseconds(50));
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
  const Job job = *store_->Get(id);
  EXPECT_EQ(job.state, JobState::kQueued);
  EXPECT_EQ(job.attempt, 0);
  EXPECT_EQ(metrics_.Get("sinq_jobs_interrupted_total", {{"how", "checkpointed"}}), 1);
}

TEST_F(SchedulerTest, DrainOfAnIdleSchedulerIsQuick) {
  Start([](const Attempt&) { return absl::OkStatus(); });
  const absl::Time start = absl::Now();
  scheduler_->Drain(absl::Minutes(10));
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
}

TEST_F(SchedulerTest, SeveralJobsRunAtOnceIfAllowed) {
  options_.concurrent_jobs = 3;
  std::atomic<int> inside{0};
  Start([&](const Attempt&) {
    ++inside;
    const bool together = Eventually([&] { return inside == 3; });
    return together ? absl::OkStatus() : absl::InvalidArgumentError("alone");
  });
  for (const std::string& id : {Submit(), Submit(), Submit()}) {
    EXPECT_TRUE(Reaches(id, JobState::kSucceeded));
  }
}

TEST_F(SchedulerTest, OldJobsAreSweptAtTheStart) {
  options_.retention = absl::Hours(1);
  const std::string id = Submit();
  ASSERT_TRUE(store_->RequestCancel(id).ok());
  clock_.Advance(absl::Hours(2));
  Start([](const Attempt&) { return absl::OkStatus(); });
  EXPECT_TRUE(Eventually([&] { return absl::IsNotFound(store_->Get(id).status()); }));
}

TEST_F(SchedulerTest, WhatACancelledWaitingJobLeftIsDiscarded) {
  const std::string earlier = Submit();  // cancelled before this scheduler exists
  ASSERT_TRUE(store_->RequestCancel(earlier).ok());
  std::atomic<bool> go = false;
  Start([&](const Attempt&) {
    Eventually([&] { return go.load(); });
    return absl::OkStatus();
  });
  EXPECT_TRUE(Eventually([&] { return runner_->Discarded(earlier); }));
  const std::string busy = Submit();
  ASSERT_TRUE(Reaches(busy, JobState::kRunning));
  const std::string waiting = Submit();
  ASSERT_TRUE(store_->RequestCancel(waiting).ok());
  scheduler_->Wake(waiting);
  EXPECT_TRUE(Eventually([&] { return runner_->Discarded(waiting); }));
  EXPECT_FALSE(runner_->Discarded(busy));
  go = true;
  EXPECT_TRUE(Reaches(busy, JobState::kSucceeded));
}

}  // namespace
}  // namespace sinq
