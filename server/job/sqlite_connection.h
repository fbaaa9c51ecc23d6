// SQLite as statuses and bound values. No statement is ever built from a value.
#ifndef SINQ_SERVER_JOB_SQLITE_CONNECTION_H_
#define SINQ_SERVER_JOB_SQLITE_CONNECTION_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

struct sqlite3;
struct sqlite3_stmt;

namespace sinq {

// Not thread-safe: one mutex of the owner guards a connection and all of its queries.
class SqliteConnection {
 public:
  // Creates the file (mode 0600) if missing. Sets WAL, synchronous=FULL, foreign keys,
  // busy_timeout.
  static absl::StatusOr<std::unique_ptr<SqliteConnection>> Open(const std::string& path);
  ~SqliteConnection();
  SqliteConnection(const SqliteConnection&) = delete;
  SqliteConnection& operator=(const SqliteConnection&) = delete;

  // One execution of a prepared statement: bind in order, then step. The statement is reset when
  // this is destroyed, so a query must not outlive its scope. Errors stay in it until Next or Run.
  class Query {
   public:
    Query(Query&& other) noexcept;
    Query& operator=(Query&&) = delete;
    ~Query();
    Query& Bind(int64_t value);
    Query& Bind(absl::string_view text);
    Query& BindNull();
    absl::StatusOr<bool> Next();  // true: there is a row
    absl::Status Run();           // for statements without rows
    int64_t Int(int column) const;
    std::string Text(int column) const;
    bool IsNull(int column) const;

   private:
    friend class SqliteConnection;
    Query(SqliteConnection* owner, sqlite3_stmt* statement, absl::Status status);
    void Note(int result);
    SqliteConnection* owner_;
    sqlite3_stmt* statement_;
    absl::Status status_;
    int next_parameter_ = 1;
  };

  // Prepared once per text, then reused.
  Query Prepare(absl::string_view sql);
  // Statements without values, several allowed.
  absl::Status Execute(const char* sql);
  int64_t changes() const;  // rows touched by the last statement
  int64_t last_insert_rowid() const;

 private:
  explicit SqliteConnection(sqlite3* handle) : handle_(handle) {}
  // ResourceExhausted/kDiskFull, FailedPrecondition for what is no database, else Unavailable.
  absl::Status ToStatus(int result, absl::string_view doing) const;

  sqlite3* const handle_;
  std::map<std::string, sqlite3_stmt*, std::less<>> statements_;
};

// BEGIN IMMEDIATE ... COMMIT; rolled back unless committed.
class SqliteTransaction {
 public:
  explicit SqliteTransaction(SqliteConnection& connection) : connection_(connection) {}
  ~SqliteTransaction();
  SqliteTransaction(const SqliteTransaction&) = delete;
  SqliteTransaction& operator=(const SqliteTransaction&) = delete;
  absl::Status Begin();
  absl::Status Commit();

 private:
  SqliteConnection& connection_;
  bool open_ = false;
};

}  // namespace sinq

#endif  // SINQ_SERVER_JOB_SQLITE_CONNECTION_H_
