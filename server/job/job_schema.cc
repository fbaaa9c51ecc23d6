#include "server/job/job_schema.h"

#include <cstdint>

#include "absl/strings/str_cat.h"
#include "server/base/error.h"

namespace sinq {
namespace {

constexpr int64_t kApplicationId = 1397313105;  // "SINQ"
// Checking every page of a larger file would delay a restart by seconds; damage is then found when
// the page is read.
constexpr int64_t kMaxCheckedBytes = 64 << 20;

// Times: *_us are wall clock microseconds since 1970 for people; *_ns are nanoseconds since boot
// and mean something only together with the boot id beside them.
constexpr char kCreate[] = R"sql(
CREATE TABLE jobs (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  request_id TEXT NOT NULL UNIQUE,
  spec TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN
    ('QUEUED', 'RUNNING', 'SUCCEEDED', 'FAILED', 'CANCELLED', 'EXPIRED')),
  cancel_requested INTEGER NOT NULL DEFAULT 0,
  attempt INTEGER NOT NULL DEFAULT 0,
  futile_attempts INTEGER NOT NULL DEFAULT 0,
  lease_epoch INTEGER NOT NULL DEFAULT 0,
  lease_worker TEXT NOT NULL DEFAULT '',
  lease_boot_id TEXT NOT NULL DEFAULT '',
  lease_until_ns INTEGER NOT NULL DEFAULT 0,
  lease_duration_ns INTEGER NOT NULL DEFAULT 0,
  queued_boot_id TEXT NOT NULL,
  queued_ns INTEGER NOT NULL,
  queued_us INTEGER NOT NULL,
  ready_ns INTEGER NOT NULL,
  last_event INTEGER NOT NULL DEFAULT 0,
  progress_event_ns INTEGER NOT NULL DEFAULT 0,
  progress TEXT NOT NULL,
  error TEXT NOT NULL DEFAULT '',
  last_error TEXT NOT NULL DEFAULT '',
  plan_digest TEXT NOT NULL DEFAULT '',
  create_us INTEGER NOT NULL,
  start_us INTEGER,
  end_us INTEGER
) STRICT;
CREATE INDEX jobs_by_state ON jobs (state, seq);
CREATE TABLE events (
  job_seq INTEGER NOT NULL REFERENCES jobs (seq) ON DELETE CASCADE,
  sequence INTEGER NOT NULL,
  time_us INTEGER NOT NULL,
  kind INTEGER NOT NULL,
  state TEXT NOT NULL,
  progress TEXT NOT NULL,
  error TEXT NOT NULL,
  tensor TEXT NOT NULL,
  PRIMARY KEY (job_seq, sequence)
) STRICT, WITHOUT ROWID;
CREATE TABLE units (
  job_seq INTEGER NOT NULL REFERENCES jobs (seq) ON DELETE CASCADE,
  unit TEXT NOT NULL,
  record TEXT NOT NULL,
  PRIMARY KEY (job_seq, unit)
) STRICT, WITHOUT ROWID;
PRAGMA application_id = 1397313105;
PRAGMA user_version = 1;
)sql";
static_assert(kJobSchemaVersion == 1, "the text above sets user_version");

absl::Status Refuse(absl::string_view what) {
  return MakeError(absl::StatusCode::kFailedPrecondition, Reason::kInternal, what);
}

absl::StatusOr<int64_t> ReadNumber(SqliteConnection& connection, absl::string_view sql) {
  auto query = connection.Prepare(sql);
  const absl::StatusOr<bool> row = query.Next();
  if (!row.ok()) return row.status();
  return *row ? query.Int(0) : 0;
}

absl::Status CheckPages(SqliteConnection& connection) {
  const absl::StatusOr<int64_t> bytes = ReadNumber(
      connection, "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size");
  if (!bytes.ok()) return bytes.status();
  if (*bytes > kMaxCheckedBytes) return absl::OkStatus();
  auto query = connection.Prepare("SELECT quick_check FROM pragma_quick_check(1)");
  const absl::StatusOr<bool> row = query.Next();
  if (!row.ok()) return row.status();
  if (*row && query.Text(0) == "ok") return absl::OkStatus();
  return Refuse(absl::StrCat("The job store is damaged (", *row ? query.Text(0) : "no answer",
                             "); restore it from a backup, or move the file away to start with an "
                             "empty queue."));
}

absl::Status Create(SqliteConnection& connection) {
  SqliteTransaction transaction(connection);
  if (absl::Status status = transaction.Begin(); !status.ok()) return status;
  if (absl::Status status = connection.Execute(kCreate); !status.ok()) return status;
  return transaction.Commit();
}

}  // namespace

absl::Status EnsureJobSchema(SqliteConnection& connection) {
  const absl::StatusOr<int64_t> version =
      ReadNumber(connection, "SELECT user_version FROM pragma_user_version");
  if (!version.ok()) return version.status();
  const absl::StatusOr<int64_t> application =
      ReadNumber(connection, "SELECT application_id FROM pragma_application_id");
  if (!application.ok()) return application.status();
  const absl::StatusOr<int64_t> tables =
      ReadNumber(connection, "SELECT count(*) FROM sqlite_schema");
  if (!tables.ok()) return tables.status();
  if (*version == 0 && *application == 0 && *tables == 0) return Create(connection);
  if (*application != kApplicationId) {
    return Refuse(
        "The file at the job store's place is another program's database; use another "
        "--data-dir, or move the file away.");
  }
  if (*version != kJobSchemaVersion) {
    return Refuse(absl::StrCat("The job store has schema version ", *version,
                               " and this sinqd "
                               "reads version ",
                               kJobSchemaVersion,
                               "; start the sinqd that wrote "
                               "it, or use another --data-dir."));
  }
  return CheckPages(connection);
}

}  // namespace sinq
