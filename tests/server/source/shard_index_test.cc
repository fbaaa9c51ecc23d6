#include "server/source/shard_index.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "server/base/limits.h"

namespace sinq {
namespace {

TEST(ShardIndex, ReadsWhatHuggingFaceWrites) {
  const absl::StatusOr<ShardIndex> index = ParseShardIndex(
      R"({"metadata": {"total_size": 12, "x": [1.5, null]},
          "weight_map": {"a": "m-00002-of-00002.safetensors", "b": "m-00001-of-00002.safetensors",
                         "c": "m-00002-of-00002.safetensors"}})",
      "index");
  ASSERT_TRUE(index.ok()) << index.status();
  EXPECT_EQ(index->shards, (std::vector<std::string>{"m-00001-of-00002.safetensors",
                                                     "m-00002-of-00002.safetensors"}));
  EXPECT_EQ(index->shard_of.at("c"), "m-00002-of-00002.safetensors");
}

TEST(ShardIndex, RefusesHostileOnes) {
  const std::string long_name(kMaxTensorNameBytes + 1, 'n');
  const std::string rows[] = {
      "",
      "[]",
      "7",
      "{}",
      R"({"weight_map": {}})",
      R"({"weight_map": []})",
      R"({"weight_map": "a.safetensors"})",
      R"({"weight_map": 1})",
      R"({"weight_map": {"a": 1}})",
      R"({"weight_map": {"a": null}})",
      R"({"weight_map": {"a": ["x.safetensors"]}})",
      R"({"weight_map": {"a": {"b": "x.safetensors"}}})",
      R"({"weight_map": {"a": "../x.safetensors"}})",
      R"({"weight_map": {"a": "sub/x.safetensors"}})",
      R"({"weight_map": {"a": "/etc/x.safetensors"}})",
      R"({"weight_map": {"a": ".x.safetensors"}})",
      R"({"weight_map": {"a": "..\\x.safetensors"}})",
      R"({"weight_map": {"a": "x\u0000.safetensors"}})",
      R"({"weight_map": {"a": "x.bin"}})",
      R"({"weight_map": {"a": ""}})",
      R"({"weight_map": {"": "x.safetensors"}})",
      R"({"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}})",
      R"({"weight_map": {"a": "x.safetensors"}, "weight_map": {"b": "x.safetensors"}})",
      R"({"weight_map": {"a": "x.safetensors"}} trailing)",
      absl::StrCat(R"({"weight_map": {")", long_name, R"(": "x.safetensors"}})"),
      absl::StrCat(R"({"weight_map": {"a": ")", long_name, R"(.safetensors"}})"),
      absl::StrCat(R"({"metadata": )", std::string(100, '['), std::string(100, ']'),
                   R"(, "weight_map": {"a": "x.safetensors"}})"),
  };
  for (const std::string& json : rows) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseShardIndex(json, "index").status())) << json;
  }
}

TEST(ShardIndex, ShardsAreBounded) {
  std::string json = R"({"weight_map": {)";
  for (uint64_t i = 0; i <= kMaxSourceFiles; ++i) {
    absl::StrAppend(&json, i ? "," : "", "\"t", i, "\":\"s", i, ".safetensors\"");
  }
  json += "}}";
  const absl::Status status = ParseShardIndex(json, "index").status();
  EXPECT_NE(status.message().find("max_source_files"), absl::string_view::npos) << status;
}

}  // namespace
}  // namespace sinq
