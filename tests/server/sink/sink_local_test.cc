#include "server/sink/sink_local.h"

#include <cerrno>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "server/base/error.h"
#include "tests/fakes/fault_file_system.h"
#include "tests/fakes/temp_dir.h"

namespace sinq {
namespace {

namespace fs = std::filesystem;

constexpr absl::string_view kStaging = "out/.model.sinq-job1.partial";

Reason ReasonOf(const absl::Status& status) { return GetErrorDetails(status).reason; }

absl::Span<const std::byte> Bytes(absl::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

class LocalSinkTest : public testing::Test {
 protected:
  LocalSinkTest() { fs::create_directory(temp_.Join("out")); }

  ResolvedPath Destination(const std::string& relative = "out/model") {
    std::shared_ptr<Directory> root = *OpenPosixDirectory(temp_.path(), false);
    return {MakeFaultDirectory(std::move(root), plan_), relative, "/" + relative};
  }
  absl::StatusOr<std::unique_ptr<Sink>> Open(absl::string_view job_id = "job1") {
    return OpenLocalSink(Destination(), job_id);
  }
  // Everything that a job does; the first error.
  absl::Status RunJob(absl::string_view job_id = "job1") {
    absl::StatusOr<std::unique_ptr<Sink>> sink = Open(job_id);
    if (!sink.ok()) return sink.status();
    absl::Status status = (*sink)->CreateFile("a", 8);
    if (status.ok()) status = (*sink)->WriteAt("a", 4, Bytes("5678"));
    if (status.ok()) status = (*sink)->WriteAt("a", 0, Bytes("1234"));
    if (status.ok()) status = (*sink)->SyncFile("a");
    if (status.ok()) status = (*sink)->PutFile(kManifestFileName, Manifest(job_id));
    if (status.ok()) status = (*sink)->Publish();
    return status;
  }
  // The next attempt: only Publish is needed if the first one got that far.
  absl::Status Finish() {
    if (!temp_.Exists("out/model")) return RunJob();
    absl::StatusOr<std::unique_ptr<Sink>> sink = Open();
    return sink.ok() ? (*sink)->Publish() : sink.status();
  }
  static std::string Manifest(absl::string_view job_id) {
    return absl::StrCat(R"({"files":[{"job_id":"nested"}],"job_id":")", job_id, "\"}");
  }
  std::vector<std::string> Listing(const std::string& name) {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(temp_.Join(name))) {
      names.push_back(entry.path().filename().string());
    }
    return names;
  }

  TempDir temp_;
  std::shared_ptr<FaultPlan> plan_ = std::make_shared<FaultPlan>();
};

TEST_F(LocalSinkTest, NothingIsVisibleBeforePublish) {
  absl::StatusOr<std::unique_ptr<Sink>> sink = Open();
  ASSERT_TRUE(sink.ok()) << sink.status();
  ASSERT_TRUE((*sink)->CreateFile("a", 4).ok());
  ASSERT_TRUE((*sink)->WriteAt("a", 0, Bytes("data")).ok());
  EXPECT_FALSE(temp_.Exists("out/model"));
  EXPECT_TRUE(temp_.Exists(kStaging));
  ASSERT_TRUE((*sink)->SyncFile("a").ok());
  ASSERT_TRUE((*sink)->PutFile("config.json", "{}").ok());
  ASSERT_TRUE((*sink)->Publish().ok());
  EXPECT_EQ(temp_.Read("out/model/a"), "data");
  EXPECT_EQ(temp_.Read("out/model/config.json"), "{}");
  EXPECT_FALSE(temp_.Exists(kStaging));
  EXPECT_TRUE((*sink)->Publish().ok());  // repeated
  EXPECT_TRUE((*sink)->Abort().ok());    // does not touch what is published
  EXPECT_TRUE(temp_.Exists("out/model/a"));
}

TEST_F(LocalSinkTest, NeverReplacesAnything) {
  temp_.Write("out/model/theirs", "x");
  EXPECT_EQ(ReasonOf(Open().status()), Reason::kOutputExists);
  EXPECT_EQ(ReasonOf(CheckLocalDestination(Destination())), Reason::kOutputExists);
  EXPECT_EQ(Listing("out"), std::vector<std::string>{"model"});
  fs::remove_all(temp_.Join("out/model"));

  // Somebody is quicker, with a directory, an empty one, a file, a dangling link.
  const auto appear = [this](int kind) {
    const std::string path = temp_.Join("out/model");
    if (kind == 0) temp_.Write("out/model/theirs", "x");
    if (kind == 1) fs::create_directory(path);
    if (kind == 2) temp_.Write("out/model", "x");
    if (kind == 3) fs::create_symlink("nowhere", path);
  };
  for (int kind = 0; kind < 4; ++kind) {
    absl::StatusOr<std::unique_ptr<Sink>> sink = Open();
    ASSERT_TRUE(sink.ok()) << sink.status();
    ASSERT_TRUE((*sink)->PutFile("mine", "m").ok());
    appear(kind);
    EXPECT_EQ(ReasonOf((*sink)->Publish()), Reason::kOutputExists) << kind;
    EXPECT_FALSE(temp_.Exists("out/model/mine"));
    EXPECT_EQ(ReasonOf(Open().status()), Reason::kOutputExists) << kind;
    ASSERT_TRUE((*sink)->Abort().ok());
    EXPECT_EQ(Listing("out"), std::vector<std::string>{"model"});
    fs::remove_all(temp_.Join("out/model"));
  }
}

TEST_F(LocalSinkTest, OfTwoRacingJobsOneWins) {
  std::vector<absl::Status> results(2);
  std::thread other([&] { results[1] = RunJob("job2"); });
  results[0] = RunJob("job1");
  other.join();
  EXPECT_EQ(results[0].ok() + results[1].ok(), 1) << results[0] << results[1];
  EXPECT_EQ(ReasonOf(results[results[0].ok() ? 1 : 0]), Reason::kOutputExists);
  EXPECT_EQ(temp_.Read("out/model/a"), "12345678");
}

TEST_F(LocalSinkTest, TheSameJobMayComeBackAfterPublishing) {
  ASSERT_TRUE(RunJob().ok());
  absl::StatusOr<std::unique_ptr<Sink>> again = Open();
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE((*again)->Publish().ok());
  std::byte out[2];
  EXPECT_TRUE((*again)->ReadOnceAt("a", 6, absl::MakeSpan(out)).ok());
  EXPECT_FALSE((*again)->CreateFile("b", 1).ok());
  EXPECT_FALSE((*again)->PutFile("a", "").ok());
  EXPECT_TRUE((*again)->Abort().ok());
  EXPECT_EQ(temp_.Read("out/model/a"), "12345678");
  EXPECT_EQ(ReasonOf(Open("job2").status()), Reason::kOutputExists);
  EXPECT_EQ(ReasonOf(Open("nested").status()), Reason::kOutputExists);
}

TEST_F(LocalSinkTest, AResumedJobFindsItsBytes) {
  {
    absl::StatusOr<std::unique_ptr<Sink>> sink = Open();
    ASSERT_TRUE((*sink)->CreateFile("a", 8).ok());
    ASSERT_TRUE((*sink)->WriteAt("a", 0, Bytes("1234")).ok());
  }
  absl::StatusOr<std::unique_ptr<Sink>> sink = Open();
  ASSERT_TRUE(sink.ok()) << sink.status();
  ASSERT_TRUE((*sink)->CreateFile("a", 8).ok());
  std::string out(4, '\0');
  const absl::Span<std::byte> bytes(reinterpret_cast<std::byte*>(out.data()), out.size());
  ASSERT_TRUE((*sink)->ReadOnceAt("a", 0, bytes).ok());
  EXPECT_EQ(out, "1234");
  ASSERT_TRUE((*sink)->PutFile("c", "long content").ok());
  ASSERT_TRUE((*sink)->PutFile("c", "short").ok());
  EXPECT_EQ(temp_.Read(absl::StrCat(kStaging, "/c")), "short");
}

// ENOSPC and EIO at every call of every kind: an error each time, nothing at the destination, and
// the next attempt succeeds with the same bytes.
TEST_F(LocalSinkTest, FaultsAtEverySite) {
  const FaultOperation operations[] = {
      FaultOperation::kOpenForWrite, FaultOperation::kMakeDirectory, FaultOperation::kOpenDirectory,
      FaultOperation::kWrite,        FaultOperation::kPreallocate,   FaultOperation::kSyncFile,
      FaultOperation::kRename,       FaultOperation::kSyncDirectory};
  for (const FaultOperation operation : operations) {
    for (const int error : {ENOSPC, EIO}) {
      int faults = 0;
      for (int nth = 1; nth < 20; ++nth) {
        plan_ = std::make_shared<FaultPlan>();
        plan_->Fail(operation, nth, error);
        const absl::Status status = RunJob();
        if (status.ok()) break;
        ++faults;
        EXPECT_EQ(ReasonOf(status), error == ENOSPC ? Reason::kDiskFull : Reason::kIoError);
        // Once the rename is done everything is there, though it may not be durable.
        if (temp_.Exists("out/model")) {
          EXPECT_EQ(operation, FaultOperation::kSyncDirectory);
        }
        plan_ = std::make_shared<FaultPlan>();
        EXPECT_TRUE(Finish().ok());
        EXPECT_EQ(temp_.Read("out/model/a"), "12345678");
        EXPECT_EQ(Listing("out"), std::vector<std::string>{"model"});
        fs::remove_all(temp_.Join("out/model"));
      }
      fs::remove_all(temp_.Join("out/model"));
      EXPECT_GT(faults, 0) << static_cast<int>(operation) << " never failed";
    }
  }
}

TEST_F(LocalSinkTest, WritesStayInsideThePlannedFile) {
  absl::StatusOr<std::unique_ptr<Sink>> sink = Open();
  ASSERT_TRUE((*sink)->CreateFile("a", 4).ok());
  EXPECT_FALSE((*sink)->WriteAt("a", 1, Bytes("1234")).ok());
  EXPECT_FALSE((*sink)->WriteAt("a", UINT64_MAX, Bytes("1")).ok());
  EXPECT_FALSE((*sink)->WriteAt("b", 0, Bytes("1")).ok());
  EXPECT_FALSE((*sink)->WriteOnceAt("a", 1, Bytes("1234")).ok());
  EXPECT_FALSE((*sink)->SyncFile("b").ok());
  for (const char* name : {"", ".", "..", "x/y", "/x", "../x", "x\ny"}) {
    EXPECT_FALSE((*sink)->CreateFile(name, 1).ok()) << name;
    EXPECT_FALSE((*sink)->PutFile(name, "x").ok()) << name;
  }
  std::byte out[1];
  EXPECT_FALSE((*sink)->ReadOnceAt("../../secret", 0, absl::MakeSpan(out)).ok());
}

TEST_F(LocalSinkTest, RefusesImpossibleDestinations) {
  EXPECT_TRUE(absl::IsNotFound(CheckLocalDestination(Destination("absent/model"))));
  EXPECT_TRUE(absl::IsAlreadyExists(CheckLocalDestination(Destination(""))));
  EXPECT_FALSE(CheckLocalDestination(Destination("out/" + std::string(240, 'x'))).ok());
  EXPECT_FALSE(CheckLocalDestination(Destination("../x")).ok());
  for (const char* id : {"", "a/b", "..", "a b"}) {
    EXPECT_FALSE(Open(id).ok()) << id;
  }
  TempDir other;
  fs::create_directory_symlink(other.path(), temp_.Join("out/link"));
  EXPECT_EQ(ReasonOf(CheckLocalDestination(Destination("out/link/model"))),
            Reason::kPathOutsideRoots);
  EXPECT_TRUE(CheckLocalDestination(Destination()).ok());
  EXPECT_EQ(Listing("out"), std::vector<std::string>{"link"});
}

TEST_F(LocalSinkTest, AbortRemovesTheStagingDirectory) {
  absl::StatusOr<std::unique_ptr<Sink>> sink = Open();
  ASSERT_TRUE((*sink)->CreateFile("a", 1 << 20).ok());
  EXPECT_TRUE((*sink)->Abort().ok());
  EXPECT_TRUE(Listing("out").empty());
  EXPECT_TRUE((*sink)->Abort().ok());
}

}  // namespace
}  // namespace sinq
