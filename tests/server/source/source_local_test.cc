#include "server/source/source_local.h"

#include <cerrno>
#include <filesystem>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "server/base/error.h"
#include "server/base/limits.h"
#include "tests/fakes/fault_file_system.h"
#include "tests/fakes/safetensors_file.h"
#include "tests/fakes/temp_dir.h"

namespace sinq {
namespace {

namespace fs = std::filesystem;

Reason ReasonOf(const absl::Status& status) { return GetErrorDetails(status).reason; }

// One U8 tensor that holds `data`.
std::string OneTensor(absl::string_view name, absl::string_view data) {
  return SafetensorsFile(absl::StrCat("{\"", name, R"(":{"dtype":"U8","shape":[)", data.size(),
                                      R"(],"data_offsets":[0,)", data.size(), "]}}"),
                         data);
}

std::string TwoTensors() {
  return SafetensorsFile(R"({"b":{"dtype":"U8","shape":[2],"data_offsets":[3,5]},)"
                         R"("a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}})",
                         "aaabb");
}

class LocalSourceTest : public testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<ModelSource>> Open(const std::string& relative) {
    const absl::StatusOr<std::unique_ptr<FileSystem>> files = MakePosixFileSystem({temp_.path()});
    absl::StatusOr<ResolvedPath> path = (*files)->Resolve(temp_.Join(relative));
    if (!path.ok()) return path.status();
    path->root = MakeFaultDirectory(path->root, plan_);
    return OpenLocalSource(*path);
  }

  static std::string Read(const ModelSource& source, const SourceTensor& tensor) {
    std::string out(tensor.size_bytes, '\0');
    const absl::Status status =
        source.Read(tensor.file_index, tensor.offset,
                    absl::MakeSpan(reinterpret_cast<std::byte*>(out.data()), out.size()));
    return status.ok() ? out : std::string(status.message());
  }

  TempDir temp_;
  std::shared_ptr<FaultPlan> plan_ = std::make_shared<FaultPlan>();
};

TEST_F(LocalSourceTest, SingleFileModel) {
  temp_.Write("m/model.safetensors", TwoTensors());
  temp_.Write("m/config.json", "{\"x\": 1}");
  temp_.Write("m/tokenizer.json", "tok");
  temp_.Write("m/pytorch_model.bin", "weights");
  temp_.Write("m/.hidden", "h");
  temp_.Write("m/sub/file.json", "s");
  absl::StatusOr<std::unique_ptr<ModelSource>> source = Open("m");
  ASSERT_TRUE(source.ok()) << source.status();
  ASSERT_EQ((*source)->tensors().size(), 2u);
  EXPECT_EQ((*source)->tensors()[0].name, "a");
  EXPECT_EQ(Read(**source, (*source)->tensors()[0]), "aaa");
  EXPECT_EQ(Read(**source, (*source)->tensors()[1]), "bb");
  EXPECT_EQ((*source)->config_json(), "{\"x\": 1}");
  ASSERT_EQ((*source)->aux_files().size(), 1u);
  EXPECT_EQ((*source)->aux_files()[0].name, "tokenizer.json");
  EXPECT_EQ(*(*source)->ReadAuxFile("tokenizer.json", 3), "tok");
  EXPECT_EQ(ReasonOf((*source)->ReadAuxFile("tokenizer.json", 2).status()), Reason::kLimitExceeded);
  EXPECT_EQ(*(*(*source)->OpenAuxFile("tokenizer.json"))->Size(), 3u);
  for (const char* name : {"pytorch_model.bin", "../m/tokenizer.json", "sub/file.json", ""}) {
    EXPECT_FALSE((*source)->OpenAuxFile(name).ok()) << name;
  }
}

TEST_F(LocalSourceTest, BareFile) {
  temp_.Write("m/x.safetensors", TwoTensors());
  temp_.Write("m/config.json", "{}");
  absl::StatusOr<std::unique_ptr<ModelSource>> source = Open("m/x.safetensors");
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ((*source)->files()[0].name, "x.safetensors");
  EXPECT_FALSE((*source)->config_json().has_value());
  EXPECT_TRUE((*source)->aux_files().empty());
  EXPECT_EQ(Read(**source, (*source)->tensors()[1]), "bb");
}

TEST_F(LocalSourceTest, ShardedModelFollowsItsIndex) {
  temp_.Write("m/s1.safetensors", OneTensor("a", "A1"));
  temp_.Write("m/s2.safetensors",
              TwoTensors());  // holds another "a", which the index does not want
  temp_.Write("m/consolidated.safetensors", OneTensor("a", "no"));
  temp_.Write("m/model.safetensors.index.json",
              R"({"weight_map":{"a":"s1.safetensors","b":"s2.safetensors"}})");
  absl::StatusOr<std::unique_ptr<ModelSource>> source = Open("m");
  ASSERT_TRUE(source.ok()) << source.status();
  ASSERT_EQ((*source)->tensors().size(), 2u);
  ASSERT_EQ((*source)->files().size(), 2u);
  EXPECT_EQ(Read(**source, (*source)->tensors()[0]), "A1");
  EXPECT_EQ(Read(**source, (*source)->tensors()[1]), "bb");
}

TEST_F(LocalSourceTest, TheSingleFileWinsOverAnIndex) {
  temp_.Write("m/model.safetensors", OneTensor("a", "x"));
  temp_.Write("m/model.safetensors.index.json", R"({"weight_map":{"a":"gone.safetensors"}})");
  EXPECT_TRUE(Open("m").ok());
}

TEST_F(LocalSourceTest, AnIndexThatLiesIsRefused) {
  temp_.Write("m/s1.safetensors", OneTensor("a", "A1"));
  const std::string index = "m/model.safetensors.index.json";
  temp_.Write(index, R"({"weight_map":{"a":"s1.safetensors","b":"s2.safetensors"}})");
  absl::Status status = Open("m").status();
  EXPECT_EQ(ReasonOf(status), Reason::kMalformedSource);
  EXPECT_NE(status.message().find("s2.safetensors"), absl::string_view::npos) << status;

  temp_.Write(index, R"({"weight_map":{"a":"s1.safetensors","zz":"s1.safetensors"}})");
  status = Open("m").status();
  EXPECT_EQ(ReasonOf(status), Reason::kMalformedSource);
  EXPECT_NE(status.message().find("\"zz\""), absl::string_view::npos) << status;

  temp_.Write("secret.safetensors", OneTensor("a", "s"));
  temp_.Write(index, R"({"weight_map":{"a":"../secret.safetensors"}})");
  EXPECT_EQ(ReasonOf(Open("m").status()), Reason::kMalformedSource);
}

TEST_F(LocalSourceTest, WhatIsNotThere) {
  temp_.Write("empty/readme", "");
  temp_.Write("file.bin", "");
  EXPECT_TRUE(absl::IsNotFound(Open("absent").status()));
  EXPECT_TRUE(absl::IsNotFound(Open("absent.safetensors").status()));
  const absl::Status status = Open("empty").status();
  EXPECT_TRUE(absl::IsNotFound(status));
  EXPECT_NE(status.message().find("neither model.safetensors"), absl::string_view::npos) << status;
  EXPECT_FALSE(Open("file.bin").ok());
  fs::create_directories(temp_.Join("d.safetensors"));
  temp_.Write("d.safetensors/model.safetensors", TwoTensors());
  EXPECT_TRUE(Open("d.safetensors").ok());
}

TEST_F(LocalSourceTest, TheHuggingFaceCacheIsReadable) {
  temp_.Write("hub/blobs/b1", TwoTensors());
  temp_.Write("hub/blobs/b2", "{}");
  temp_.Write("hub/blobs/b3", "tok");
  fs::create_directories(temp_.Join("hub/snapshots/rev"));
  fs::create_symlink("../../blobs/b1", temp_.Join("hub/snapshots/rev/model.safetensors"));
  fs::create_symlink("../../blobs/b2", temp_.Join("hub/snapshots/rev/config.json"));
  fs::create_symlink("../../blobs/b3", temp_.Join("hub/snapshots/rev/tokenizer.json"));
  absl::StatusOr<std::unique_ptr<ModelSource>> source = Open("hub/snapshots/rev");
  ASSERT_TRUE(source.ok()) << source.status();
  ASSERT_EQ((*source)->aux_files().size(), 1u);
  EXPECT_EQ((*source)->aux_files()[0].size_bytes, 3u);
  EXPECT_EQ(*(*source)->ReadAuxFile("tokenizer.json", 10), "tok");
}

TEST_F(LocalSourceTest, LinksOutOfTheRootAreRefused) {
  TempDir other;
  other.Write("w.safetensors", TwoTensors());
  other.Write("secret", "s");
  fs::create_directories(temp_.Join("m"));
  fs::create_symlink(other.Join("w.safetensors"), temp_.Join("m/model.safetensors"));
  EXPECT_EQ(ReasonOf(Open("m").status()), Reason::kPathOutsideRoots);
  fs::remove(temp_.Join("m/model.safetensors"));
  temp_.Write("m/model.safetensors", TwoTensors());
  fs::create_symlink(other.Join("secret"), temp_.Join("m/tokenizer.json"));
  EXPECT_EQ(ReasonOf(Open("m").status()), Reason::kPathOutsideRoots);
  fs::create_directory_symlink(other.path(), temp_.Join("linked"));
  EXPECT_EQ(ReasonOf(Open("linked/w.safetensors").status()), Reason::kPathOutsideRoots);
}

TEST_F(LocalSourceTest, ReadsAreBoundedByTheFile) {
  temp_.Write("m/model.safetensors", TwoTensors());
  absl::StatusOr<std::unique_ptr<ModelSource>> source = Open("m");
  ASSERT_TRUE(source.ok());
  const uint64_t size = (*source)->files()[0].size_bytes;
  std::byte out[4];
  for (const uint64_t offset : {size - 3, size, size + 1, UINT64_MAX}) {
    EXPECT_FALSE((*source)->Read(0, offset, absl::MakeSpan(out)).ok()) << offset;
  }
  EXPECT_FALSE((*source)->Read(1, 0, absl::MakeSpan(out)).ok());
  EXPECT_FALSE((*source)->Read(-1, 0, absl::MakeSpan(out)).ok());
  EXPECT_TRUE((*source)->Read(0, size - 4, absl::MakeSpan(out)).ok());
  for (const int file : {-1, 0, 1}) (*source)->WillRead(file, size - 4, UINT64_MAX);  // only hints
}

TEST_F(LocalSourceTest, ManyShardsDoNotEatDescriptors) {
  const size_t shards = LocalSource::kMaxOpenFiles + 3;
  std::string map;
  for (size_t i = 0; i < shards; ++i) {
    temp_.Write(absl::StrCat("m/s", 1000 + i, ".safetensors"),
                OneTensor(absl::StrCat("t", i), "xy"));
    absl::StrAppend(&map, i ? "," : "", "\"t", i, "\":\"s", 1000 + i, ".safetensors\"");
  }
  temp_.Write("m/model.safetensors.index.json", absl::StrCat("{\"weight_map\":{", map, "}}"));
  absl::StatusOr<std::unique_ptr<ModelSource>> source = Open("m");
  ASSERT_TRUE(source.ok()) << source.status();
  const SourceTensor& last = (*source)->tensors().back();
  EXPECT_EQ(Read(**source, last), "xy");
  // A file that is not held open is checked before its bytes are believed.
  temp_.Write(absl::StrCat("m/", (*source)->files().back().name), OneTensor("changed", "longer"));
  EXPECT_NE(Read(**source, last).find("changed while"), std::string::npos);
}

TEST_F(LocalSourceTest, TheFingerprintSeesEveryPart) {
  temp_.Write("m/model.safetensors", OneTensor("a", "xx"));
  temp_.Write("m/config.json", "{}");
  const auto fingerprint = [this] { return (*Open("m"))->Fingerprint(); };
  const std::string first = fingerprint();
  EXPECT_EQ(first.size(), 64u);
  EXPECT_EQ(fingerprint(), first);
  temp_.Write("m/config.json", "{ }");
  const std::string second = fingerprint();
  EXPECT_NE(second, first);
  temp_.Write("m/tokenizer.json", "t");
  const std::string third = fingerprint();
  EXPECT_NE(third, second);
  temp_.Write("m/model.safetensors", OneTensor("b", "xx"));
  EXPECT_NE(fingerprint(), third);
}

TEST_F(LocalSourceTest, FaultsAreStatuses) {
  temp_.Write("m/model.safetensors", TwoTensors());
  temp_.Write("m/config.json", "{}");
  for (const FaultOperation operation : {FaultOperation::kOpenForRead, FaultOperation::kRead,
                                         FaultOperation::kSize, FaultOperation::kList}) {
    plan_ = std::make_shared<FaultPlan>();
    plan_->Fail(operation, 1, EIO);
    EXPECT_EQ(ReasonOf(Open("m").status()), Reason::kIoError) << static_cast<int>(operation);
  }
  plan_ = std::make_shared<FaultPlan>();
  absl::StatusOr<std::unique_ptr<ModelSource>> source = Open("m");
  ASSERT_TRUE(source.ok());
  plan_->ShortRead(plan_->Count(FaultOperation::kRead) + 1);
  std::byte out[1];
  EXPECT_TRUE(absl::IsOutOfRange((*source)->Read(0, 0, absl::MakeSpan(out))));
}

TEST(SampleModel, Opens) {
  const absl::StatusOr<std::unique_ptr<FileSystem>> files =
      MakePosixFileSystem({absl::StrCat(SINQ_SOURCE_DIR, "/tests/data")});
  ASSERT_TRUE(files.ok()) << files.status();
  const absl::StatusOr<ResolvedPath> path =
      (*files)->Resolve(absl::StrCat(SINQ_SOURCE_DIR, "/tests/data/tiny-llama"));
  ASSERT_TRUE(path.ok()) << path.status();
  const absl::StatusOr<std::unique_ptr<ModelSource>> source = OpenLocalSource(*path);
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_GT((*source)->tensors().size(), 10u);
  EXPECT_TRUE((*source)->config_json().has_value());
  EXPECT_EQ((*source)->aux_files().size(), 3u);
}

}  // namespace
}  // namespace sinq
