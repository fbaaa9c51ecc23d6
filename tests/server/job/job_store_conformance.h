// What every job store promises. A store's test defines a harness and instantiates
// JobStoreConformance with it; the header is included by one file per test binary.
#ifndef SINQ_TESTS_SERVER_JOB_JOB_STORE_CONFORMANCE_H_
#define SINQ_TESTS_SERVER_JOB_JOB_STORE_CONFORMANCE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "server/base/error.h"
#include "server/base/limits.h"
#include "server/job/job_store.h"
#include "tests/fakes/native_spec.h"

namespace sinq {

// One empty store whose clock the test moves.
class JobStoreHarness {
 public:
  virtual ~JobStoreHarness() = default;
  virtual JobStore& store() = 0;
  virtual void Advance(absl::Duration by) = 0;
  virtual void JumpWall(
      absl::Duration by) = 0;  // of the workers and of people; leases must not care
  virtual void Reopen() = 0;   // as a new process would, after a crash
};
using JobStoreHarnessFactory = std::unique_ptr<JobStoreHarness> (*)();

class JobStoreConformance : public ::testing::TestWithParam<JobStoreHarnessFactory> {
 protected:
  static constexpr absl::Duration kLease = absl::Seconds(30);

  static JobSpec Spec(absl::string_view source = "/in") {
    JobSpec spec = NativeSpec();
    spec.source_uri = std::string(source);
    spec.output_uri = "/out";
    return spec;
  }

  JobStore& store() { return harness_->store(); }

  std::string Create(absl::string_view request_id = "") {
    const absl::StatusOr<CreateResult> result = store().Create(Spec(), request_id);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? result->job.id : "";
  }

  // The next lease, or one with an empty job id.
  Lease Acquire() {
    const auto acquired = store().Acquire("worker", kLease);
    EXPECT_TRUE(acquired.ok()) << acquired.status();
    return acquired.ok() && acquired->has_value() ? (*acquired)->second : Lease();
  }

  Job Get(absl::string_view id) {
    const absl::StatusOr<Job> job = store().Get(id);
    EXPECT_TRUE(job.ok()) << job.status();
    return job.value_or(Job());
  }

  std::vector<JobEvent> Events(absl::string_view id, uint64_t after = 0, int limit = 1000) {
    return store().Events(id, after, limit).value_or(std::vector<JobEvent>());
  }

  void Succeed(const Lease& lease) {
    const absl::Status status = store().Finish(lease, JobState::kSucceeded, {}, {});
    EXPECT_TRUE(status.ok()) << status;
  }

  // Everything that a lease allows must be refused for `lease`, and change nothing.
  void ExpectStale(const Lease& lease) {
    const auto before = store().Events(lease.job_id, 0, 1000);
    for (const absl::Status& status :
         {store().Renew(lease, kLease, {}, "").status(), store().Release(lease),
          store().Retry(lease, absl::ZeroDuration(), {"INTERNAL", {}, "x"}).status(),
          store().CheckLease(lease), store().Finish(lease, JobState::kSucceeded, {}, {}),
          store().Finish(lease, JobState::kFailed, {}, {"INTERNAL", {}, "x"}),
          store().AddFinishedUnits(lease, {{"stale", "{}"}}), store().AddFinishedUnits(lease, {}),
          store().SetPlanDigest(lease, "stale")}) {
      EXPECT_EQ(status.code(), absl::StatusCode::kAborted) << status;
      EXPECT_EQ(GetErrorDetails(status).reason, Reason::kLeaseLost);
    }
    const auto after = store().Events(lease.job_id, 0, 1000);
    ASSERT_EQ(before.ok(), after.ok());
    if (before.ok()) {
      EXPECT_EQ(before->size(), after->size());
    }
  }

  std::unique_ptr<JobStoreHarness> harness_ = GetParam()();
};

TEST_P(JobStoreConformance, CreatesAQueuedJobWithItsFirstEvent) {
  const absl::StatusOr<CreateResult> result = store().Create(Spec(), "req");
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_FALSE(result->replayed);
  const Job job = Get(result->job.id);
  EXPECT_EQ(job.id.size(), 30u);
  EXPECT_EQ(job.id.substr(0, 4), "job-");
  EXPECT_EQ(job.request_id, "req");
  EXPECT_EQ(job.spec, Spec());
  EXPECT_EQ(job.state, JobState::kQueued);
  EXPECT_EQ(job.attempt, 0);
  EXPECT_EQ(job.start_time, absl::InfinitePast());
  EXPECT_EQ(job.end_time, absl::InfinitePast());
  const std::vector<JobEvent> events = Events(job.id);
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].sequence, 1u);
  EXPECT_EQ(events[0].state, JobState::kQueued);
  EXPECT_EQ(job.last_event, 1u);
}

TEST_P(JobStoreConformance, CreateIsIdempotentByRequestId) {
  const std::string id = Create("req");
  const absl::StatusOr<CreateResult> again = store().Create(Spec(), "req");
  ASSERT_TRUE(again.ok());
  EXPECT_TRUE(again->replayed);
  EXPECT_EQ(again->job.id, id);
  const absl::Status other = store().Create(Spec("/other"), "req").status();
  EXPECT_EQ(other.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(GetErrorDetails(other).reason, Reason::kRequestIdReused);
  EXPECT_NE(Create(""), Create(""));
  EXPECT_EQ(store().Create(Spec(), std::string(kMaxRequestIdBytes + 1, 'r')).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_P(JobStoreConformance, IdempotencyOutlivesTheProcessAndTheJobsEnd) {
  const std::string id = Create("req");
  Succeed(Acquire());
  harness_->Reopen();
  const absl::StatusOr<CreateResult> again = store().Create(Spec(), "req");
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->job.id, id);
  EXPECT_EQ(again->job.state, JobState::kSucceeded);
}

TEST_P(JobStoreConformance, ValuesAreNeverPartOfAStatement) {
  const std::string evil = "'; DROP TABLE jobs; --";
  const absl::StatusOr<CreateResult> result = store().Create(Spec(evil), evil);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(Get(result->job.id).spec.source_uri, evil);
  EXPECT_EQ(store().Get(evil).status().code(), absl::StatusCode::kNotFound);
}

TEST_P(JobStoreConformance, UnknownJobsAreNotFound) {
  for (const absl::Status& status :
       {store().Get("job-x").status(), store().Delete("job-x"),
        store().RequestCancel("job-x").status(), store().Events("job-x", 0, 1).status(),
        store().FinishedUnits("job-x").status(), store().PlanDigest("job-x").status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
    EXPECT_EQ(GetErrorDetails(status).reason, Reason::kJobNotFound);
  }
  ExpectStale({"job-x", 1});
}

TEST_P(JobStoreConformance, OldestJobIsLeasedFirstAndOnlyOnce) {
  const std::string first = Create(), second = Create();
  const Lease lease = Acquire();
  EXPECT_EQ(lease.job_id, first);
  EXPECT_EQ(lease.epoch, 1);
  EXPECT_EQ(Acquire().job_id, second);
  EXPECT_EQ(Acquire().job_id, "");
  const Job job = Get(first);
  EXPECT_EQ(job.state, JobState::kRunning);
  EXPECT_EQ(job.attempt, 1);
  EXPECT_NE(job.start_time, absl::InfinitePast());
}

TEST_P(JobStoreConformance, FinishStoresTheResult) {
  const std::string id = Create();
  JobProgress progress{JobStage::kDone, 3, 3, 100, 100, 27, 4.5};
  ASSERT_TRUE(store().Finish(Acquire(), JobState::kSucceeded, progress, {}).ok());
  const Job job = Get(id);
  EXPECT_EQ(job.state, JobState::kSucceeded);
  EXPECT_EQ(job.progress.tensors_done, 3u);
  EXPECT_EQ(job.progress.effective_bits, 4.5);
  EXPECT_NE(job.end_time, absl::InfinitePast());
  EXPECT_EQ(Events(id).back().state, JobState::kSucceeded);
}

TEST_P(JobStoreConformance, AFailureKeepsItsError) {
  const std::string id = Create();
  const JobError error = {"INVALID_ARGUMENT", Reason::kNonFiniteWeight, "Tensor 'a' has a NaN."};
  ASSERT_TRUE(store().Finish(Acquire(), JobState::kFailed, {}, error).ok());
  EXPECT_EQ(Get(id).error.reason, Reason::kNonFiniteWeight);
  EXPECT_EQ(Events(id).back().error.message, error.message);
}

TEST_P(JobStoreConformance, FinishNeedsATerminalState) {
  Create();
  const Lease lease = Acquire();
  for (const JobState state : {JobState::kQueued, JobState::kRunning}) {
    const absl::Status status = store().Finish(lease, state, {}, {});
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(GetErrorDetails(status).reason, Reason::kIllegalTransition);
  }
  EXPECT_TRUE(store().CheckLease(lease).ok());
}

TEST_P(JobStoreConformance, AFinishedJobTakesNothingMore) {
  Create();
  const Lease lease = Acquire();
  Succeed(lease);
  ExpectStale(lease);
}

TEST_P(JobStoreConformance, AnExpiredLeasePassesOnAndItsHolderIsFencedOff) {
  const std::string id = Create();
  const Lease old = Acquire();
  harness_->Advance(kLease - absl::Milliseconds(1));
  EXPECT_EQ(Acquire().job_id, "");
  harness_->Advance(absl::Milliseconds(1));
  const Lease taken = Acquire();
  EXPECT_EQ(taken.job_id, id);
  EXPECT_GT(taken.epoch, old.epoch);
  ExpectStale(old);
  EXPECT_TRUE(store().CheckLease(taken).ok());
  EXPECT_TRUE(store().FinishedUnits(id)->empty());
  EXPECT_EQ(*store().PlanDigest(id), "");
  Succeed(taken);
  ExpectStale(old);
  EXPECT_EQ(Get(id).state, JobState::kSucceeded);
}

TEST_P(JobStoreConformance, RenewalKeepsTheLease) {
  Create();
  const Lease lease = Acquire();
  for (int i = 0; i < 5; ++i) {
    harness_->Advance(kLease * 0.9);
    ASSERT_TRUE(store().Renew(lease, kLease, {}, "").ok());
  }
  EXPECT_EQ(Acquire().job_id, "");
}

TEST_P(JobStoreConformance, CheckLeaseCoversThePublishing) {
  Create();
  const Lease lease = Acquire();
  harness_->Advance(kLease * 0.9);
  ASSERT_TRUE(store().CheckLease(lease).ok());
  harness_->Advance(kLease * 0.9);
  EXPECT_EQ(Acquire().job_id, "");
}

TEST_P(JobStoreConformance, AWallClockJumpMovesNoLease) {
  Create();
  const Lease lease = Acquire();
  harness_->JumpWall(absl::Hours(1));
  EXPECT_EQ(Acquire().job_id, "");
  harness_->JumpWall(absl::Hours(-2));
  EXPECT_EQ(Acquire().job_id, "");
  EXPECT_TRUE(store().Renew(lease, kLease, {}, "").ok());
  harness_->Advance(kLease);
  EXPECT_NE(Acquire().job_id, "");
}

TEST_P(JobStoreConformance, AttemptsAreBounded) {
  const std::string id = Create();
  for (int i = 0; i < kMaxAttempts; ++i) {
    ASSERT_EQ(Acquire().job_id, id);
    harness_->Advance(kLease);
  }
  EXPECT_EQ(Acquire().job_id, "");
  const Job job = Get(id);
  EXPECT_EQ(job.state, JobState::kFailed);
  EXPECT_EQ(job.attempt, kMaxAttempts);
  EXPECT_NE(job.error.message, "");
}

TEST_P(JobStoreConformance, AttemptsThatFinishTensorsAreNotHeldAgainstTheJob) {
  const std::string id = Create();
  for (int i = 0; i < 3 * kMaxAttempts; ++i) {
    const Lease lease = Acquire();
    ASSERT_EQ(lease.job_id, id);
    ASSERT_TRUE(store().AddFinishedUnits(lease, {{absl::StrCat("t", i), "{}"}}).ok());
    harness_->Advance(kLease);
  }
  EXPECT_EQ(Get(id).state, JobState::kRunning);
}

TEST_P(JobStoreConformance, ReleaseDoesNotCountTheAttempt) {
  const std::string id = Create();
  int64_t epoch = 0;
  for (int i = 0; i < 2 * kMaxAttempts; ++i) {
    const Lease lease = Acquire();
    ASSERT_EQ(lease.job_id, id);
    EXPECT_GT(lease.epoch, epoch);
    epoch = lease.epoch;
    ASSERT_TRUE(store().Release(lease).ok());
    ExpectStale(lease);
  }
  EXPECT_EQ(Get(id).state, JobState::kQueued);
  EXPECT_EQ(Get(id).attempt, 0);
}

TEST_P(JobStoreConformance, RetryWaitsAndGivesUpWithTheLastError) {
  const std::string id = Create();
  const JobError error = {"UNAVAILABLE", Reason::kIoError, "The disk said no."};
  for (int i = 1; i <= kMaxAttempts; ++i) {
    const Lease lease = Acquire();
    ASSERT_EQ(lease.job_id, id) << i;
    const absl::StatusOr<Job> job = store().Retry(lease, absl::Seconds(10), error);
    ASSERT_TRUE(job.ok()) << job.status();
    EXPECT_EQ(job->state, i < kMaxAttempts ? JobState::kQueued : JobState::kFailed);
    harness_->Advance(absl::Seconds(9));
    EXPECT_EQ(Acquire().job_id, "");
    harness_->Advance(absl::Seconds(1));
  }
  EXPECT_EQ(Get(id).error.message, error.message);
  EXPECT_EQ(Get(id).error.reason, Reason::kIoError);
}

TEST_P(JobStoreConformance, ARestartFreesRunningJobsAtOnceAndKeepsTheirUnits) {
  const std::string id = Create();
  const Lease old = Acquire();
  ASSERT_TRUE(store().AddFinishedUnits(old, {{"b", "{\"x\":1}"}, {"a", "{}"}}).ok());
  ASSERT_TRUE(store().SetPlanDigest(old, "digest").ok());
  harness_->Reopen();
  EXPECT_EQ(Get(id).state, JobState::kQueued);
  const Lease lease = Acquire();
  EXPECT_EQ(lease.job_id, id);
  EXPECT_GT(lease.epoch, old.epoch);
  ExpectStale(old);
  const auto units = store().FinishedUnits(id);
  ASSERT_TRUE(units.ok());
  ASSERT_EQ(units->size(), 2u);
  EXPECT_EQ((*units)[0].unit, "a");
  EXPECT_EQ((*units)[1].record, "{\"x\":1}");
  EXPECT_EQ(*store().PlanDigest(id), "digest");
}

TEST_P(JobStoreConformance, UnitsMayBeRecordedTwice) {
  const std::string id = Create();
  const Lease lease = Acquire();
  ASSERT_TRUE(store().AddFinishedUnits(lease, {{"a", "1"}}).ok());
  ASSERT_TRUE(store().AddFinishedUnits(lease, {{"a", "2"}, {"b", "1"}}).ok());
  ASSERT_TRUE(store().AddFinishedUnits(lease, {}).ok());
  EXPECT_EQ(store().FinishedUnits(id)->size(), 2u);
  EXPECT_EQ(store().FinishedUnits(id)->front().record, "2");
}

TEST_P(JobStoreConformance, ThePlanMayNotChangeBetweenAttempts) {
  Create();
  const Lease lease = Acquire();
  ASSERT_TRUE(store().SetPlanDigest(lease, "one").ok());
  EXPECT_TRUE(store().SetPlanDigest(lease, "one").ok());
  EXPECT_EQ(store().SetPlanDigest(lease, "two").code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(*store().PlanDigest(lease.job_id), "one");
}

TEST_P(JobStoreConformance, CancelQueuedRunningAndFinished) {
  const std::string queued = Create();
  const absl::StatusOr<Job> cancelled = store().RequestCancel(queued);
  ASSERT_TRUE(cancelled.ok());
  EXPECT_EQ(cancelled->state, JobState::kCancelled);
  EXPECT_EQ(Acquire().job_id, "");

  const std::string running = Create();
  const Lease lease = Acquire();
  EXPECT_FALSE(store().Renew(lease, kLease, {}, "")->cancel_requested);
  EXPECT_TRUE(store().RequestCancel(running)->cancel_requested);
  EXPECT_TRUE(store().RequestCancel(running)->cancel_requested);
  EXPECT_EQ(Get(running).state, JobState::kRunning);
  EXPECT_TRUE(store().Renew(lease, kLease, {}, "")->cancel_requested);
  ASSERT_TRUE(store().Finish(lease, JobState::kCancelled, {}, {}).ok());
  EXPECT_EQ(store().RequestCancel(running)->state, JobState::kCancelled);
  EXPECT_FALSE(Get(running).cancel_requested);
}

TEST_P(JobStoreConformance, ACancelRequestOutlivesItsWorker) {
  const std::string id = Create();
  Acquire();
  ASSERT_TRUE(store().RequestCancel(id).ok());
  harness_->Reopen();
  const auto acquired = store().Acquire("worker", kLease);
  ASSERT_TRUE(acquired.ok() && acquired->has_value());
  EXPECT_TRUE((*acquired)->first.cancel_requested);
}

TEST_P(JobStoreConformance, OnlyFinishedJobsAreDeleted) {
  const std::string id = Create("req");
  EXPECT_EQ(store().Delete(id).code(), absl::StatusCode::kFailedPrecondition);
  const Lease lease = Acquire();
  ASSERT_TRUE(store().AddFinishedUnits(lease, {{"a", "{}"}}).ok());
  EXPECT_EQ(store().Delete(id).code(), absl::StatusCode::kFailedPrecondition);
  Succeed(lease);
  ASSERT_TRUE(store().Delete(id).ok());
  EXPECT_EQ(store().Get(id).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(store().Events(id, 0, 10).status().code(), absl::StatusCode::kNotFound);
  EXPECT_NE(Create("req"), id);
}

TEST_P(JobStoreConformance, RetentionDeletesOldFinishedJobsOnly) {
  const std::string old = Create();
  Succeed(Acquire());
  harness_->Advance(absl::Hours(2));
  const std::string fresh = Create();
  Succeed(Acquire());
  const std::string waiting = Create();
  harness_->Advance(absl::Hours(1));
  const absl::StatusOr<int> deleted = store().DeleteExpired(absl::Hours(2));
  ASSERT_TRUE(deleted.ok()) << deleted.status();
  EXPECT_EQ(*deleted, 1);
  EXPECT_FALSE(store().Get(old).ok());
  EXPECT_TRUE(store().Get(fresh).ok());
  EXPECT_TRUE(store().Get(waiting).ok());
}

TEST_P(JobStoreConformance, ListsNewestFirstInPages) {
  std::vector<std::string> ids;
  for (int i = 0; i < 7; ++i) ids.push_back(Create());
  ListQuery query;
  query.page_size = 3;
  std::vector<std::string> seen;
  do {
    const absl::StatusOr<ListResult> page = store().List(query);
    ASSERT_TRUE(page.ok()) << page.status();
    EXPECT_LE(page->jobs.size(), 3u);
    for (const Job& job : page->jobs) seen.push_back(job.id);
    query.page_token = page->next_page_token;
    Create();  // newer jobs do not disturb a listing that goes on
  } while (!query.page_token.empty());
  EXPECT_EQ(seen, std::vector<std::string>(ids.rbegin(), ids.rend()));
}

TEST_P(JobStoreConformance, ListFiltersByStateAndKnowsItsTokens) {
  const std::string done = Create();
  Succeed(Acquire());
  const std::string running = Create();
  Acquire();
  const std::string queued = Create();
  ListQuery query;
  query.states = {JobState::kSucceeded, JobState::kQueued};
  query.page_size = 1;
  const absl::StatusOr<ListResult> first = store().List(query);
  ASSERT_TRUE(first.ok());
  ASSERT_EQ(first->jobs.size(), 1u);
  EXPECT_EQ(first->jobs[0].id, queued);
  query.page_token = first->next_page_token;
  const absl::StatusOr<ListResult> second = store().List(query);
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(second->jobs[0].id, done);
  EXPECT_EQ(second->next_page_token, "");
  query.states = {JobState::kQueued};
  EXPECT_EQ(store().List(query).status().code(), absl::StatusCode::kInvalidArgument);
  query.page_token = "nonsense";
  EXPECT_EQ(store().List(query).status().code(), absl::StatusCode::kInvalidArgument);
  query.page_token = "";
  query.page_size = -1;
  EXPECT_EQ(store().List(query).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(JobStoreConformance, ProgressEventsAreThinned) {
  const std::string id = Create();
  const Lease lease = Acquire();
  JobProgress progress{JobStage::kQuantize, 0, 100, 0, 1000, 0, 0};
  for (int i = 1; i <= 40; ++i) {
    harness_->Advance(absl::Milliseconds(250));
    progress.tensors_done = static_cast<uint64_t>(i);
    ASSERT_TRUE(store().Renew(lease, kLease, progress, absl::StrCat("t", i)).ok());
  }
  EXPECT_EQ(Get(id).progress.tensors_done, 40u);
  const std::vector<JobEvent> events = Events(id);
  EXPECT_GE(events.size(), 2u + 9);
  EXPECT_LE(events.size(), 2u + 11);
  for (size_t i = 0; i < events.size(); ++i) EXPECT_EQ(events[i].sequence, i + 1);
  EXPECT_EQ(events[2].kind, EventKind::kProgress);
  EXPECT_EQ(events[2].tensor, "t1");
  // Nothing new to say: no event, however long it takes.
  harness_->Advance(absl::Seconds(20));
  const uint64_t last = store().Renew(lease, kLease, progress, "")->last_event;
  harness_->Advance(absl::Seconds(20));
  EXPECT_EQ(store().Renew(lease, kLease, progress, "")->last_event, last);
}

TEST_P(JobStoreConformance, EventsReplayFromAnyNumberAlsoAfterARestart) {
  const std::string id = Create();
  ASSERT_TRUE(store().Release(Acquire()).ok());
  Succeed(Acquire());
  harness_->Reopen();
  const std::vector<JobEvent> all = Events(id);
  ASSERT_EQ(all.size(), 5u);
  for (uint64_t after = 0; after <= 5; ++after) {
    const std::vector<JobEvent> rest = Events(id, after);
    ASSERT_EQ(rest.size(), 5 - after);
    if (!rest.empty()) {
      EXPECT_EQ(rest[0].sequence, after + 1);
    }
  }
  EXPECT_EQ(Events(id, 1, 2).size(), 2u);
  EXPECT_TRUE(Events(id, ~uint64_t{0}).empty());
}

TEST_P(JobStoreConformance, CountsAndAges) {
  EXPECT_EQ(*store().OldestQueuedAge(), absl::ZeroDuration());
  Create();
  Create();
  Acquire();
  harness_->Advance(absl::Seconds(12));
  EXPECT_EQ(*store().OldestQueuedAge(), absl::Seconds(12));
  const auto counts = store().CountByState();
  ASSERT_TRUE(counts.ok());
  EXPECT_EQ(counts->at(JobState::kQueued), 1u);
  EXPECT_EQ(counts->at(JobState::kRunning), 1u);
  EXPECT_EQ(counts->at(JobState::kFailed), 0u);
}

TEST_P(JobStoreConformance, WaitForEventReturnsOnAChangeOnly) {
  const std::string id = Create();
  const absl::Time start = absl::Now();
  store().WaitForEvent(id, 0, absl::Seconds(30));       // there is one already
  store().WaitForEvent("job-x", 0, absl::Seconds(30));  // nothing to wait for
  EXPECT_LT(absl::Now() - start, absl::Seconds(10));
  store().WaitForEvent(id, 1, absl::Milliseconds(50));
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(50));
  std::thread waiter([&] { store().WaitForEvent(id, 1, absl::Seconds(60)); });
  ASSERT_TRUE(store().RequestCancel(id).ok());
  waiter.join();
  EXPECT_LT(absl::Now() - start, absl::Seconds(30));
}

TEST_P(JobStoreConformance, WaitForWorkReturnsWhenThereIsSome) {
  const absl::Time start = absl::Now();
  store().WaitForWork(absl::Milliseconds(50));
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(50));
  std::thread waiter([&] { store().WaitForWork(absl::Seconds(60)); });
  Create();
  waiter.join();
  store().WaitForWork(absl::Seconds(60));
  EXPECT_LT(absl::Now() - start, absl::Seconds(30));
}

TEST_P(JobStoreConformance, ConcurrentWorkersNeverShareAJob) {
  constexpr int kJobs = 40, kThreads = 4;
  for (int i = 0; i < kJobs; ++i) Create();
  std::vector<std::vector<std::string>> taken(kThreads);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (Lease lease = Acquire(); !lease.job_id.empty(); lease = Acquire()) {
        taken[t].push_back(lease.job_id);
        Succeed(lease);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  size_t total = 0;
  for (const auto& ids : taken) total += ids.size();
  EXPECT_EQ(total, static_cast<size_t>(kJobs));
  EXPECT_EQ(store().CountByState()->at(JobState::kSucceeded), static_cast<uint64_t>(kJobs));
}

}  // namespace sinq

#endif  // SINQ_TESTS_SERVER_JOB_JOB_STORE_CONFORMANCE_H_
