// The durable queue. One interface, one conformance suite
// (tests/server/job/job_store_conformance.h).
#ifndef SINQ_SERVER_JOB_JOB_STORE_H_
#define SINQ_SERVER_JOB_JOB_STORE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/base/clock.h"
#include "server/job/job.h"

namespace sinq {

struct CreateResult {
  Job job;
  bool replayed = false;  // this request id and body existed already
};

struct ListQuery {
  std::vector<JobState> states;  // empty: all
  int page_size = 100;
  std::string page_token;  // opaque; InvalidArgument if not one of ours
};
struct ListResult {
  std::vector<Job> jobs;        // newest first
  std::string next_page_token;  // empty: no more
};

// The right to work on one job. Every call that changes a running job carries it; a stale epoch
// gets Aborted/kLeaseLost.
struct Lease {
  std::string job_id;
  int64_t epoch = 0;
};

// What a finished tensor leaves behind, so that a resumed job does not do it again. `record` is
// opaque to the store (JSON).
struct FinishedUnit {
  std::string unit;  // source tensor name
  std::string record;
};

// Thread-safe. All methods are durable when they return (SQLite: WAL, synchronous=FULL).
class JobStore {
 public:
  virtual ~JobStore() = default;
  // Idempotent by request id: the same id and spec returns the old job; another spec is
  // AlreadyExists/kRequestIdReused. An empty request id gets a fresh one.
  // ResourceExhausted/kQueueFull beyond kMaxQueuedJobs.
  virtual absl::StatusOr<CreateResult> Create(const JobSpec& spec,
                                              absl::string_view request_id) = 0;
  // The job that an earlier Create with this request id and spec made, marked replayed; NotFound if
  // there is none, AlreadyExists/kRequestIdReused for another spec.
  virtual absl::StatusOr<CreateResult> FindRequest(const JobSpec& spec,
                                                   absl::string_view request_id) = 0;
  virtual absl::StatusOr<Job> Get(absl::string_view job_id) = 0;  // NotFound/kJobNotFound
  virtual absl::StatusOr<ListResult> List(const ListQuery& query) = 0;
  virtual absl::Status Delete(
      absl::string_view job_id) = 0;  // terminal jobs only; FailedPrecondition otherwise
  // QUEUED becomes CANCELLED; RUNNING gets cancel_requested; terminal: unchanged. Returns the job.
  virtual absl::StatusOr<Job> RequestCancel(absl::string_view job_id) = 0;

  // Oldest QUEUED job, or a RUNNING one whose lease ran out; nullopt if none. Bumps the epoch and
  // attempt; a job whose attempts are used up (kMaxAttempts) becomes FAILED instead. Lease times
  // are boot id + SinceBoot: a wall clock jump moves no lease.
  virtual absl::StatusOr<std::optional<std::pair<Job, Lease>>> Acquire(
      absl::string_view worker, absl::Duration lease_duration) = 0;
  // Heartbeat with progress. Returns the job (look at cancel_requested).
  virtual absl::StatusOr<Job> Renew(const Lease& lease, absl::Duration lease_duration,
                                    const JobProgress& progress, absl::string_view tensor) = 0;
  // Back to QUEUED without counting the attempt (drain).
  virtual absl::Status Release(const Lease& lease) = 0;
  // Back to QUEUED after a failure that may pass; not leasable before `delay`. FAILED with `error`
  // if the attempts are used up. An attempt that left finished units behind was no failure of the
  // job and starts the count again.
  virtual absl::StatusOr<Job> Retry(const Lease& lease, absl::Duration delay,
                                    const JobError& error) = 0;
  // Fails with Aborted unless the lease is still ours: called right before output is published.
  virtual absl::Status CheckLease(const Lease& lease) = 0;
  virtual absl::Status Finish(const Lease& lease, JobState state, const JobProgress& progress,
                              const JobError& error) = 0;

  virtual absl::Status AddFinishedUnits(const Lease& lease,
                                        const std::vector<FinishedUnit>& units) = 0;
  virtual absl::StatusOr<std::vector<FinishedUnit>> FinishedUnits(absl::string_view job_id) = 0;
  // What all attempts must agree in (source, plan and arithmetic), set by the first one; later ones
  // must find the same.
  virtual absl::Status SetPlanDigest(const Lease& lease, absl::string_view digest) = 0;
  virtual absl::StatusOr<std::string> PlanDigest(absl::string_view job_id) = 0;  // empty if unset

  // Events with sequence > after, at most `limit`, in order.
  virtual absl::StatusOr<std::vector<JobEvent>> Events(absl::string_view job_id, uint64_t after,
                                                       int limit) = 0;
  // Blocks until anything of this job changed after `after`, or until `timeout`.
  virtual void WaitForEvent(absl::string_view job_id, uint64_t after, absl::Duration timeout) = 0;
  // Wakes up when a job may be waiting for a worker, or after `timeout`.
  virtual void WaitForWork(absl::Duration timeout) = 0;
  virtual absl::StatusOr<std::map<JobState, uint64_t>> CountByState() = 0;
  virtual absl::StatusOr<absl::Duration> OldestQueuedAge() = 0;
  // Deletes terminal jobs that ended longer ago than `retention`; returns how many.
  virtual absl::StatusOr<int> DeleteExpired(absl::Duration retention) = 0;
};

// `path`: the database file, created with its schema if missing; FailedPrecondition on an unknown
// schema version. Jobs left RUNNING by a dead process of this machine are leasable as soon as a new
// process opens the store exclusively.
absl::StatusOr<std::unique_ptr<JobStore>> OpenSqliteJobStore(const std::string& path,
                                                             const Clock& clock);

}  // namespace sinq

#endif  // SINQ_SERVER_JOB_JOB_STORE_H_
