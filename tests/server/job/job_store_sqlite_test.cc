#include <sqlite3.h>
#include <sys/types.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fakes/fake_clock.h"
#include "tests/fakes/native_spec.h"
#include "tests/fakes/temp_dir.h"
#include "tests/server/job/job_store_conformance.h"

namespace sinq {
namespace {

using ::testing::HasSubstr;

class SqliteHarness final : public JobStoreHarness {
 public:
  SqliteHarness() { Reopen(); }
  JobStore& store() override { return *store_; }
  void Advance(absl::Duration by) override { clock_.Advance(by); }
  void JumpWall(absl::Duration by) override { clock_.JumpWall(by); }
  void Reopen() override {
    store_.reset();
    auto store = OpenSqliteJobStore(path(), clock_);
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }
  void Reboot() {
    store_.reset();
    clock_.Reboot("boot-2");
    Reopen();
  }
  void Close() { store_.reset(); }
  std::string path() const { return dir_.Join("jobs.db"); }
  const Clock& clock() const { return clock_; }

 private:
  TempDir dir_;
  FakeClock clock_;
  std::unique_ptr<JobStore> store_;
};

std::unique_ptr<JobStoreHarness> MakeHarness() { return std::make_unique<SqliteHarness>(); }
INSTANTIATE_TEST_SUITE_P(Sqlite, JobStoreConformance, ::testing::Values(&MakeHarness));

JobSpec Spec() {
  JobSpec spec = NativeSpec();
  spec.source_uri = "/in";
  spec.output_uri = "/out";
  return spec;
}

void Sql(const std::string& path, const char* sql) {
  sqlite3* handle = nullptr;
  ASSERT_EQ(sqlite3_open(path.c_str(), &handle), SQLITE_OK);
  EXPECT_EQ(sqlite3_exec(handle, sql, nullptr, nullptr, nullptr), SQLITE_OK)
      << sqlite3_errmsg(handle);
  sqlite3_close(handle);
}

TEST(SqliteJobStoreTest, ASecondProcessIsRefused) {
  SqliteHarness harness;
  const absl::Status status = OpenSqliteJobStore(harness.path(), harness.clock()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("in use by process"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("--data-dir"));
}

TEST(SqliteJobStoreTest, AnotherSchemaVersionIsRefused) {
  SqliteHarness harness;
  harness.Close();
  Sql(harness.path(), "PRAGMA user_version = 7");
  const absl::Status status = OpenSqliteJobStore(harness.path(), harness.clock()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("schema version 7"));
}

TEST(SqliteJobStoreTest, AnotherProgramsDatabaseIsRefused) {
  TempDir dir;
  FakeClock clock;
  Sql(dir.Join("jobs.db"), "CREATE TABLE t (x)");
  EXPECT_EQ(OpenSqliteJobStore(dir.Join("jobs.db"), clock).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(SqliteJobStoreTest, AFileThatIsNoDatabaseIsRefused) {
  TempDir dir;
  FakeClock clock;
  dir.Write("jobs.db", std::string(8192, 'x'));
  const absl::Status status = OpenSqliteJobStore(dir.Join("jobs.db"), clock).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("backup"));
}

TEST(SqliteJobStoreTest, ADamagedDatabaseIsRefused) {
  SqliteHarness harness;
  for (int i = 0; i < 50; ++i) ASSERT_TRUE(harness.store().Create(Spec(), "").ok());
  harness.Close();
  std::fstream file(harness.path(), std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(4096);  // every page but the first, which holds the version
  const auto size = std::filesystem::file_size(harness.path());
  ASSERT_GT(size, 8192u);
  file << std::string(size - 4096, '\x5a');
  file.close();
  const absl::Status status = OpenSqliteJobStore(harness.path(), harness.clock()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
}

TEST(SqliteJobStoreTest, AMissingDirectoryIsAnError) {
  TempDir dir;
  FakeClock clock;
  EXPECT_FALSE(OpenSqliteJobStore(dir.Join("none/jobs.db"), clock).ok());
}

TEST(SqliteJobStoreTest, OnlyTheOwnerMayReadTheFiles) {
  SqliteHarness harness;
  ASSERT_TRUE(harness.store().Create(Spec(), "").ok());
  for (const char* suffix : {"", "-wal", "-shm", ".lock"}) {
    const auto permissions = std::filesystem::status(harness.path() + suffix).permissions();
    EXPECT_EQ(permissions & std::filesystem::perms::mask,
              std::filesystem::perms::owner_read | std::filesystem::perms::owner_write)
        << suffix;
  }
}

TEST(SqliteJobStoreTest, LeasesOfAnotherBootMeanNothing) {
  SqliteHarness harness;
  ASSERT_TRUE(harness.store().Create(Spec(), "").ok());
  auto first = harness.store().Acquire("w", absl::Hours(1000));
  ASSERT_TRUE(first.ok() && first->has_value());
  harness.Reboot();
  auto second = harness.store().Acquire("w", absl::Seconds(30));
  ASSERT_TRUE(second.ok() && second->has_value());
  EXPECT_GT((*second)->second.epoch, (*first)->second.epoch);
  ASSERT_TRUE(harness.store().Retry((*second)->second, absl::Hours(1), {"INTERNAL", {}, "x"}).ok());
  harness.Reboot();  // with the same id: the waiting time goes on
  EXPECT_GE(*harness.store().OldestQueuedAge(), absl::ZeroDuration());
}

TEST(SqliteJobStoreTest, TheQueueIsBounded) {
  SqliteHarness harness;
  harness.Close();
  Sql(harness.path(),
      "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9999) "
      "INSERT INTO jobs (id, request_id, spec, state, queued_boot_id, queued_ns, queued_us, "
      "ready_ns, progress, create_us) "
      "SELECT 'job-' || i, 'req-' || i, '{}', 'QUEUED', 'boot-1', 0, 0, 0, '{}', 0 FROM n");
  harness.Reopen();
  ASSERT_TRUE(harness.store().Create(Spec(), "last").ok());
  const absl::Status full = harness.store().Create(Spec(), "").status();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(GetErrorDetails(full).reason, Reason::kQueueFull);
  EXPECT_TRUE(GetErrorDetails(full).retry_after.has_value());
  // A repeated request is no new job.
  EXPECT_TRUE(harness.store().Create(Spec(), "last")->replayed);
}

TEST(SqliteJobStoreTest, EventsAreARing) {
  SqliteHarness harness;
  const std::string id = harness.store().Create(Spec(), "")->job.id;
  harness.Close();
  Sql(harness.path(), "UPDATE jobs SET last_event = 100000");
  harness.Reopen();
  ASSERT_TRUE(harness.store().RequestCancel(id).ok());
  const auto events = harness.store().Events(id, 0, 10);
  ASSERT_TRUE(events.ok());
  ASSERT_EQ(events->size(), 1u);
  EXPECT_EQ(events->front().sequence, 100001u);
}

ssize_t NoSpace(int, const void*, size_t, off_t) {
  errno = ENOSPC;
  return -1;
}

// While this lives, SQLite's writes meet a full disk: through the hook that SQLite has for tests.
class FullDisk {
 public:
  FullDisk() { Install(reinterpret_cast<sqlite3_syscall_ptr>(&NoSpace)); }
  ~FullDisk() { Install(nullptr); }  // null: the original

 private:
  void Install(sqlite3_syscall_ptr call) {
    sqlite3_vfs* vfs = sqlite3_vfs_find(nullptr);
    for (const char* name : {"pwrite", "pwrite64"}) {
      EXPECT_EQ(vfs->xSetSystemCall(vfs, name, call), SQLITE_OK);
    }
  }
};

TEST(SqliteJobStoreTest, AFullDiskIsSaidAndSurvived) {
  SqliteHarness harness;
  const std::string id = harness.store().Create(Spec(), "")->job.id;
  const auto lease = harness.store().Acquire("w", absl::Seconds(30));
  ASSERT_TRUE(lease.ok() && lease->has_value());
  {
    const FullDisk full;
    for (const absl::Status& status :
         {harness.store().Create(Spec(), "req").status(),
          harness.store().AddFinishedUnits((*lease)->second, {{"a", "{}"}}),
          harness.store().Finish((*lease)->second, JobState::kSucceeded, {}, {})}) {
      EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
      EXPECT_EQ(GetErrorDetails(status).reason, Reason::kDiskFull);
    }
    EXPECT_EQ(harness.store().Get(id)->state, JobState::kRunning);  // reading goes on
  }
  EXPECT_FALSE(harness.store().Create(Spec(), "req")->replayed);
  EXPECT_TRUE(harness.store().FinishedUnits(id)->empty());
  EXPECT_TRUE(harness.store().Finish((*lease)->second, JobState::kSucceeded, {}, {}).ok());
}

}  // namespace
}  // namespace sinq
