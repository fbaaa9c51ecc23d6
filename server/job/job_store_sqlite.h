// The embedded store. Invariants, checked by tests/server/job:
//  1. One process: DataDirLock is held while the store is open. A job RUNNING at open has no owner.
//  2. One writer: every change is one BEGIN IMMEDIATE transaction on writer_, under writer_mutex_.
//     Its events are inserted by the same transaction.
//  3. Fencing: a row is saved only if its state and lease epoch are those that were read, and a
//     lease finds its row only while the job is RUNNING with that epoch.
//  4. Order: a wake-up is signalled after the commit that it announces.
#ifndef SINQ_SERVER_JOB_JOB_STORE_SQLITE_H_
#define SINQ_SERVER_JOB_JOB_STORE_SQLITE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "server/base/clock.h"
#include "server/base/mutex.h"
#include "server/job/data_dir_lock.h"
#include "server/job/job_store.h"
#include "server/job/sqlite_connection.h"

namespace sinq {

// Thread-safe. Reads have a connection of their own and do not wait for a writer's disk.
class SqliteJobStore final : public JobStore {
 public:
  static absl::StatusOr<std::unique_ptr<JobStore>> Open(const std::string& path,
                                                        const Clock& clock);

  absl::StatusOr<CreateResult> Create(const JobSpec& spec, absl::string_view request_id) override;
  absl::StatusOr<CreateResult> FindRequest(const JobSpec& spec,
                                           absl::string_view request_id) override;
  absl::StatusOr<Job> Get(absl::string_view job_id) override;
  absl::StatusOr<ListResult> List(const ListQuery& query) override;
  absl::Status Delete(absl::string_view job_id) override;
  absl::StatusOr<Job> RequestCancel(absl::string_view job_id) override;
  absl::StatusOr<std::optional<std::pair<Job, Lease>>> Acquire(
      absl::string_view worker, absl::Duration lease_duration) override;
  absl::StatusOr<Job> Renew(const Lease& lease, absl::Duration lease_duration,
                            const JobProgress& progress, absl::string_view tensor) override;
  absl::Status Release(const Lease& lease) override;
  absl::StatusOr<Job> Retry(const Lease& lease, absl::Duration delay,
                            const JobError& error) override;
  absl::Status CheckLease(const Lease& lease) override;
  absl::Status Finish(const Lease& lease, JobState state, const JobProgress& progress,
                      const JobError& error) override;
  absl::Status AddFinishedUnits(const Lease& lease,
                                const std::vector<FinishedUnit>& units) override;
  absl::StatusOr<std::vector<FinishedUnit>> FinishedUnits(absl::string_view job_id) override;
  absl::Status SetPlanDigest(const Lease& lease, absl::string_view digest) override;
  absl::StatusOr<std::string> PlanDigest(absl::string_view job_id) override;
  absl::StatusOr<std::vector<JobEvent>> Events(absl::string_view job_id, uint64_t after,
                                               int limit) override;
  void WaitForEvent(absl::string_view job_id, uint64_t after, absl::Duration timeout) override;
  void WaitForWork(absl::Duration timeout) override;
  absl::StatusOr<std::map<JobState, uint64_t>> CountByState() override;
  absl::StatusOr<absl::Duration> OldestQueuedAge() override;
  absl::StatusOr<int> DeleteExpired(absl::Duration retention) override;

 private:
  // A job with what only the store knows of it, and the state and epoch it was read with.
  struct Row;

  SqliteJobStore(std::unique_ptr<DataDirLock> lock, std::unique_ptr<SqliteConnection> writer,
                 std::unique_ptr<SqliteConnection> reader, const Clock& clock);

  absl::Status Recover() ABSL_LOCKS_EXCLUDED(writer_mutex_);
  absl::StatusOr<std::optional<CreateResult>> FindReplay(absl::string_view request_id,
                                                         absl::string_view spec_json)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  absl::Status CheckQueueBound() ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  absl::StatusOr<Row> Insert(const std::string& spec_json, absl::string_view request_id)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  absl::StatusOr<Row> LoadForUpdate(absl::string_view job_id)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  absl::StatusOr<Row> LoadLeased(const Lease& lease) ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  absl::Status Save(const Row& row) ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  // Changes the state by the table and appends its event; the caller saves the row.
  absl::Status Transition(Row& row, JobState to) ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  absl::Status AppendEvent(Row& row, EventKind kind, absl::string_view tensor)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  absl::Status AppendProgress(Row& row, const JobProgress& progress, absl::string_view tensor)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  // RUNNING without an owner: QUEUED again, or FAILED when the attempts are used up.
  absl::Status Requeue(Row& row, absl::Duration delay, const JobError& error)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  absl::Status RequeueExpired(bool all, int* requeued) ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  absl::StatusOr<std::optional<Row>> NextReady() ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  absl::Status TakeLease(Row& row, absl::string_view worker, absl::Duration lease_duration)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  absl::StatusOr<int> DeleteBatch(int64_t ended_before_us)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  void ExtendLease(Row& row) const;

  absl::StatusOr<std::vector<Row>> SelectRows(SqliteConnection::Query query) const;
  absl::StatusOr<int64_t> FindSeq(absl::string_view job_id)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(reader_mutex_);
  bool HasNewerEvent(absl::string_view job_id, uint64_t after) ABSL_LOCKS_EXCLUDED(reader_mutex_);
  // Until a job is leasable: zero if one is now, infinite if nothing waits.
  absl::Duration UntilWork() ABSL_LOCKS_EXCLUDED(reader_mutex_);
  uint64_t Generation() const ABSL_LOCKS_EXCLUDED(wait_mutex_);
  void Announce() ABSL_LOCKS_EXCLUDED(wait_mutex_);
  // Waits for a newer generation than `seen`.
  void AwaitChange(uint64_t seen, absl::Time deadline) ABSL_LOCKS_EXCLUDED(wait_mutex_);

  int64_t NowNs() const;
  int64_t NowUs() const;

  const std::unique_ptr<DataDirLock> lock_;
  const Clock& clock_;
  const std::string boot_id_;

  Mutex writer_mutex_;
  const std::unique_ptr<SqliteConnection> writer_ ABSL_PT_GUARDED_BY(writer_mutex_);

  Mutex reader_mutex_;
  const std::unique_ptr<SqliteConnection> reader_ ABSL_PT_GUARDED_BY(reader_mutex_);

  mutable Mutex wait_mutex_;
  CondVar changed_;
  uint64_t generation_ ABSL_GUARDED_BY(wait_mutex_) = 0;
};

}  // namespace sinq

#endif  // SINQ_SERVER_JOB_JOB_STORE_SQLITE_H_
