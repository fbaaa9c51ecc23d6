#include "server/export/gguf_file.h"

#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/base/error.h"

namespace sinq {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

template <class Number>
std::string Raw(Number number) {
  return std::string(reinterpret_cast<const char*>(&number), sizeof number);
}
std::string Text(absl::string_view text) { return absl::StrCat(Raw<uint64_t>(text.size()), text); }
std::string Pair(absl::string_view key, uint32_t type, absl::string_view value) {
  return absl::StrCat(Text(key), Raw(type), value);
}
std::string Info(absl::string_view name, const std::vector<uint64_t>& dimensions, uint32_t type,
                 uint64_t offset) {
  std::string out = absl::StrCat(Text(name), Raw(static_cast<uint32_t>(dimensions.size())));
  for (const uint64_t dimension : dimensions) out += Raw(dimension);
  return absl::StrCat(out, Raw(type), Raw(offset));
}

constexpr uint32_t kU32 = 4, kString = 8, kArray = 9;

// A file with two F16 tensors, [64, 2] and [8]; any part may be replaced.
struct File {
  std::string magic = "GGUF";
  uint32_t version = 3;
  std::vector<std::string> pairs = {
      Pair("general.architecture", kString, Text("llama")),
      Pair("llama.attention.head_count", kU32, Raw<uint32_t>(4)),
      Pair("tokenizer.ggml.tokens", kArray,
           absl::StrCat(Raw(kString), Raw<uint64_t>(2), Text("a"), Text("bc")))};
  std::vector<std::string> infos = {Info("blk.0.attn_q.weight", {64, 2}, 1, 0),
                                    Info("output_norm.weight", {8}, 1, 256)};
  uint64_t data_bytes = 256 + 16;
  uint64_t alignment = 32;

  std::string Header() const {
    std::string out =
        absl::StrCat(magic, Raw(version), Raw<uint64_t>(infos.size()), Raw<uint64_t>(pairs.size()));
    for (const std::string& pair : pairs) out += pair;
    for (const std::string& info : infos) out += info;
    out.resize((out.size() + alignment - 1) / alignment * alignment, '\0');
    return out;
  }
  absl::StatusOr<GgufFile> Parse() const {
    const std::string header = Header();
    return ParseGguf(header, header.size() + data_bytes, "t.gguf");
  }
  std::string Why() const {
    const auto parsed = Parse();
    EXPECT_EQ(GetErrorDetails(parsed.status()).reason, Reason::kMalformedSource);
    return std::string(parsed.status().message());
  }
};

TEST(GgufFileTest, TheFormatsFirstBytes) {
  File file;
  file.pairs.resize(1);
  file.infos.resize(1);
  const std::string header = file.Header();
  EXPECT_EQ(absl::BytesToHexString(header.substr(0, 24)),
            "474755460300000001000000000000000100000000000000");
  EXPECT_TRUE(absl::StartsWith(
      absl::BytesToHexString(header.substr(24)),
      absl::StrCat("1400000000000000", absl::BytesToHexString("general.architecture"),
                   "080000000500000000000000", absl::BytesToHexString("llama"))));
}

TEST(GgufFileTest, ReadsATemplate) {
  const auto file = File().Parse();
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->architecture, "llama");
  EXPECT_EQ(file->numbers.at("llama.attention.head_count").value, 4u);
  EXPECT_EQ(file->metadata_count, 3u);
  EXPECT_EQ(file->data_offset, File().Header().size());
  ASSERT_EQ(file->tensors.size(), 2u);
  EXPECT_EQ(file->tensors[0].name, "blk.0.attn_q.weight");
  EXPECT_THAT(file->tensors[0].dimensions, ElementsAre(64, 2));
  EXPECT_EQ(file->tensors[0].size_bytes, 256u);
  EXPECT_EQ(file->tensors[1].offset, 256u);
}

TEST(GgufFileTest, WritesTheSameBytesAgain) {
  auto file = File().Parse();
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(*LayOutGguf(*file), File().Header());
}

// Q4_1: 2 rows of two 20-byte blocks, padded from 80 to 96.
TEST(GgufFileTest, OtherTypesMoveWhatFollows) {
  auto file = File().Parse();
  ASSERT_TRUE(file.ok()) << file.status();
  file->tensors[0].type = GgmlType::kQ4_1;
  const auto header = LayOutGguf(*file);
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(file->tensors[0].size_bytes, 80u);
  EXPECT_EQ(file->tensors[1].offset, 96u);
  const auto again = ParseGguf(*header, header->size() + 96 + 16, "out.gguf");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->tensors[0].type, GgmlType::kQ4_1);
  EXPECT_EQ(again->metadata, file->metadata);
}

TEST(GgufFileTest, NumbersAreReplacedInPlaceOrAppended) {
  auto file = File().Parse();
  ASSERT_TRUE(file.ok()) << file.status();
  const std::string before = file->metadata;
  ASSERT_TRUE(SetGgufNumber(*file, "llama.attention.head_count", 5).ok());
  EXPECT_EQ(file->metadata.size(), before.size());
  ASSERT_TRUE(SetGgufNumber(*file, "general.file_type", 3).ok());
  ASSERT_TRUE(SetGgufNumber(*file, "general.file_type", 2).ok());
  const auto header = LayOutGguf(*file);
  ASSERT_TRUE(header.ok()) << header.status();
  const auto again = ParseGguf(*header, header->size() + 272, "out.gguf");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->metadata_count, 4u);
  EXPECT_EQ(again->numbers.at("llama.attention.head_count").value, 5u);
  EXPECT_EQ(again->numbers.at("general.file_type").value, 2u);
  EXPECT_FALSE(SetGgufNumber(*file, "general.architecture", 1).ok());
  EXPECT_FALSE(SetGgufNumber(*file, "tokenizer.ggml.tokens", 1).ok());
}

TEST(GgufFileTest, SizesOfBlocks) {
  EXPECT_EQ(*GgufTensorBytes({64, 3}, GgmlType::kQ4_0), 6u * 18);
  EXPECT_EQ(*GgufTensorBytes({64, 3}, GgmlType::kQ4_1), 6u * 20);
  EXPECT_EQ(*GgufTensorBytes({64, 3}, GgmlType::kQ8_0), 6u * 34);
  EXPECT_EQ(*GgufTensorBytes({7}, GgmlType::kBf16), 14u);
  EXPECT_FALSE(GgufTensorBytes({48, 3}, GgmlType::kQ4_0).ok());
  EXPECT_FALSE(GgufTensorBytes({uint64_t{1} << 40, uint64_t{1} << 40}, GgmlType::kF32).ok());
  EXPECT_FALSE(GgufTensorBytes({}, GgmlType::kF32).ok());
}

TEST(GgufFileTest, AlignmentOfTheFileCounts) {
  File file;
  file.alignment = 64;
  file.pairs.push_back(Pair("general.alignment", kU32, Raw<uint32_t>(64)));
  EXPECT_EQ(file.Parse()->alignment, 64u);
  file.pairs.back() = Pair("general.alignment", kU32, Raw<uint32_t>(48));
  EXPECT_THAT(file.Why(), HasSubstr("power of two"));
}

TEST(GgufFileTest, RefusesWhatGgmlWouldRefuse) {
  const auto why = [](auto change) {
    File file;
    change(file);
    return file.Why();
  };
  EXPECT_THAT(why([](File& f) { f.magic = "GGML"; }), HasSubstr("not a GGUF"));
  EXPECT_THAT(why([](File& f) { f.version = 2; }), HasSubstr("version"));
  EXPECT_THAT(why([](File& f) { f.pairs.push_back(f.pairs[0]); }), HasSubstr("a second"));
  EXPECT_THAT(why([](File& f) { f.infos[1] = Info("output_norm.weight", {8}, 1, 288); }),
              HasSubstr("does not follow"));
  EXPECT_THAT(why([](File& f) { f.infos[1] = Info("blk.0.attn_q.weight", {8}, 1, 256); }),
              HasSubstr("one name"));
  EXPECT_THAT(why([](File& f) { f.infos[1] = Info("x", {8}, 12, 256); }), HasSubstr("type 12"));
  EXPECT_THAT(why([](File& f) {
                f.infos[1] = Info("x", {1, 1, 1, 1, 1}, 1, 256);
              }),
              HasSubstr("1 to 4"));
  EXPECT_THAT(why([](File& f) { f.infos[1] = Info("x", {0}, 1, 256); }), HasSubstr("dimension"));
  EXPECT_THAT(why([](File& f) { f.infos[1] = Info(std::string(64, 'x'), {8}, 1, 256); }),
              HasSubstr("too long"));
  EXPECT_THAT(why([](File& f) { f.data_bytes = 256 + 15; }), HasSubstr("ends before"));
  EXPECT_THAT(why([](File& f) { f.pairs.push_back(Pair("b", 7, "\2")); }), HasSubstr("bool"));
  EXPECT_THAT(why([](File& f) { f.pairs.push_back(Pair("b", 13, "")); }), HasSubstr("type"));
  EXPECT_THAT(
      why([](File& f) { f.pairs.push_back(Pair("b", kArray, Raw(kArray) + Raw<uint64_t>(0))); }),
      HasSubstr("array"));
}

// Counts and lengths of any size do not make the reader run past the header or for long.
TEST(GgufFileTest, HugeCountsEndTheHeader) {
  const auto why = [](auto change) {
    File file;
    change(file);
    return file.Why();
  };
  const std::string huge = Raw<uint64_t>(~uint64_t{0});
  EXPECT_THAT(why([&](File& f) { f.pairs = {huge}; }), HasSubstr("too early"));
  EXPECT_THAT(why([&](File& f) { f.pairs = {Text("k") + Raw(kString) + huge}; }),
              HasSubstr("too early"));
  EXPECT_THAT(why([&](File& f) { f.pairs = {Text("k") + Raw(kArray) + Raw(kU32) + huge}; }),
              HasSubstr("too early"));
  const std::string header = File().Header();
  for (size_t length = 0; length + 32 < header.size(); ++length)
    EXPECT_FALSE(ParseGguf(header.substr(0, length), header.size() + 272, "t").ok()) << length;
}

}  // namespace
}  // namespace sinq
