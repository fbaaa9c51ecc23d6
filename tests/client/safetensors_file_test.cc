#include "client/safetensors_file.h"

#include <gtest/gtest.h>

#include <fstream>

#include "tests/client/scratch_dir.h"

namespace sinq::client {
namespace {

std::string Length(uint64_t value) {
  std::string bytes(8, '\0');
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<char>(value >> (8 * i) & 0xff);
  return bytes;
}

class SafetensorsFile : public testing::Test {
 protected:
  SafetensorsFile() { std::filesystem::create_directories(scratch_.path()); }
  std::string Path() const { return scratch_.path() + "/x.safetensors"; }
  absl::StatusOr<TensorEntries> Read(const std::string& content) const;
  absl::StatusOr<TensorEntries> ReadHeader(const std::string& json, const std::string& data) const {
    return Read(Length(json.size()) + json + data);
  }

 private:
  const ScratchDir scratch_;
};

absl::StatusOr<TensorEntries> SafetensorsFile::Read(const std::string& content) const {
  std::ofstream(Path(), std::ios::binary) << content;
  const auto file = LocalFile::OpenForRead(Path());
  if (!file.ok()) return file.status();
  return ReadSafetensorsHeader(*file);
}

TensorContent Content(const std::string& dtype, std::vector<int64_t> shape,
                      const std::string& bytes) {
  return {dtype, std::move(shape), static_cast<int64_t>(bytes.size()),
          [bytes](const auto& write) { return write(bytes); }};
}

TEST_F(SafetensorsFile, WhatIsWrittenIsRead) {
  const std::map<std::string, TensorContent> tensors = {{"b", Content("BF16", {1, 2}, "wxyz")},
                                                        {"a", Content("U8", {3}, "abc")},
                                                        {"c", Content("F32", {0, 4}, "")}};
  {
    auto file = LocalFile::Create(Path());
    ASSERT_TRUE(file.ok()) << file.status();
    ASSERT_TRUE(WriteSafetensors(tensors, *file).ok());
  }
  const auto file = LocalFile::OpenForRead(Path());
  const auto entries = ReadSafetensorsHeader(*file);
  ASSERT_TRUE(entries.ok()) << entries.status();
  ASSERT_EQ(entries->size(), 3u);
  EXPECT_EQ(entries->at("a").offset_bytes % 8, 0);
  EXPECT_EQ(entries->at("b").offset_bytes, entries->at("a").offset_bytes + 3);
  EXPECT_EQ(*file->Read(entries->at("b").offset_bytes, 4), "wxyz");
  EXPECT_EQ(entries->at("b").shape, (std::vector<int64_t>{1, 2}));
  EXPECT_NE(file->Read(8, 100)->find(R"({"__metadata__":{"format":"pt"})"), std::string::npos);
}

TEST_F(SafetensorsFile, ProducerOfTheWrongSizeIsAnError) {
  TensorContent content = Content("U8", {3}, "abc");
  content.size_bytes = 4;
  auto file = LocalFile::Create(Path());
  EXPECT_EQ(WriteSafetensors({{"a", content}}, *file).code(), absl::StatusCode::kInternal);
}

TEST_F(SafetensorsFile, RefusesWhatCannotBeRight) {
  const std::string good = R"("dtype":"U8","shape":[2],"data_offsets":[0,2])";
  const auto refused = [](const absl::StatusOr<TensorEntries>& read) {
    return read.status().code() == absl::StatusCode::kInvalidArgument;
  };
  EXPECT_TRUE(ReadHeader("{\"a\":{" + good + "}}", "xy").ok());
  EXPECT_TRUE(refused(Read("short")));
  EXPECT_TRUE(refused(Read(Length(1000) + "{}")));
  EXPECT_TRUE(refused(Read(Length(~uint64_t{0}) + "{}")));
  EXPECT_TRUE(refused(ReadHeader("[]", "")));
  EXPECT_TRUE(refused(ReadHeader("{\"a\":{" + good + "}}", "x")));    // past the end
  EXPECT_TRUE(refused(ReadHeader("{\"a\":{" + good + "}}", "xyz")));  // bytes left over
  EXPECT_TRUE(refused(ReadHeader("{\"a\":{" + good + "},\"b\":{" + good + "}}", "xy")));  // overlap
  EXPECT_TRUE(refused(ReadHeader("{\"a\":{" + good + "},\"a\":{" + good + "}}", "xy")));  // twice
  for (const char* entry :
       {R"("dtype":"Q4","shape":[2],"data_offsets":[0,2])", R"("shape":[2],"data_offsets":[0,2])",
        R"("dtype":"U8","shape":[-2],"data_offsets":[0,2])",
        R"("dtype":"U8","shape":[3],"data_offsets":[0,2])",
        R"("dtype":"U8","shape":[2.5],"data_offsets":[0,2])",
        R"("dtype":"U8","shape":[2],"data_offsets":[2,0])",
        R"("dtype":"F64","shape":[4294967296,4294967296],"data_offsets":[0,2])",
        R"("dtype":"U8","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,2])"}) {
    EXPECT_TRUE(refused(ReadHeader(std::string("{\"a\":{") + entry + "}}", "xy"))) << entry;
  }
}

TEST_F(SafetensorsFile, DeepJsonIsRefusedWithoutACrash) {
  const std::string deep = std::string(100000, '[') + std::string(100000, ']');
  EXPECT_FALSE(ReadHeader("{\"a\":" + deep + "}", "").ok());
}

}  // namespace
}  // namespace sinq::client
