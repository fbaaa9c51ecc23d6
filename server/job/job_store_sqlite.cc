#include "server/job/job_store_sqlite.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "server/base/error.h"
#include "server/base/limits.h"
#include "server/base/text.h"
#include "server/job/job_codec.h"
#include "server/job/job_schema.h"
#include "server/job/page_token.h"
#include "server/job/random_id.h"

namespace sinq {

struct SqliteJobStore::Row {
  int64_t seq = 0;
  Job job;
  std::string spec_json;
  int futile_attempts = 0;  // leases in a row that left no finished unit behind
  std::string lease_worker;
  std::string lease_boot_id;
  int64_t lease_until_ns = 0;
  int64_t lease_duration_ns = 0;
  std::string queued_boot_id;  // of queued_ns and ready_ns
  int64_t queued_ns = 0;
  int64_t queued_us = 0;
  int64_t ready_ns = 0;  // not leasable before
  int64_t progress_event_ns = 0;
  JobError last_error;  // why the attempt before failed
  std::string plan_digest;
  JobState read_state = JobState::kQueued;
  int64_t read_epoch = 0;
};

namespace {

using Query = SqliteConnection::Query;

#define SINQ_JOB_COLUMNS                                                                        \
  "seq, id, request_id, spec, state, cancel_requested, attempt, futile_attempts, lease_epoch, " \
  "lease_worker, lease_boot_id, lease_until_ns, lease_duration_ns, queued_boot_id, queued_ns, " \
  "queued_us, ready_ns, last_event, progress_event_ns, progress, error, last_error, "           \
  "plan_digest, create_us, start_us, end_us "

constexpr absl::string_view kSelectById = "SELECT " SINQ_JOB_COLUMNS "FROM jobs WHERE id = ?";
constexpr absl::string_view kSelectByRequest =
    "SELECT " SINQ_JOB_COLUMNS "FROM jobs WHERE request_id = ?";
constexpr absl::string_view kSelectLeased =
    "SELECT " SINQ_JOB_COLUMNS "FROM jobs WHERE id = ? AND lease_epoch = ? AND state = 'RUNNING'";
constexpr absl::string_view kSelectExpired =
    "SELECT " SINQ_JOB_COLUMNS
    "FROM jobs WHERE state = 'RUNNING' AND (? OR lease_boot_id <> ? OR lease_until_ns <= ?) "
    "ORDER BY seq";
constexpr absl::string_view kSelectReady =
    "SELECT " SINQ_JOB_COLUMNS
    "FROM jobs WHERE state = 'QUEUED' AND (queued_boot_id <> ? OR ready_ns <= ?) "
    "ORDER BY seq LIMIT 1";
constexpr absl::string_view kSelectPage =
    "SELECT " SINQ_JOB_COLUMNS "FROM jobs WHERE seq < ? ORDER BY seq DESC LIMIT ?";
constexpr absl::string_view kSelectPageByState =
    "SELECT " SINQ_JOB_COLUMNS
    "FROM jobs WHERE seq < ? AND state IN (?, ?, ?, ?, ?, ?) ORDER BY seq DESC LIMIT ?";
constexpr absl::string_view kInsertJob =
    "INSERT INTO jobs (id, request_id, spec, state, queued_boot_id, queued_ns, queued_us, "
    "ready_ns, progress, create_us) VALUES (?, ?, ?, 'QUEUED', ?, ?, ?, ?, ?, ?)";
constexpr absl::string_view kSaveJob =
    "UPDATE jobs SET state = ?, cancel_requested = ?, attempt = ?, futile_attempts = ?, "
    "lease_epoch = ?, lease_worker = ?, lease_boot_id = ?, lease_until_ns = ?, "
    "lease_duration_ns = ?, queued_boot_id = ?, queued_ns = ?, queued_us = ?, ready_ns = ?, "
    "last_event = ?, progress_event_ns = ?, progress = ?, error = ?, last_error = ?, "
    "plan_digest = ?, start_us = ?, end_us = ? "
    "WHERE seq = ? AND state = ? AND lease_epoch = ?";
constexpr absl::string_view kInsertEvent =
    "INSERT INTO events (job_seq, sequence, time_us, kind, state, progress, error, tensor) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
constexpr absl::string_view kPruneEvents = "DELETE FROM events WHERE job_seq = ? AND sequence <= ?";
constexpr absl::string_view kSelectEvents =
    "SELECT sequence, time_us, kind, state, progress, error, tensor FROM events "
    "WHERE job_seq = ? AND sequence > ? ORDER BY sequence LIMIT ?";
// A unit done twice has the same bytes; the record of the last one stands.
constexpr absl::string_view kInsertUnit =
    "INSERT INTO units (job_seq, unit, record) VALUES (?, ?, ?) "
    "ON CONFLICT (job_seq, unit) DO UPDATE SET record = excluded.record";
constexpr absl::string_view kUntilWork =
    "SELECT min(due) FROM ("
    "SELECT min(CASE WHEN queued_boot_id = ?1 THEN ready_ns ELSE 0 END) AS due FROM jobs "
    "WHERE state = 'QUEUED' UNION ALL "
    "SELECT min(CASE WHEN lease_boot_id = ?1 THEN lease_until_ns ELSE 0 END) FROM jobs "
    "WHERE state = 'RUNNING')";

constexpr int kDeleteBatch = 100;  // rows per transaction, so that leases can be renewed between
constexpr absl::Duration kProgressEventInterval = absl::Seconds(1);
constexpr absl::Duration kQueueFullRetry = absl::Seconds(30);
constexpr absl::Duration kLongestLease = absl::Hours(24 * 365);

absl::Status JobNotFound(absl::string_view job_id) {
  return MakeError(absl::StatusCode::kNotFound, Reason::kJobNotFound,
                   absl::StrCat("There is no job '", PrintableText(job_id, 64),
                                "'; it may have been deleted after its retention time."),
                   {{"job_id", std::string(job_id)}});
}

absl::Status LeaseLost(const Lease& lease) {
  return MakeError(absl::StatusCode::kAborted, Reason::kLeaseLost,
                   absl::StrCat("Lease ", lease.epoch, " of job '", PrintableText(lease.job_id, 64),
                                "' is not held any more; stop working on it."));
}

absl::Status IllegalTransition(const Job& job, absl::string_view what) {
  return MakeError(absl::StatusCode::kFailedPrecondition, Reason::kIllegalTransition,
                   absl::StrCat("Job '", job.id, "' is ", JobStateName(job.state), " and ", what),
                   {{"state", std::string(JobStateName(job.state))}});
}

absl::Status Damaged(absl::string_view job_id) {
  return MakeError(absl::StatusCode::kDataLoss, Reason::kInternal,
                   absl::StrCat("The stored row of job '", PrintableText(job_id, 64),
                                "' cannot be read; restore the job store from a backup."));
}

JobError AttemptsUsedUp(const JobError& last_error) {
  if (!last_error.code.empty()) return last_error;
  return {"ABORTED", Reason::kInternal,
          absl::StrCat("The worker died or lost its lease ", kMaxAttempts,
                       " times in a row without finishing a tensor; see the server's log, then "
                       "submit the job again.")};
}

std::string FilterText(const std::vector<JobState>& states) {
  std::vector<std::string> names;
  for (const JobState state : states) names.emplace_back(JobStateName(state));
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  return absl::StrJoin(names, ",");
}

int64_t ToNs(absl::Duration duration) {
  return absl::ToInt64Nanoseconds(std::clamp(duration, absl::ZeroDuration(), kLongestLease));
}

void BindTime(absl::Time time, Query* query) {
  if (time == absl::InfinitePast()) {
    query->BindNull();
  } else {
    query->Bind(absl::ToUnixMicros(time));
  }
}

absl::Time ReadTime(const Query& query, int column) {
  return query.IsNull(column) ? absl::InfinitePast() : absl::FromUnixMicros(query.Int(column));
}

absl::StatusOr<JobEvent> ReadEvent(const Query& query) {
  JobEvent event;
  event.sequence = static_cast<uint64_t>(query.Int(0));
  event.time = absl::FromUnixMicros(query.Int(1));
  event.kind = static_cast<EventKind>(query.Int(2));
  event.tensor = query.Text(6);
  if (event.kind > EventKind::kTensor || !ParseJobState(query.Text(3), &event.state) ||
      !DecodeProgress(query.Text(4), &event.progress) ||
      !DecodeError(query.Text(5), &event.error)) {
    return Damaged("of an event");
  }
  return event;
}

absl::Status CheckFinish(JobState state) {
  if (IsTerminal(state)) return absl::OkStatus();
  return MakeError(absl::StatusCode::kFailedPrecondition, Reason::kIllegalTransition,
                   absl::StrCat("A job cannot finish as ", JobStateName(state), "."));
}

}  // namespace

// --- opening ---

absl::StatusOr<std::unique_ptr<JobStore>> OpenSqliteJobStore(const std::string& path,
                                                             const Clock& clock) {
  return SqliteJobStore::Open(path, clock);
}

SqliteJobStore::SqliteJobStore(std::unique_ptr<DataDirLock> lock,
                               std::unique_ptr<SqliteConnection> writer,
                               std::unique_ptr<SqliteConnection> reader, const Clock& clock)
    : lock_(std::move(lock)),
      clock_(clock),
      boot_id_(clock.BootId()),
      writer_(std::move(writer)),
      reader_(std::move(reader)) {}

absl::StatusOr<std::unique_ptr<JobStore>> SqliteJobStore::Open(const std::string& path,
                                                               const Clock& clock) {
  auto lock = DataDirLock::Acquire(path + ".lock");
  if (!lock.ok()) return lock.status();
  auto writer = SqliteConnection::Open(path);
  if (!writer.ok()) return writer.status();
  if (absl::Status status = EnsureJobSchema(**writer); !status.ok()) return status;
  auto reader = SqliteConnection::Open(path);
  if (!reader.ok()) return reader.status();
  auto store = absl::WrapUnique(
      new SqliteJobStore(*std::move(lock), *std::move(writer), *std::move(reader), clock));
  if (absl::Status status = store->Recover(); !status.ok()) return status;
  return store;
}

absl::Status SqliteJobStore::Recover() {
  MutexLock lock(&writer_mutex_);
  SqliteTransaction transaction(*writer_);
  if (absl::Status status = transaction.Begin(); !status.ok()) return status;
  int requeued = 0;
  if (absl::Status status = RequeueExpired(/*all=*/true, &requeued); !status.ok()) return status;
  return transaction.Commit();
}

// --- rows and events ---

absl::StatusOr<std::vector<SqliteJobStore::Row>> SqliteJobStore::SelectRows(Query query) const {
  std::vector<Row> rows;
  while (true) {
    const absl::StatusOr<bool> more = query.Next();
    if (!more.ok()) return more.status();
    if (!*more) return rows;
    Row row;
    Job& job = row.job;
    row.seq = query.Int(0);
    job.id = query.Text(1);
    job.request_id = query.Text(2);
    row.spec_json = query.Text(3);
    const bool known_state = ParseJobState(query.Text(4), &job.state);
    job.cancel_requested = query.Int(5) != 0;
    job.attempt = static_cast<int>(query.Int(6));
    row.futile_attempts = static_cast<int>(query.Int(7));
    job.lease_epoch = query.Int(8);
    row.lease_worker = query.Text(9);
    row.lease_boot_id = query.Text(10);
    row.lease_until_ns = query.Int(11);
    row.lease_duration_ns = query.Int(12);
    row.queued_boot_id = query.Text(13);
    row.queued_ns = query.Int(14);
    row.queued_us = query.Int(15);
    row.ready_ns = query.Int(16);
    job.last_event = static_cast<uint64_t>(query.Int(17));
    row.progress_event_ns = query.Int(18);
    row.plan_digest = query.Text(22);
    job.create_time = ReadTime(query, 23);
    job.start_time = ReadTime(query, 24);
    job.end_time = ReadTime(query, 25);
    row.read_state = job.state;
    row.read_epoch = job.lease_epoch;
    absl::StatusOr<JobSpec> spec = JobSpecFromJson(row.spec_json);
    if (!spec.ok() || !known_state || !DecodeProgress(query.Text(19), &job.progress) ||
        !DecodeError(query.Text(20), &job.error) || !DecodeError(query.Text(21), &row.last_error)) {
      return Damaged(job.id);
    }
    job.spec = *std::move(spec);
    rows.push_back(std::move(row));
  }
}

absl::StatusOr<SqliteJobStore::Row> SqliteJobStore::LoadForUpdate(absl::string_view job_id) {
  Query query = writer_->Prepare(kSelectById);
  query.Bind(job_id);
  absl::StatusOr<std::vector<Row>> rows = SelectRows(std::move(query));
  if (!rows.ok()) return rows.status();
  if (rows->empty()) return JobNotFound(job_id);
  return std::move(rows->front());
}

absl::StatusOr<SqliteJobStore::Row> SqliteJobStore::LoadLeased(const Lease& lease) {
  Query query = writer_->Prepare(kSelectLeased);
  query.Bind(lease.job_id).Bind(lease.epoch);
  absl::StatusOr<std::vector<Row>> rows = SelectRows(std::move(query));
  if (!rows.ok()) return rows.status();
  if (rows->empty()) return LeaseLost(lease);
  return std::move(rows->front());
}

absl::Status SqliteJobStore::Save(const Row& row) {
  const Job& job = row.job;
  Query query = writer_->Prepare(kSaveJob);
  query.Bind(JobStateName(job.state)).Bind(job.cancel_requested ? 1 : 0).Bind(job.attempt);
  query.Bind(row.futile_attempts).Bind(job.lease_epoch).Bind(row.lease_worker);
  query.Bind(row.lease_boot_id).Bind(row.lease_until_ns).Bind(row.lease_duration_ns);
  query.Bind(row.queued_boot_id).Bind(row.queued_ns).Bind(row.queued_us).Bind(row.ready_ns);
  query.Bind(static_cast<int64_t>(job.last_event)).Bind(row.progress_event_ns);
  query.Bind(EncodeProgress(job.progress)).Bind(EncodeError(job.error));
  query.Bind(EncodeError(row.last_error)).Bind(row.plan_digest);
  BindTime(job.start_time, &query);
  BindTime(job.end_time, &query);
  query.Bind(row.seq).Bind(JobStateName(row.read_state)).Bind(row.read_epoch);
  if (absl::Status status = query.Run(); !status.ok()) return status;
  return writer_->changes() == 1 ? absl::OkStatus() : LeaseLost({job.id, row.read_epoch});
}

absl::Status SqliteJobStore::AppendEvent(Row& row, EventKind kind, absl::string_view tensor) {
  const Job& job = row.job;
  const int64_t sequence = static_cast<int64_t>(++row.job.last_event);
  Query query = writer_->Prepare(kInsertEvent);
  query.Bind(row.seq).Bind(sequence).Bind(NowUs()).Bind(static_cast<int64_t>(kind));
  query.Bind(JobStateName(job.state)).Bind(EncodeProgress(job.progress));
  query.Bind(EncodeError(job.error)).Bind(PrintableText(tensor, 2 * kMaxTensorNameBytes));
  if (absl::Status status = query.Run(); !status.ok()) return status;
  // A ring: the oldest events go, so that neither a long job nor a busy one grows without bound.
  const int64_t oldest = sequence - static_cast<int64_t>(kMaxEventsPerJob);
  if (oldest <= 0) return absl::OkStatus();
  return writer_->Prepare(kPruneEvents).Bind(row.seq).Bind(oldest).Run();
}

absl::Status SqliteJobStore::AppendProgress(Row& row, const JobProgress& progress,
                                            absl::string_view tensor) {
  const bool changed = EncodeProgress(row.job.progress) != EncodeProgress(progress);
  row.job.progress = progress;
  // A clock that reads less than the last event's is another boot's.
  const int64_t since = NowNs() - row.progress_event_ns;
  const bool due = since < 0 || since >= ToNs(kProgressEventInterval) || row.progress_event_ns == 0;
  if (!changed || !due) return absl::OkStatus();
  row.progress_event_ns = NowNs();
  return AppendEvent(row, EventKind::kProgress, tensor);
}

absl::Status SqliteJobStore::Transition(Row& row, JobState to) {
  if (!IsLegalTransition(row.job.state, to)) {
    return IllegalTransition(row.job, absl::StrCat("cannot become ", JobStateName(to), "."));
  }
  row.job.state = to;
  if (IsTerminal(to)) {
    row.job.end_time = clock_.WallNow();
    row.job.cancel_requested = false;  // it has taken effect, or came too late
  }
  if (to == JobState::kQueued) {
    row.queued_boot_id = boot_id_;
    row.queued_ns = row.ready_ns = NowNs();
    row.queued_us = NowUs();
  }
  return AppendEvent(row, EventKind::kState, "");
}

// --- what clients do ---

absl::StatusOr<std::optional<CreateResult>> SqliteJobStore::FindReplay(
    absl::string_view request_id, absl::string_view spec_json) {
  Query query = writer_->Prepare(kSelectByRequest);
  query.Bind(request_id);
  absl::StatusOr<std::vector<Row>> rows = SelectRows(std::move(query));
  if (!rows.ok()) return rows.status();
  if (rows->empty()) return std::nullopt;
  Row& row = rows->front();
  if (row.spec_json == spec_json) return CreateResult{std::move(row.job), /*replayed=*/true};
  return MakeError(
      absl::StatusCode::kAlreadyExists, Reason::kRequestIdReused,
      absl::StrCat("request_id '", request_id, "' was used before, for job '", row.job.id,
                   "' with "
                   "another source, output or recipe; use a new request_id."),
      {{"field", "request_id"}, {"job_id", row.job.id}});
}

absl::Status SqliteJobStore::CheckQueueBound() {
  Query query = writer_->Prepare("SELECT count(*) FROM jobs WHERE state = 'QUEUED'");
  const absl::StatusOr<bool> row = query.Next();
  if (!row.ok()) return row.status();
  if (static_cast<uint64_t>(query.Int(0)) < kMaxQueuedJobs) return absl::OkStatus();
  return MakeError(absl::StatusCode::kResourceExhausted, Reason::kQueueFull,
                   absl::StrCat("The queue is full (", kMaxQueuedJobs,
                                " jobs wait); submit again when some have run."),
                   {{"limit", absl::StrCat(kMaxQueuedJobs)}}, kQueueFullRetry);
}

absl::StatusOr<SqliteJobStore::Row> SqliteJobStore::Insert(const std::string& spec_json,
                                                           absl::string_view request_id) {
  const absl::StatusOr<std::string> id = RandomId("job-");
  if (!id.ok()) return id.status();
  Query query = writer_->Prepare(kInsertJob);
  query.Bind(*id).Bind(request_id).Bind(spec_json).Bind(boot_id_).Bind(NowNs()).Bind(NowUs());
  query.Bind(NowNs()).Bind(EncodeProgress({})).Bind(NowUs());
  if (absl::Status status = query.Run(); !status.ok()) return status;
  absl::StatusOr<Row> row = LoadForUpdate(*id);
  if (!row.ok()) return row.status();
  // The first event: QUEUED is where a job begins, not a transition.
  if (absl::Status status = AppendEvent(*row, EventKind::kState, ""); !status.ok()) return status;
  if (absl::Status status = Save(*row); !status.ok()) return status;
  return row;
}

absl::StatusOr<CreateResult> SqliteJobStore::Create(const JobSpec& spec,
                                                    absl::string_view request_id) {
  if (request_id.size() > kMaxRequestIdBytes) {
    return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
                     absl::StrCat("request_id must be at most ", kMaxRequestIdBytes, " bytes; got ",
                                  request_id.size(), "."),
                     {{"field", "request_id"}});
  }
  absl::StatusOr<std::string> fresh_id = RandomId("req-");
  if (!fresh_id.ok()) return fresh_id.status();
  const absl::string_view used_id = request_id.empty() ? absl::string_view(*fresh_id) : request_id;
  const std::string spec_json = JobSpecToJson(spec);
  CreateResult result;
  {
    MutexLock lock(&writer_mutex_);
    SqliteTransaction transaction(*writer_);
    if (absl::Status status = transaction.Begin(); !status.ok()) return status;
    absl::StatusOr<std::optional<CreateResult>> replay = FindReplay(used_id, spec_json);
    if (!replay.ok()) return replay.status();
    if (replay->has_value()) return **std::move(replay);
    if (absl::Status status = CheckQueueBound(); !status.ok()) return status;
    absl::StatusOr<Row> row = Insert(spec_json, used_id);
    if (!row.ok()) return row.status();
    if (absl::Status status = transaction.Commit(); !status.ok()) return status;
    result.job = std::move(row->job);
  }
  Announce();
  return result;
}

absl::StatusOr<CreateResult> SqliteJobStore::FindRequest(const JobSpec& spec,
                                                         absl::string_view request_id) {
  MutexLock lock(&writer_mutex_);
  absl::StatusOr<std::optional<CreateResult>> replay = FindReplay(request_id, JobSpecToJson(spec));
  if (!replay.ok()) return replay.status();
  if (replay->has_value()) return **std::move(replay);
  return MakeError(absl::StatusCode::kNotFound, Reason::kJobNotFound,
                   absl::StrCat("No job was made with request_id '", request_id, "'."));
}

absl::StatusOr<Job> SqliteJobStore::Get(absl::string_view job_id) {
  MutexLock lock(&reader_mutex_);
  Query query = reader_->Prepare(kSelectById);
  query.Bind(job_id);
  absl::StatusOr<std::vector<Row>> rows = SelectRows(std::move(query));
  if (!rows.ok()) return rows.status();
  if (rows->empty()) return JobNotFound(job_id);
  return std::move(rows->front().job);
}

absl::StatusOr<ListResult> SqliteJobStore::List(const ListQuery& request) {
  if (request.page_size < 0) {
    return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
                     "page_size must not be negative.", {{"field", "page_size"}});
  }
  const int page_size =
      request.page_size == 0 ? kDefaultPageSize : std::min(request.page_size, kMaxPageSize);
  const std::string filter = FilterText(request.states);
  int64_t before = std::numeric_limits<int64_t>::max();
  if (!request.page_token.empty()) {
    const absl::StatusOr<int64_t> last = DecodePageToken(request.page_token, filter);
    if (!last.ok()) return last.status();
    before = *last;
  }
  MutexLock lock(&reader_mutex_);
  Query query = reader_->Prepare(filter.empty() ? kSelectPage : kSelectPageByState);
  query.Bind(before);
  for (size_t i = 0; !filter.empty() && i < 6; ++i) {
    const JobState state = static_cast<JobState>(i);
    const auto& states = request.states;
    const bool wanted = std::find(states.begin(), states.end(), state) != states.end();
    query.Bind(wanted ? JobStateName(state) : "");
  }
  query.Bind(page_size + 1);  // one more tells whether there is a next page
  absl::StatusOr<std::vector<Row>> rows = SelectRows(std::move(query));
  if (!rows.ok()) return rows.status();
  ListResult result;
  const bool more = rows->size() > static_cast<size_t>(page_size);
  if (more) rows->pop_back();
  if (more) result.next_page_token = EncodePageToken(rows->back().seq, filter);
  for (Row& row : *rows) result.jobs.push_back(std::move(row.job));
  return result;
}

absl::Status SqliteJobStore::Delete(absl::string_view job_id) {
  {
    MutexLock lock(&writer_mutex_);
    SqliteTransaction transaction(*writer_);
    if (absl::Status status = transaction.Begin(); !status.ok()) return status;
    const absl::StatusOr<Row> row = LoadForUpdate(job_id);
    if (!row.ok()) return row.status();
    if (!IsTerminal(row->job.state)) {
      return IllegalTransition(row->job, "cannot be deleted; cancel it first, then delete it.");
    }
    Query query = writer_->Prepare("DELETE FROM jobs WHERE seq = ?");
    if (absl::Status status = query.Bind(row->seq).Run(); !status.ok()) return status;
    if (absl::Status status = transaction.Commit(); !status.ok()) return status;
  }
  Announce();
  return absl::OkStatus();
}

absl::StatusOr<Job> SqliteJobStore::RequestCancel(absl::string_view job_id) {
  absl::StatusOr<Row> row = Row();
  {
    MutexLock lock(&writer_mutex_);
    SqliteTransaction transaction(*writer_);
    if (absl::Status status = transaction.Begin(); !status.ok()) return status;
    row = LoadForUpdate(job_id);
    if (!row.ok()) return row.status();
    if (IsTerminal(row->job.state) || row->job.cancel_requested) return std::move(row->job);
    row->job.cancel_requested = true;
    if (row->job.state == JobState::kQueued) {
      if (absl::Status status = Transition(*row, JobState::kCancelled); !status.ok()) {
        return status;
      }
    }
    if (absl::Status status = Save(*row); !status.ok()) return status;
    if (absl::Status status = transaction.Commit(); !status.ok()) return status;
  }
  Announce();
  return std::move(row->job);
}

// --- what workers do ---

absl::Status SqliteJobStore::Requeue(Row& row, absl::Duration delay, const JobError& error) {
  if (!error.code.empty()) row.last_error = error;
  row.lease_worker.clear();
  row.lease_boot_id.clear();
  row.lease_until_ns = 0;
  if (row.futile_attempts >= kMaxAttempts) {
    if (row.job.cancel_requested) return Transition(row, JobState::kCancelled);
    row.job.error = AttemptsUsedUp(row.last_error);
    return Transition(row, JobState::kFailed);
  }
  // A cancel request stays set: the next lease is taken only to clean up.
  if (absl::Status status = Transition(row, JobState::kQueued); !status.ok()) return status;
  row.ready_ns += ToNs(delay);
  return absl::OkStatus();
}

absl::Status SqliteJobStore::RequeueExpired(bool all, int* requeued) {
  Query query = writer_->Prepare(kSelectExpired);
  query.Bind(all ? 1 : 0).Bind(boot_id_).Bind(NowNs());
  absl::StatusOr<std::vector<Row>> rows = SelectRows(std::move(query));
  if (!rows.ok()) return rows.status();
  for (Row& row : *rows) {
    if (absl::Status status = Requeue(row, absl::ZeroDuration(), {}); !status.ok()) return status;
    if (absl::Status status = Save(row); !status.ok()) return status;
    ++*requeued;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<SqliteJobStore::Row>> SqliteJobStore::NextReady() {
  Query query = writer_->Prepare(kSelectReady);
  query.Bind(boot_id_).Bind(NowNs());
  absl::StatusOr<std::vector<Row>> rows = SelectRows(std::move(query));
  if (!rows.ok()) return rows.status();
  if (rows->empty()) return std::nullopt;
  return std::move(rows->front());
}

void SqliteJobStore::ExtendLease(Row& row) const {
  row.lease_boot_id = boot_id_;
  row.lease_until_ns = NowNs() + row.lease_duration_ns;
}

absl::Status SqliteJobStore::TakeLease(Row& row, absl::string_view worker,
                                       absl::Duration lease_duration) {
  row.job.attempt += 1;
  row.futile_attempts += 1;
  row.job.lease_epoch += 1;
  row.lease_worker = PrintableText(worker, 256);
  row.lease_duration_ns = ToNs(lease_duration);
  if (row.job.start_time == absl::InfinitePast()) row.job.start_time = clock_.WallNow();
  ExtendLease(row);
  if (absl::Status status = Transition(row, JobState::kRunning); !status.ok()) return status;
  return Save(row);
}

absl::StatusOr<std::optional<std::pair<Job, Lease>>> SqliteJobStore::Acquire(
    absl::string_view worker, absl::Duration lease_duration) {
  std::optional<std::pair<Job, Lease>> acquired;
  int requeued = 0;
  {
    MutexLock lock(&writer_mutex_);
    SqliteTransaction transaction(*writer_);
    if (absl::Status status = transaction.Begin(); !status.ok()) return status;
    if (absl::Status status = RequeueExpired(/*all=*/false, &requeued); !status.ok()) {
      return status;
    }
    absl::StatusOr<std::optional<Row>> row = NextReady();
    if (!row.ok()) return row.status();
    if (row->has_value()) {
      if (absl::Status status = TakeLease(**row, worker, lease_duration); !status.ok()) {
        return status;
      }
      const Job& job = (*row)->job;
      acquired.emplace(job, Lease{job.id, job.lease_epoch});
    }
    if (absl::Status status = transaction.Commit(); !status.ok()) return status;
  }
  if (acquired.has_value() || requeued > 0) Announce();
  return acquired;
}

absl::StatusOr<Job> SqliteJobStore::Renew(const Lease& lease, absl::Duration lease_duration,
                                          const JobProgress& progress, absl::string_view tensor) {
  absl::StatusOr<Row> row = Row();
  {
    MutexLock lock(&writer_mutex_);
    SqliteTransaction transaction(*writer_);
    if (absl::Status status = transaction.Begin(); !status.ok()) return status;
    row = LoadLeased(lease);
    if (!row.ok()) return row.status();
    row->lease_duration_ns = ToNs(lease_duration);
    ExtendLease(*row);
    if (absl::Status status = AppendProgress(*row, progress, tensor); !status.ok()) return status;
    if (absl::Status status = Save(*row); !status.ok()) return status;
    if (absl::Status status = transaction.Commit(); !status.ok()) return status;
  }
  Announce();
  return std::move(row->job);
}

absl::Status SqliteJobStore::Release(const Lease& lease) {
  {
    MutexLock lock(&writer_mutex_);
    SqliteTransaction transaction(*writer_);
    if (absl::Status status = transaction.Begin(); !status.ok()) return status;
    absl::StatusOr<Row> row = LoadLeased(lease);
    if (!row.ok()) return row.status();
    // Before Requeue looks at them: a drained attempt was nobody's failure.
    row->job.attempt = std::max(row->job.attempt - 1, 0);
    row->futile_attempts = std::max(row->futile_attempts - 1, 0);
    if (absl::Status status = Requeue(*row, absl::ZeroDuration(), {}); !status.ok()) return status;
    if (absl::Status status = Save(*row); !status.ok()) return status;
    if (absl::Status status = transaction.Commit(); !status.ok()) return status;
  }
  Announce();
  return absl::OkStatus();
}

absl::StatusOr<Job> SqliteJobStore::Retry(const Lease& lease, absl::Duration delay,
                                          const JobError& error) {
  absl::StatusOr<Row> row = Row();
  {
    MutexLock lock(&writer_mutex_);
    SqliteTransaction transaction(*writer_);
    if (absl::Status status = transaction.Begin(); !status.ok()) return status;
    row = LoadLeased(lease);
    if (!row.ok()) return row.status();
    if (absl::Status status = Requeue(*row, delay, error); !status.ok()) return status;
    if (absl::Status status = Save(*row); !status.ok()) return status;
    if (absl::Status status = transaction.Commit(); !status.ok()) return status;
  }
  Announce();
  return std::move(row->job);
}

absl::Status SqliteJobStore::CheckLease(const Lease& lease) {
  MutexLock lock(&writer_mutex_);
  SqliteTransaction transaction(*writer_);
  if (absl::Status status = transaction.Begin(); !status.ok()) return status;
  absl::StatusOr<Row> row = LoadLeased(lease);
  if (!row.ok()) return row.status();
  // Extended by a whole term: nobody else can take the job while the output is being published.
  ExtendLease(*row);
  if (absl::Status status = Save(*row); !status.ok()) return status;
  return transaction.Commit();
}

absl::Status SqliteJobStore::Finish(const Lease& lease, JobState state, const JobProgress& progress,
                                    const JobError& error) {
  if (absl::Status status = CheckFinish(state); !status.ok()) return status;
  {
    MutexLock lock(&writer_mutex_);
    SqliteTransaction transaction(*writer_);
    if (absl::Status status = transaction.Begin(); !status.ok()) return status;
    absl::StatusOr<Row> row = LoadLeased(lease);
    if (!row.ok()) return row.status();
    row->job.progress = progress;
    if (state == JobState::kFailed) row->job.error = error;
    row->lease_until_ns = 0;
    if (absl::Status status = Transition(*row, state); !status.ok()) return status;
    if (absl::Status status = Save(*row); !status.ok()) return status;
    if (absl::Status status = transaction.Commit(); !status.ok()) return status;
  }
  Announce();
  return absl::OkStatus();
}

absl::Status SqliteJobStore::AddFinishedUnits(const Lease& lease,
                                              const std::vector<FinishedUnit>& units) {
  if (units.empty()) return CheckLease(lease);
  MutexLock lock(&writer_mutex_);
  SqliteTransaction transaction(*writer_);
  if (absl::Status status = transaction.Begin(); !status.ok()) return status;
  absl::StatusOr<Row> row = LoadLeased(lease);
  if (!row.ok()) return row.status();
  for (const FinishedUnit& unit : units) {
    Query query = writer_->Prepare(kInsertUnit);
    query.Bind(row->seq).Bind(unit.unit).Bind(unit.record);
    if (absl::Status status = query.Run(); !status.ok()) return status;
  }
  // Work that stays done is progress: a job ends as FAILED only if it stops getting anywhere.
  row->futile_attempts = 0;
  if (absl::Status status = Save(*row); !status.ok()) return status;
  return transaction.Commit();
}

absl::StatusOr<std::vector<FinishedUnit>> SqliteJobStore::FinishedUnits(absl::string_view job_id) {
  MutexLock lock(&reader_mutex_);
  const absl::StatusOr<int64_t> seq = FindSeq(job_id);
  if (!seq.ok()) return seq.status();
  Query query = reader_->Prepare("SELECT unit, record FROM units WHERE job_seq = ? ORDER BY unit");
  query.Bind(*seq);
  std::vector<FinishedUnit> units;
  while (true) {
    const absl::StatusOr<bool> more = query.Next();
    if (!more.ok()) return more.status();
    if (!*more) return units;
    units.push_back({query.Text(0), query.Text(1)});
  }
}

absl::Status SqliteJobStore::SetPlanDigest(const Lease& lease, absl::string_view digest) {
  MutexLock lock(&writer_mutex_);
  SqliteTransaction transaction(*writer_);
  if (absl::Status status = transaction.Begin(); !status.ok()) return status;
  absl::StatusOr<Row> row = LoadLeased(lease);
  if (!row.ok()) return row.status();
  if (row->plan_digest == digest) return absl::OkStatus();
  if (!row->plan_digest.empty()) {
    return MakeError(absl::StatusCode::kFailedPrecondition, Reason::kMalformedSource,
                     "The source has changed since the job's first attempt; what is finished does "
                     "not fit it any more. Submit a new job.");
  }
  row->plan_digest = std::string(digest);
  if (absl::Status status = Save(*row); !status.ok()) return status;
  return transaction.Commit();
}

absl::StatusOr<std::string> SqliteJobStore::PlanDigest(absl::string_view job_id) {
  MutexLock lock(&reader_mutex_);
  Query query = reader_->Prepare("SELECT plan_digest FROM jobs WHERE id = ?");
  const absl::StatusOr<bool> found = query.Bind(job_id).Next();
  if (!found.ok()) return found.status();
  if (!*found) return JobNotFound(job_id);
  return query.Text(0);
}

// --- watching and counting ---

absl::StatusOr<int64_t> SqliteJobStore::FindSeq(absl::string_view job_id) {
  Query query = reader_->Prepare("SELECT seq FROM jobs WHERE id = ?");
  const absl::StatusOr<bool> found = query.Bind(job_id).Next();
  if (!found.ok()) return found.status();
  if (!*found) return JobNotFound(job_id);
  return query.Int(0);
}

absl::StatusOr<std::vector<JobEvent>> SqliteJobStore::Events(absl::string_view job_id,
                                                             uint64_t after, int limit) {
  MutexLock lock(&reader_mutex_);
  const absl::StatusOr<int64_t> seq = FindSeq(job_id);
  if (!seq.ok()) return seq.status();
  constexpr uint64_t kLargest = std::numeric_limits<int64_t>::max();
  Query query = reader_->Prepare(kSelectEvents);
  query.Bind(*seq).Bind(static_cast<int64_t>(std::min(after, kLargest))).Bind(std::max(limit, 0));
  std::vector<JobEvent> events;
  while (true) {
    const absl::StatusOr<bool> more = query.Next();
    if (!more.ok()) return more.status();
    if (!*more) return events;
    absl::StatusOr<JobEvent> event = ReadEvent(query);
    if (!event.ok()) return event.status();
    events.push_back(*std::move(event));
  }
}

bool SqliteJobStore::HasNewerEvent(absl::string_view job_id, uint64_t after) {
  MutexLock lock(&reader_mutex_);
  Query query = reader_->Prepare("SELECT last_event FROM jobs WHERE id = ?");
  const absl::StatusOr<bool> found = query.Bind(job_id).Next();
  // A job that is gone, or a store that cannot be read: the caller finds out with its next call.
  return !found.ok() || !*found || static_cast<uint64_t>(query.Int(0)) > after;
}

uint64_t SqliteJobStore::Generation() const {
  MutexLock lock(&wait_mutex_);
  return generation_;
}

void SqliteJobStore::Announce() {
  MutexLock lock(&wait_mutex_);
  ++generation_;
  changed_.SignalAll();
}

void SqliteJobStore::AwaitChange(uint64_t seen, absl::Time deadline) {
  MutexLock lock(&wait_mutex_);
  while (generation_ == seen) {
    if (changed_.WaitWithDeadline(&wait_mutex_, deadline)) return;
  }
}

void SqliteJobStore::WaitForEvent(absl::string_view job_id, uint64_t after,
                                  absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  while (true) {
    // Taken before the look at the table, so that a change in between is not slept through.
    const uint64_t seen = Generation();
    if (HasNewerEvent(job_id, after) || absl::Now() >= deadline) return;
    AwaitChange(seen, deadline);
  }
}

absl::Duration SqliteJobStore::UntilWork() {
  MutexLock lock(&reader_mutex_);
  Query query = reader_->Prepare(kUntilWork);
  const absl::StatusOr<bool> found = query.Bind(boot_id_).Next();
  if (!found.ok() || !*found || query.IsNull(0)) return absl::InfiniteDuration();
  return std::max(absl::Nanoseconds(query.Int(0)) - clock_.SinceBoot(), absl::ZeroDuration());
}

void SqliteJobStore::WaitForWork(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  while (true) {
    const uint64_t seen = Generation();
    const absl::Duration until_work = UntilWork();
    const absl::Time now = absl::Now();
    if (until_work == absl::ZeroDuration() || now >= deadline) return;
    // Every renewal wakes this up as well; the loop looks again and goes back to sleep.
    AwaitChange(seen, std::min(deadline, now + until_work));
  }
}

absl::StatusOr<std::map<JobState, uint64_t>> SqliteJobStore::CountByState() {
  MutexLock lock(&reader_mutex_);
  std::map<JobState, uint64_t> counts;
  for (int i = 0; i <= static_cast<int>(JobState::kExpired); ++i) {
    counts[static_cast<JobState>(i)] = 0;
  }
  Query query = reader_->Prepare("SELECT state, count(*) FROM jobs GROUP BY state");
  while (true) {
    const absl::StatusOr<bool> more = query.Next();
    if (!more.ok()) return more.status();
    if (!*more) return counts;
    JobState state;
    if (ParseJobState(query.Text(0), &state)) counts[state] = static_cast<uint64_t>(query.Int(1));
  }
}

absl::StatusOr<absl::Duration> SqliteJobStore::OldestQueuedAge() {
  MutexLock lock(&reader_mutex_);
  Query query = reader_->Prepare(
      "SELECT queued_boot_id, queued_ns, queued_us FROM jobs WHERE state = 'QUEUED' "
      "ORDER BY seq LIMIT 1");
  const absl::StatusOr<bool> found = query.Next();
  if (!found.ok()) return found.status();
  if (!*found) return absl::ZeroDuration();
  // Across a boot only the wall clock knows; it may have jumped, so never below zero.
  const absl::Duration age = query.Text(0) == boot_id_
                                 ? clock_.SinceBoot() - absl::Nanoseconds(query.Int(1))
                                 : clock_.WallNow() - absl::FromUnixMicros(query.Int(2));
  return std::max(age, absl::ZeroDuration());
}

absl::StatusOr<int> SqliteJobStore::DeleteBatch(int64_t ended_before_us) {
  Query query = writer_->Prepare(
      "DELETE FROM jobs WHERE seq IN (SELECT seq FROM jobs WHERE end_us <= ? AND state IN "
      "('SUCCEEDED', 'FAILED', 'CANCELLED', 'EXPIRED') LIMIT ?)");
  query.Bind(ended_before_us).Bind(kDeleteBatch);
  if (absl::Status status = query.Run(); !status.ok()) return status;
  return static_cast<int>(writer_->changes());
}

absl::StatusOr<int> SqliteJobStore::DeleteExpired(absl::Duration retention) {
  const int64_t ended_before_us = absl::ToUnixMicros(clock_.WallNow() - retention);
  int deleted = 0;
  while (true) {
    absl::StatusOr<int> batch = 0;
    {
      MutexLock lock(&writer_mutex_);
      batch = DeleteBatch(ended_before_us);
    }
    if (!batch.ok()) return batch.status();
    deleted += *batch;
    if (*batch < kDeleteBatch) break;
  }
  if (deleted > 0) Announce();
  return deleted;
}

int64_t SqliteJobStore::NowNs() const { return absl::ToInt64Nanoseconds(clock_.SinceBoot()); }

int64_t SqliteJobStore::NowUs() const { return absl::ToUnixMicros(clock_.WallNow()); }

}  // namespace sinq
