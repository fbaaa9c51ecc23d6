#include "server/job/job_spec.h"

#include <cmath>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/base/error.h"
#include "server/base/limits.h"
#include "tests/fakes/native_spec.h"

namespace sinq {
namespace {

using ::testing::HasSubstr;

JobSpec Valid() {
  JobSpec spec = NativeSpec();
  spec.source_uri = "/models/llama";
  spec.output_uri = "file:///models/llama-4bit";
  return spec;
}

absl::Status ValidateWith(const std::function<void(JobSpec&)>& change) {
  JobSpec spec = Valid();
  change(spec);
  return ValidateJobSpec(spec, /*needs_output=*/true);
}

void SetTarget(JobSpec& spec, double bits_per_weight) {
  spec.bits = 0;
  spec.target_bits_per_weight = bits_per_weight;
}

// Every field that an older server did not know, away from its default.
JobSpec WithNewFields() {
  JobSpec spec = Valid();
  spec.method = "asinq";
  SetTarget(spec, 4.1);
  spec.tiling = "2D";
  spec.fold = "off";
  spec.activations_uri = "/models/a.safetensors";
  spec.rules = {{.pattern = "down_proj", .bits = 8, .group_size = 128, .symmetric = true},
                {.pattern = "gate", .method = "rtn"},
                {.pattern = "layers\\.0\\.", .quantize = false}};
  return spec;
}

TEST(JobSpecTest, ARuleForACodebookNeedsNoWidth) {
  EXPECT_TRUE(ValidateWith([](JobSpec& s) {
                s.rules = {{.pattern = "down_proj", .method = "nf3"}};
              }).ok());
  EXPECT_FALSE(ValidateWith([](JobSpec& s) {
                 s.rules = {{.pattern = "down_proj", .bits = 4, .method = "nf3"}};
               }).ok());
}

TEST(JobSpecTest, WhereWidthsCannotBeChosenFormatsThatCanAreNamed) {
  const auto why = [](const std::string& format) {
    return std::string(ValidateWith([&](JobSpec& s) {
                         s.format = format;
                         SetTarget(s, 5);
                       }).message());
  };
  EXPECT_THAT(why("awq"), HasSubstr("use format sinq, "));
  EXPECT_THAT(why("awq"), testing::Not(HasSubstr("without symmetric")));
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
      {"format", [](JobSpec& s) { s.format = "onnx"; }},
      {"aux", [](JobSpec& s) { s.aux = "U8"; }},
      {"tiling", [](JobSpec& s) { s.tiling = "3D"; }},
      {"fold", [](JobSpec& s) { s.fold = "on"; }},
      {"bits", [](JobSpec& s) { s.bits = 0; }},
      {"bits", [](JobSpec& s) { s.target_bits_per_weight = 4.25; }},
      {"bits", [](JobSpec& s) { s.target_size_bytes = 1; }},
      {"bits", [](JobSpec& s) { s.method = "sinq_nf3"; }},
      {"bits",
       [](JobSpec& s) {
         s.method = "nf4";
         s.bits = 0;
         s.target_bits_per_weight = 4;
       }},
      {"bits",
       [](JobSpec& s) {
         s.format = "awq";
         s.bits = 0;
         s.target_bits_per_weight = 4;
       }},
      {"target_bits_per_weight", [](JobSpec& s) { SetTarget(s, -1); }},
      {"target_bits_per_weight", [](JobSpec& s) { SetTarget(s, 16.001); }},
      {"target_bits_per_weight", [](JobSpec& s) { SetTarget(s, std::nan("")); }},
      {"target_size_bytes",
       [](JobSpec& s) {
         s.bits = 0;
         s.target_size_bytes = kMaxTargetSizeBytes + 1;
       }},
      {"target_size_bytes",
       [](JobSpec& s) {
         SetTarget(s, 4);
         s.target_size_bytes = 1;
       }},
      {"activations_uri", [](JobSpec& s) { s.method = "asinq"; }},
      {"activations_uri", [](JobSpec& s) { s.activations_uri = "/a.safetensors"; }},
      {"activations_uri",
       [](JobSpec& s) {
         s.method = "awq";
         s.activations_uri = "a.safetensors";
       }},
      {"activations_uri", [](JobSpec& s) { s.rules = {{.pattern = "a", .method = "awq"}}; }},
      {"gguf_template_uri", [](JobSpec& s) { s.gguf_template_uri = "/a.gguf"; }},
      {"gguf_template_uri", [](JobSpec& s) { s.format = "gguf"; }},
      {"gguf_template_uri",
       [](JobSpec& s) {
         s.format = "gguf";
         s.gguf_template_uri = "/../a.gguf";
       }},
      {"rules",
       [](JobSpec& s) { s.rules.assign(kMaxRecipeRules + 1, {.pattern = "a", .bits = 8}); }},
      {"rules[0].pattern", [](JobSpec& s) { s.rules = {{.pattern = "(", .bits = 8}}; }},
      {"rules[0].pattern", [](JobSpec& s) { s.rules = {{.pattern = "", .bits = 8}}; }},
      {"rules[0].pattern", [](JobSpec& s) { s.rules = {{.pattern = "\xff", .bits = 8}}; }},
      {"rules[0]", [](JobSpec& s) { s.rules = {{.pattern = "a"}}; }},
      {"rules[0]", [](JobSpec& s) { s.rules = {{.pattern = "a", .quantize = false, .bits = 8}}; }},
      {"rules[1].bits",
       [](JobSpec& s) {
         s.rules = {{.pattern = "a", .bits = 8}, {.pattern = "b", .bits = 9}};
       }},
      {"rules[0].bits",
       [](JobSpec& s) {
         s.rules = {{.pattern = "a", .bits = 4, .method = "nf3"}};
       }},
      {"rules[0].group_size", [](JobSpec& s) { s.rules = {{.pattern = "a", .group_size = 16}}; }},
      {"rules[0].method", [](JobSpec& s) { s.rules = {{.pattern = "a", .method = "magic"}}; }},
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
  JobSpec spec = NativeSpec();
  spec.source_uri = spec.output_uri = "";
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

TEST(JobSpecTest, NewFieldsAreValidAndComeBack) {
  JobSpec spec = WithNewFields();
  ASSERT_TRUE(ValidateJobSpec(spec, true).ok()) << ValidateJobSpec(spec, true);
  absl::StatusOr<JobSpec> back = JobSpecFromJson(JobSpecToJson(spec));
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(*back, spec);
  spec.target_bits_per_weight = 0;
  spec.target_size_bytes = kMaxTargetSizeBytes;
  spec.gguf_template_uri = "/models/a.gguf";
  back = JobSpecFromJson(JobSpecToJson(spec));
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(*back, spec);
}

// What the store of an older server holds: the canonical form of the time, byte for byte.
TEST(JobSpecTest, AnOlderSpecificationKeepsItsMeaningAndItsBytes) {
  const std::string stored =
      R"({"aux":"f16","bits":3,"exclude":[],"format":"sinq","group_size":128,"include":["a"],)"
      R"("method":"rtn","output_uri":"/out","profile":"upstream","source_uri":"/in",)"
      R"("symmetric":true})";
  const absl::StatusOr<JobSpec> spec = JobSpecFromJson(stored);
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->tiling, "1D");
  EXPECT_EQ(spec->fold, "auto");
  EXPECT_TRUE(spec->rules.empty());
  EXPECT_EQ(JobSpecToJson(*spec), stored);
}

TEST(JobSpecTest, DefaultsFollowTheFormat) {
  EXPECT_TRUE(DefaultSymmetric("compressed-tensors", 4));
  EXPECT_TRUE(DefaultSymmetric("gptq", 4));
  EXPECT_FALSE(DefaultSymmetric("awq", 4));
  EXPECT_FALSE(DefaultSymmetric("sinq", 4));
  EXPECT_FALSE(DefaultSymmetric("gguf", 4));
  EXPECT_TRUE(DefaultSymmetric("gguf", 8));
  EXPECT_EQ(DefaultAux("sinq"), "u8");
  EXPECT_EQ(DefaultAux("compressed-tensors"), "");
  EXPECT_EQ(DefaultAux("awq"), "f16");
  EXPECT_EQ(DefaultGroupSize("gguf"), 32);
  EXPECT_EQ(DefaultBits("sinq_nf3"), 3);
  EXPECT_EQ(SelectableBits("compressed-tensors", true), (std::vector<int>{4, 8}));
  EXPECT_TRUE(SelectableBits("awq", false).empty());
  EXPECT_TRUE(SelectableBits("gptq", false).empty());
}

TEST(JobSpecTest, JsonIsReadStrictly) {
  const std::string good = JobSpecToJson(Valid());
  const auto replaced = [&good](const std::string& from, const std::string& to) {
    std::string text = good;
    return text.replace(text.find(from), from.size(), to);
  };
  for (const std::string& bad :
       {std::string(),
        std::string("[]"),
        std::string("null"),
        good + "x",
        good.substr(1),
        replaced("\"bits\":4", "\"bits\":\"4\""),
        replaced("\"bits\":4", "\"bits\":4.0"),
        replaced("\"bits\":4", "\"bits\":4,\"bits\":8"),
        replaced("\"bits\":4,", ""),
        replaced("\"bits\":4", "\"bits\":4,\"bitz\":4"),
        replaced("\"bits\":4", "\"bits\":1e99"),
        replaced("\"bits\":4", "\"bits\":18446744073709551615"),
        replaced("\"include\":[]", "\"include\":[1]"),
        replaced("\"include\":[]", "\"include\":[[[[[[]]]]]]"),
        replaced("\"symmetric\":false", "\"symmetric\":0"),
        std::string(100000, '['),
        replaced("\"bits\":4", "\"bits\":4,\"rules\":[1]"),
        replaced("\"bits\":4", "\"bits\":4,\"rules\":[{}]"),
        replaced("\"bits\":4", R"("bits":4,"rules":[{"pattern":"a","bitz":4}])"),
        replaced("\"bits\":4", R"("bits":4,"rules":[{"pattern":"a","pattern":"b"}])"),
        replaced("\"bits\":4", R"("bits":4,"rules":[{"pattern":"a","symmetric":1}])"),
        replaced("\"bits\":4", R"("bits":4,"target_bits_per_weight":"4")"),
        replaced("\"bits\":4", R"("bits":4,"target_size_bytes":-1)")}) {
    EXPECT_EQ(JobSpecFromJson(bad).status().code(), absl::StatusCode::kInvalidArgument)
        << bad.substr(0, 300);
  }
}

}  // namespace
}  // namespace sinq
