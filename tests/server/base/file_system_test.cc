#include "server/base/file_system.h"

#include <sys/stat.h>

#include <cerrno>
#include <filesystem>
#include <memory>
#include <string>

#include "gtest/gtest.h"
#include "server/base/error.h"
#include "tests/fakes/fault_file_system.h"
#include "tests/fakes/temp_dir.h"

namespace sinq {
namespace {

namespace fs = std::filesystem;

Reason ReasonOf(const absl::Status& status) { return GetErrorDetails(status).reason; }

absl::Span<const std::byte> Bytes(absl::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

std::string ReadAll(const Directory& dir, absl::string_view name) {
  absl::StatusOr<std::unique_ptr<File>> file = dir.OpenForRead(name);
  if (!file.ok()) return std::string(file.status().message());
  std::string out(*(*file)->Size(), '\0');
  const absl::Status status =
      (*file)->ReadAt(0, absl::MakeSpan(reinterpret_cast<std::byte*>(out.data()), out.size()));
  return status.ok() ? out : std::string(status.message());
}

class DirectoryTest : public testing::Test {
 protected:
  DirectoryTest() {
    fs::create_directory(temp_.Join("root"));
    temp_.Write("secret", "secret");
    dir_ = *OpenPosixDirectory(temp_.Join("root"), false);
  }

  TempDir temp_;
  std::unique_ptr<Directory> dir_;
};

TEST_F(DirectoryTest, WritesAndReads) {
  absl::StatusOr<std::unique_ptr<File>> file = dir_->OpenForWrite("f");
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_TRUE((*file)->Preallocate(10).ok());
  EXPECT_EQ(*(*file)->Size(), 10u);
  ASSERT_TRUE((*file)->WriteAt(3, Bytes("abc")).ok());
  (*file)->WillSync(3, 3);
  (*file)->WillSync(UINT64_MAX - 1, 5);  // hints of nonsense are no harm
  (*file)->WillRead(UINT64_MAX - 1, 5);
  ASSERT_TRUE((*file)->Sync().ok());
  EXPECT_EQ(ReadAll(*dir_, "f"), std::string("\0\0\0abc\0\0\0\0", 10));
  ASSERT_TRUE((*file)->Preallocate(4).ok());  // shorter
  EXPECT_EQ(ReadAll(*dir_, "f"), std::string("\0\0\0a", 4));
  std::byte out[8];
  const absl::Status status = (*file)->ReadAt(2, absl::MakeSpan(out));
  EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(GetErrorDetails(status).metadata.at("byte_offset"), "4");
  EXPECT_FALSE((*file)->ReadAt(UINT64_MAX, absl::MakeSpan(out)).ok());
  EXPECT_FALSE((*file)->WriteAt(UINT64_MAX - 1, Bytes("abc")).ok());
  EXPECT_FALSE((*file)->Preallocate(UINT64_MAX).ok());
}

TEST_F(DirectoryTest, NothingLeadsOutside) {
  fs::create_directory_symlink(temp_.path(), temp_.Join("root/up"));
  fs::create_symlink("../secret", temp_.Join("root/relative"));
  fs::create_symlink(temp_.Join("secret"), temp_.Join("root/absolute"));
  fs::create_directory_symlink("/proc/self/root", temp_.Join("root/magic"));
  fs::create_directory(temp_.Join("root/sub"));
  const char* const names[] = {"../secret",        "/etc/passwd", "sub/../../secret",
                               "up/secret",        "relative",    "absolute",
                               "magic/etc/passwd", "..",          "sub/../absolute"};
  for (const char* name : names) {
    EXPECT_EQ(ReasonOf(dir_->OpenForRead(name).status()), Reason::kPathOutsideRoots) << name;
    EXPECT_EQ(ReasonOf(dir_->OpenForWrite(name).status()), Reason::kPathOutsideRoots) << name;
    EXPECT_FALSE(dir_->OpenDirectory(name).ok()) << name;
  }
  for (const char* name : {"../new", "up/new", "/tmp/new", "magic/new"}) {
    EXPECT_EQ(ReasonOf(dir_->MakeDirectory(name)), Reason::kPathOutsideRoots) << name;
    EXPECT_EQ(ReasonOf(dir_->Rename("sub", name)), Reason::kPathOutsideRoots) << name;
    EXPECT_EQ(ReasonOf(dir_->RemoveFile(name)), Reason::kPathOutsideRoots) << name;
    EXPECT_EQ(ReasonOf(dir_->RemoveTree(name)), Reason::kPathOutsideRoots) << name;
    EXPECT_FALSE(dir_->Exists(name)) << name;
  }
  EXPECT_EQ(temp_.Read("secret"), "secret");
}

TEST_F(DirectoryTest, LinksThatStayInsideAreFine) {
  temp_.Write("root/blobs/b1", "blob");
  fs::create_directories(temp_.Join("root/snapshots/main"));
  fs::create_symlink("../../blobs/b1", temp_.Join("root/snapshots/main/config.json"));
  EXPECT_EQ(ReadAll(*dir_, "snapshots/main/config.json"), "blob");
  // But never written through.
  EXPECT_FALSE(dir_->OpenForWrite("snapshots/main/config.json").ok());
  // A directory opened below confines to itself.
  absl::StatusOr<std::unique_ptr<Directory>> snapshot = dir_->OpenDirectory("snapshots/main");
  ASSERT_TRUE(snapshot.ok());
  EXPECT_EQ(ReasonOf((*snapshot)->OpenForRead("config.json").status()), Reason::kPathOutsideRoots);
}

TEST_F(DirectoryTest, OnlyRegularFilesAreRead) {
  ASSERT_EQ(::mkfifo(temp_.Join("root/fifo").c_str(), 0600), 0);
  fs::create_directory(temp_.Join("root/d"));
  EXPECT_TRUE(absl::IsInvalidArgument(dir_->OpenForRead("fifo").status()));  // and does not wait
  EXPECT_TRUE(absl::IsInvalidArgument(dir_->OpenForRead("d").status()));
  EXPECT_TRUE(absl::IsNotFound(dir_->OpenForRead("absent").status()));
}

TEST_F(DirectoryTest, RenameNeverReplaces) {
  temp_.Write("root/a/f", "a");
  temp_.Write("root/b/f", "b");
  fs::create_directory(temp_.Join("root/empty"));
  EXPECT_TRUE(absl::IsAlreadyExists(dir_->Rename("a", "b")));
  EXPECT_TRUE(absl::IsAlreadyExists(dir_->Rename("a", "empty")));  // rename(2) would replace it
  EXPECT_TRUE(dir_->Rename("a", "c").ok());
  EXPECT_EQ(temp_.Read("root/c/f"), "a");
  EXPECT_EQ(temp_.Read("root/b/f"), "b");
  EXPECT_TRUE(absl::IsAlreadyExists(dir_->MakeDirectory("b")));
}

TEST_F(DirectoryTest, RemoveTreeStopsAtLinks) {
  temp_.Write("outside/keep", "x");
  temp_.Write("root/t/sub/f", "x");
  fs::create_directory_symlink(temp_.Join("outside"), temp_.Join("root/t/link"));
  fs::create_directory_symlink(temp_.Join("outside"), temp_.Join("root/toplink"));
  EXPECT_TRUE(dir_->RemoveTree("t").ok());
  EXPECT_TRUE(dir_->RemoveTree("toplink").ok());
  EXPECT_FALSE(temp_.Exists("root/t"));
  EXPECT_FALSE(temp_.Exists("root/toplink"));
  EXPECT_EQ(temp_.Read("outside/keep"), "x");
  EXPECT_TRUE(dir_->RemoveTree("t").ok());
  EXPECT_TRUE(dir_->RemoveTree("no/such").ok());
  EXPECT_FALSE(dir_->RemoveTree(".").ok());
}

TEST_F(DirectoryTest, ListIsSortedAndBounded) {
  temp_.Write("root/b", "12");
  temp_.Write("root/a/x", "");
  fs::create_symlink("b", temp_.Join("root/c"));
  const absl::StatusOr<std::vector<DirEntry>> entries = dir_->List(3);
  ASSERT_TRUE(entries.ok());
  ASSERT_EQ(entries->size(), 3u);
  EXPECT_EQ((*entries)[0].name, "a");
  EXPECT_TRUE((*entries)[0].is_directory);
  EXPECT_EQ((*entries)[1].size_bytes, 2u);
  EXPECT_TRUE((*entries)[1].is_regular_file);
  EXPECT_TRUE((*entries)[2].is_symlink);
  EXPECT_EQ(ReasonOf(dir_->List(2).status()), Reason::kLimitExceeded);
  EXPECT_GT(*dir_->FreeBytes(), 0u);
  EXPECT_TRUE(dir_->Sync().ok());
}

TEST(FileSystem, ResolvesBeneathRootsOnly) {
  TempDir temp;
  temp.Write("models/m/config.json", "{}");
  fs::create_directories(temp.Join("models/inner"));
  fs::create_directories(temp.Join("models-private"));
  fs::create_directory_symlink(temp.Join("models"), temp.Join("alias"));
  const absl::StatusOr<std::unique_ptr<FileSystem>> files =
      MakePosixFileSystem({temp.Join("alias"), temp.Join("models/inner") + "/."});
  ASSERT_TRUE(files.ok()) << files.status();

  for (const std::string& uri :
       {temp.Join("models/m"), temp.Join("alias/m/"), "file://" + temp.Join("models/./m")}) {
    const absl::StatusOr<ResolvedPath> path = (*files)->Resolve(uri);
    ASSERT_TRUE(path.ok()) << path.status();
    EXPECT_EQ(path->relative, "m") << uri;
    EXPECT_EQ(path->display, uri);
    EXPECT_EQ(ReadAll(*path->root, path->relative + "/config.json"), "{}");
  }
  EXPECT_EQ((*files)->Resolve(temp.Join("models/inner/x"))->relative, "x");  // the longest root
  EXPECT_EQ((*files)->Resolve(temp.Join("models"))->relative, "");

  for (const std::string& uri :
       {temp.Join("models-private"), temp.path(), std::string("/"), std::string("/etc/passwd"),
        temp.Join("models/../models-private"), "file://" + temp.Join("models/%2e%2e/x")}) {
    EXPECT_EQ(ReasonOf((*files)->Resolve(uri).status()), Reason::kPathOutsideRoots) << uri;
  }
  EXPECT_TRUE(absl::IsInvalidArgument((*files)->Resolve("models/m").status()));
  EXPECT_TRUE(absl::IsNotFound(MakePosixFileSystem({temp.Join("absent")}).status()));
}

TEST(FileSystem, OpensAndMakesItsOwnDirectory) {
  TempDir temp;
  EXPECT_TRUE(absl::IsNotFound(OpenPosixDirectory(temp.Join("a/b"), false).status()));
  EXPECT_TRUE(OpenPosixDirectory(temp.Join("a/b"), true).ok());
  temp.Write("file", "");
  EXPECT_FALSE(OpenPosixDirectory(temp.Join("file"), true).ok());
}

TEST(FaultFileSystem, FailsTheChosenCall) {
  TempDir temp;
  temp.Write("f", "0123456789");
  auto plan = std::make_shared<FaultPlan>();
  const std::unique_ptr<Directory> dir =
      MakeFaultDirectory(*OpenPosixDirectory(temp.path(), false), plan);
  plan->Fail(FaultOperation::kWrite, 2, ENOSPC);
  plan->ShortRead(1);
  absl::StatusOr<std::unique_ptr<File>> file = dir->OpenForWrite("f");
  EXPECT_TRUE((*file)->WriteAt(0, Bytes("ab")).ok());
  EXPECT_EQ(ReasonOf((*file)->WriteAt(2, Bytes("cdef"))), Reason::kDiskFull);
  EXPECT_TRUE((*file)->WriteAt(8, Bytes("gh")).ok());
  EXPECT_EQ(temp.Read("f"), "abcd4567gh");
  std::byte out[2];
  EXPECT_TRUE(absl::IsOutOfRange((*file)->ReadAt(0, absl::MakeSpan(out))));
  EXPECT_TRUE((*file)->ReadAt(0, absl::MakeSpan(out)).ok());
  EXPECT_EQ(plan->Count(FaultOperation::kWrite), 3);
}

}  // namespace
}  // namespace sinq
