// The tables of the embedded store, and the check that a file has exactly them.
#ifndef SINQ_SERVER_JOB_JOB_SCHEMA_H_
#define SINQ_SERVER_JOB_JOB_SCHEMA_H_

#include "absl/status/status.h"
#include "server/job/sqlite_connection.h"

namespace sinq {

inline constexpr int kJobSchemaVersion = 1;  // PRAGMA user_version

// Creates the tables in an empty file. FailedPrecondition, saying what to do, for another version,
// for a database that is not ours and for a damaged one.
absl::Status EnsureJobSchema(SqliteConnection& connection);

}  // namespace sinq

#endif  // SINQ_SERVER_JOB_JOB_SCHEMA_H_
