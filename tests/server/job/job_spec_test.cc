#include "server/job/job_spec.h"

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/base/error.h"
#include "server/base/limits.h"

namespace sinq {
namespace {

using ::testing::HasSubstr;

JobSpec Valid() {
  JobSpec spec;
  spec.source_uri = "/models/llama";
  spec.output_uri = "file:///models/llama-4bit";
  return spec;
}

absl::Status ValidateWith(const std::function<void(JobSpec&)>& change) {
  JobSpec spec = Valid();
  change(spec);
  return ValidateJobSpec(spec, /*needs_output=*/true);
}

TEST(JobSpecTest, DefaultsAreValid) { EXPECT_TRUE(ValidateJobSpec(Valid(), true).ok()); }

TEST(JobSpecTest, EveryFieldIsChecked) {
  const std::vector<std::pair<std::string, std::function<void(JobSpec&)>>> cases = {
      {"source_uri", [](JobSpec& s) { s.source_uri = ""; }},
      {"source_uri", [](JobSpec& s) { s.source_uri = "relative/path"; }},
      {"source_uri", [](JobSpec& s) { s.source_uri = "hf://a/b"; }},
      {"source_uri", [](JobSpec& s) { s.source_uri = "file://host/x"; }},
      {"source_uri", [](JobSpec& s) { s.source_uri = "/a/../b"; }},
      {"source_uri", [](JobSpec& s) { s.source_uri = std::string("/a\0b", 4); }},
      {"source_uri", [](JobSpec& s) { s.source_uri = "/\xff"; }},
      {"source_uri", [](JobSpec& s) { s.source_uri = "/" + std::string(kMaxUriBytes, 'x'); }},
      {"output_uri", [](JobSpec& s) { s.output_uri = ""; }},
      {"output_uri", [](JobSpec& s) { s.output_uri = "s3://bucket"; }},
      {"method", [](JobSpec& s) { s.method = "gptq"; }},
      {"profile", [](JobSpec& s) { s.profile = ""; }},
      {"format", [](JobSpec& s) { s.format = "awq"; }},
      {"aux", [](JobSpec& s) { s.aux = "U8"; }},
      {"bits", [](JobSpec& s) { s.bits = 7; }},
      {"bits", [](JobSpec& s) { s.bits = -1; }},
      {"group_size", [](JobSpec& s) { s.group_size = 16; }},
      {"include", [](JobSpec& s) { s.include.assign(65, "a"); }},
      {"include[0]", [](JobSpec& s) { s.include = {"("}; }},
      {"exclude[1]",
       [](JobSpec& s) {
         s.exclude = {"a", std::string(kMaxRegexBytes + 1, 'a')};
       }},
  };
  for (const auto& [field, change] : cases) {
    const absl::Status status = ValidateWith(change);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << field;
    EXPECT_THAT(std::string(status.message()), HasSubstr(field));
    EXPECT_EQ(GetErrorDetails(status).reason, Reason::kInvalidArgument);
    EXPECT_EQ(GetErrorDetails(status).metadata["field"], field) << status;
  }
}

TEST(JobSpecTest, AllViolationsAtOnce) {
  JobSpec spec;
  spec.method = "x";
  spec.bits = 7;
  spec.group_size = 1;
  const absl::Status status = ValidateJobSpec(spec, true);
  EXPECT_EQ(GetErrorDetails(status).metadata["field"],
            "source_uri,output_uri,method,bits,group_size");
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("bits must be one of 2, 3, 4, 5, 6, 8; got 7"));
}

TEST(JobSpecTest, OutputIsOptionalForAPlan) {
  JobSpec spec = Valid();
  spec.output_uri = "";
  EXPECT_TRUE(ValidateJobSpec(spec, /*needs_output=*/false).ok());
}

TEST(JobSpecTest, SymmetricTwoBitsNeedTheDefaultProfile) {
  JobSpec spec = Valid();
  spec.bits = 2;
  spec.symmetric = true;
  EXPECT_TRUE(ValidateJobSpec(spec, true).ok());
  spec.profile = "upstream";
  EXPECT_EQ(GetErrorDetails(ValidateJobSpec(spec, true)).metadata["field"], "symmetric");
  spec.symmetric = false;
  EXPECT_TRUE(ValidateJobSpec(spec, true).ok());
}

TEST(JobSpecTest, JsonComesBackAndIsCanonical) {
  JobSpec spec = Valid();
  spec.include = {"layers\\.[0-9]+", "\"quoted\""};
  spec.exclude = {"lm_head"};
  spec.symmetric = true;
  const std::string text = JobSpecToJson(spec);
  const absl::StatusOr<JobSpec> back = JobSpecFromJson(text);
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(*back, spec);
  EXPECT_EQ(JobSpecToJson(*back), text);
  EXPECT_EQ(JobSpecToJson(Valid()),
            R"({"aux":"u8","bits":4,"exclude":[],"format":"sinq","group_size":64,"include":[],)"
            R"("method":"sinq","output_uri":"file:///models/llama-4bit","profile":"default",)"
            R"("source_uri":"/models/llama","symmetric":false})");
}

TEST(JobSpecTest, JsonIsReadStrictly) {
  const std::string good = JobSpecToJson(Valid());
  const auto replaced = [&good](const std::string& from, const std::string& to) {
    std::string text = good;
    return text.replace(text.find(from), from.size(), to);
  };
  for (const std::string& bad :
       {std::string(), std::string("[]"), std::string("null"), good + "x", good.substr(1),
        replaced("\"bits\":4", "\"bits\":\"4\""), replaced("\"bits\":4", "\"bits\":4.0"),
        replaced("\"bits\":4", "\"bits\":4,\"bits\":8"), replaced("\"bits\":4,", ""),
        replaced("\"bits\":4", "\"bits\":4,\"bitz\":4"), replaced("\"bits\":4", "\"bits\":1e99"),
        replaced("\"bits\":4", "\"bits\":18446744073709551615"),
        replaced("\"include\":[]", "\"include\":[1]"),
        replaced("\"include\":[]", "\"include\":[[[[[[]]]]]]"),
        replaced("\"symmetric\":false", "\"symmetric\":0"), std::string(100000, '[')}) {
    EXPECT_EQ(JobSpecFromJson(bad).status().code(), absl::StatusCode::kInvalidArgument)
        << bad.substr(0, 300);
  }
}

}  // namespace
}  // namespace sinq
