#include "server/base/json.h"

#include <string>

#include "gtest/gtest.h"
#include "server/base/error.h"

namespace sinq {
namespace {

TEST(StrictJson, TakesPlainDocuments) {
  const absl::StatusOr<nlohmann::json> tree =
      ParseStrictJsonTree(R"( {"a": [1, {"b": null}], "c": "\u00e9"} )", 4, "test");
  ASSERT_TRUE(tree.ok()) << tree.status();
  EXPECT_EQ((*tree)["c"], "é");
}

TEST(StrictJson, RefusesEachTrick) {
  const std::string after_nul = std::string("{}\0{\"a\":", 8);
  const struct {
    const char* why;
    std::string text;
  } rows[] = {
      {"empty", ""},
      {"duplicate key", R"({"a": 1, "a": 2})"},
      {"duplicate key, written differently", R"({"a": 1, "\u0061": 2})"},
      {"duplicate key inside", R"({"x": [{"b": 1, "b": 1}]})"},
      {"duplicate key after a nested object", R"({"a": {"b": 1}, "c": 1, "a": 1})"},
      {"too deep", "[[[[[1]]]]]"},
      {"much too deep", std::string(1'000'000, '[')},
      {"text after the end", "{} {}"},
      {"hidden after NUL", after_nul},
      {"invalid UTF-8", "{\"\xff\": 1}"},
      {"lone surrogate", R"({"a": "\ud800"})"},
      {"comment", "{/**/}"},
      {"trailing comma", "{\"a\":1,}"},
      {"NaN", "{\"a\": NaN}"},
      {"control character", "{\"a\": \"\n\"}"},
      {"cut short", "{\"a\": \"b"},
  };
  for (const auto& row : rows) {
    const absl::Status status = ParseStrictJsonTree(row.text, 4, "test").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << row.why;
    EXPECT_EQ(GetErrorDetails(status).reason, Reason::kMalformedSource) << row.why;
  }
}

TEST(StrictJson, SiblingsMayRepeatKeys) {
  EXPECT_TRUE(ParseStrictJsonTree(R"({"a": {"k": 1}, "b": {"k": 1}, "k": [{"k": 1}]})", 4, "x").ok());
}

}  // namespace
}  // namespace sinq
