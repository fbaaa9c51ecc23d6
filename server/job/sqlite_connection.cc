#include "server/job/sqlite_connection.h"

#include <fcntl.h>
#include <sqlite3.h>
#include <unistd.h>

#include <cerrno>
#include <limits>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "server/base/error.h"

namespace sinq {
namespace {

constexpr int kBusyTimeoutMs = 5000;  // far longer than any transaction of ours

constexpr char kPragmas[] =
    "PRAGMA journal_mode = WAL;"
    "PRAGMA synchronous = FULL;"
    "PRAGMA foreign_keys = ON;"
    "PRAGMA trusted_schema = OFF;"
    "PRAGMA journal_size_limit = 67108864;";

// SQLite gives its journal files the permissions of the database: nobody else reads client paths.
absl::Status CreatePrivately(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (descriptor < 0) return ErrnoToStatus(errno, absl::StrCat("Cannot open the job store ", path));
  close(descriptor);
  return absl::OkStatus();
}

bool IsDiskFull(int result, int system_error) {
  if ((result & 0xff) == SQLITE_FULL) return true;
  if ((result & 0xff) != SQLITE_IOERR) return false;
  return system_error == ENOSPC || system_error == EDQUOT;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SqliteConnection>> SqliteConnection::Open(const std::string& path) {
  if (absl::Status status = CreatePrivately(path); !status.ok()) return status;
  sqlite3* handle = nullptr;
  constexpr int kFlags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX;
  const int result = sqlite3_open_v2(path.c_str(), &handle, kFlags, nullptr);
  auto connection = absl::WrapUnique(new SqliteConnection(handle));
  if (result != SQLITE_OK) return connection->ToStatus(result, "opening");
  sqlite3_extended_result_codes(handle, 1);
  sqlite3_busy_timeout(handle, kBusyTimeoutMs);
  if (absl::Status status = connection->Execute(kPragmas); !status.ok()) return status;
  return connection;
}

SqliteConnection::~SqliteConnection() {
  for (const auto& [sql, statement] : statements_) sqlite3_finalize(statement);
  sqlite3_close(handle_);
}

absl::Status SqliteConnection::ToStatus(int result, absl::string_view doing) const {
  const int system_error = handle_ == nullptr ? 0 : sqlite3_system_errno(handle_);
  const std::string what =
      absl::StrCat("The job store failed while ", doing, " (", sqlite3_errstr(result),
                   handle_ == nullptr ? "" : absl::StrCat(": ", sqlite3_errmsg(handle_)), ")");
  if (IsDiskFull(result, system_error)) {
    return MakeError(absl::StatusCode::kResourceExhausted, Reason::kDiskFull,
                     absl::StrCat(what,
                                  ": no space left where the server keeps its data; free "
                                  "some and try again."));
  }
  switch (result & 0xff) {
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
    case SQLITE_ERROR:  // a table or column that is not there
      return MakeError(absl::StatusCode::kFailedPrecondition, Reason::kInternal,
                       absl::StrCat(what,
                                    ": the file is damaged or is not a job store of this "
                                    "version; restore it from a backup, or move it away to start "
                                    "with an empty queue."));
    case SQLITE_NOMEM:
      return MakeError(absl::StatusCode::kUnavailable, Reason::kInternal, what + ".");
    default:
      return MakeError(absl::StatusCode::kUnavailable, Reason::kIoError,
                       absl::StrCat(what, "; try again."), {}, absl::Seconds(1));
  }
}

absl::Status SqliteConnection::Execute(const char* sql) {
  const int result = sqlite3_exec(handle_, sql, nullptr, nullptr, nullptr);
  return result == SQLITE_OK ? absl::OkStatus() : ToStatus(result, "executing");
}

SqliteConnection::Query SqliteConnection::Prepare(absl::string_view sql) {
  if (const auto found = statements_.find(sql); found != statements_.end()) {
    return Query(this, found->second, absl::OkStatus());
  }
  sqlite3_stmt* statement = nullptr;
  const int result = sqlite3_prepare_v3(handle_, sql.data(), static_cast<int>(sql.size()),
                                        SQLITE_PREPARE_PERSISTENT, &statement, nullptr);
  if (result != SQLITE_OK) return Query(this, nullptr, ToStatus(result, "preparing a query"));
  statements_.emplace(std::string(sql), statement);
  return Query(this, statement, absl::OkStatus());
}

int64_t SqliteConnection::changes() const { return sqlite3_changes64(handle_); }

int64_t SqliteConnection::last_insert_rowid() const { return sqlite3_last_insert_rowid(handle_); }

SqliteConnection::Query::Query(SqliteConnection* owner, sqlite3_stmt* statement,
                               absl::Status status)
    : owner_(owner), statement_(statement), status_(std::move(status)) {}

SqliteConnection::Query::Query(Query&& other) noexcept
    : owner_(other.owner_),
      statement_(std::exchange(other.statement_, nullptr)),
      status_(std::move(other.status_)),
      next_parameter_(other.next_parameter_) {}

SqliteConnection::Query::~Query() {
  if (statement_ == nullptr) return;
  sqlite3_reset(statement_);  // its result repeats the error that Next has returned already
  sqlite3_clear_bindings(statement_);
}

void SqliteConnection::Query::Note(int result) {
  if (result != SQLITE_OK && status_.ok()) status_ = owner_->ToStatus(result, "binding a value");
}

SqliteConnection::Query& SqliteConnection::Query::Bind(int64_t value) {
  if (statement_ != nullptr) Note(sqlite3_bind_int64(statement_, next_parameter_++, value));
  return *this;
}

SqliteConnection::Query& SqliteConnection::Query::Bind(absl::string_view text) {
  if (statement_ == nullptr) return *this;
  // A null pointer would bind NULL; an empty view may hold one.
  const char* data = text.data() == nullptr ? "" : text.data();
  Note(sqlite3_bind_text64(statement_, next_parameter_++, data, text.size(), SQLITE_TRANSIENT,
                           SQLITE_UTF8));
  return *this;
}

SqliteConnection::Query& SqliteConnection::Query::BindNull() {
  if (statement_ != nullptr) Note(sqlite3_bind_null(statement_, next_parameter_++));
  return *this;
}

absl::StatusOr<bool> SqliteConnection::Query::Next() {
  if (!status_.ok()) return status_;
  const int result = sqlite3_step(statement_);
  if (result == SQLITE_ROW) return true;
  if (result == SQLITE_DONE) return false;
  status_ = owner_->ToStatus(result, "executing a query");
  return status_;
}

absl::Status SqliteConnection::Query::Run() { return Next().status(); }

int64_t SqliteConnection::Query::Int(int column) const {
  return sqlite3_column_int64(statement_, column);
}

std::string SqliteConnection::Query::Text(int column) const {
  const unsigned char* text = sqlite3_column_text(statement_, column);
  if (text == nullptr) return "";
  return std::string(reinterpret_cast<const char*>(text),
                     static_cast<size_t>(sqlite3_column_bytes(statement_, column)));
}

bool SqliteConnection::Query::IsNull(int column) const {
  return sqlite3_column_type(statement_, column) == SQLITE_NULL;
}

absl::Status SqliteTransaction::Begin() {
  absl::Status status = connection_.Prepare("BEGIN IMMEDIATE").Run();
  open_ = status.ok();
  return status;
}

absl::Status SqliteTransaction::Commit() {
  absl::Status status = connection_.Prepare("COMMIT").Run();
  if (status.ok()) open_ = false;
  return status;
}

SqliteTransaction::~SqliteTransaction() {
  if (!open_) return;
  // SQLite has rolled back by itself after some errors; then there is nothing left to undo.
  connection_.Prepare("ROLLBACK").Run().IgnoreError();
}

}  // namespace sinq
