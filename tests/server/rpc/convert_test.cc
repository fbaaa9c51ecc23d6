#include "server/rpc/convert.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/export/exporter.h"

namespace sinq {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(ConvertTest, UnsetFieldsOfARecipeTakeTheirDefaults) {
  const JobSpec spec = ToJobSpec("/in", "/out", {});
  EXPECT_EQ(spec.method, "sinq");
  EXPECT_EQ(spec.profile, "default");
  EXPECT_EQ(spec.bits, 4);
  EXPECT_EQ(spec.group_size, 64);
  EXPECT_EQ(spec.format, "compressed-tensors");
  EXPECT_EQ(spec.aux, "");
  EXPECT_TRUE(spec.symmetric);
  const auto params = ToQuantParams({});
  ASSERT_TRUE(params.ok()) << params.status();
  EXPECT_EQ(params->bits, 4);
}

TEST(ConvertTest, WidthsThatDoNotExistAreRefused) {
  for (const int bits : {-1, 1, 7, 9, 2147483647}) {
    v1::Recipe recipe;
    recipe.set_bits(bits);
    EXPECT_TRUE(absl::IsInvalidArgument(ToQuantParams(recipe).status())) << bits;
  }
  v1::Recipe recipe;
  recipe.set_group_size(48);
  EXPECT_FALSE(ToQuantParams(recipe).ok());
  recipe.Clear();
  recipe.set_method("magic");
  EXPECT_THAT(std::string(ToQuantParams(recipe).status().message()), HasSubstr("magic"));
}

TEST(ConvertTest, UnsetFieldsFollowTheFormatAndTheMethod) {
  v1::Recipe recipe;
  recipe.set_format("compressed-tensors");
  JobSpec spec = ToJobSpec("/in", "/out", recipe);
  EXPECT_TRUE(spec.symmetric);
  EXPECT_EQ(spec.aux, "");
  recipe.set_symmetric(false);
  EXPECT_FALSE(ToJobSpec("/in", "/out", recipe).symmetric);
  recipe.Clear();
  recipe.set_format("sinq");
  spec = ToJobSpec("/in", "/out", recipe);
  EXPECT_FALSE(spec.symmetric);
  EXPECT_EQ(spec.aux, "u8");
  recipe.set_method("sinq_nf3");
  EXPECT_EQ(ToJobSpec("/in", "/out", recipe).bits, 3);
  recipe.Clear();
  recipe.set_format("gguf");
  EXPECT_EQ(ToJobSpec("/in", "/out", recipe).group_size, 32);
}

TEST(ConvertTest, EveryFormatThatIsWrittenCanBeNamed) {
  for (const absl::string_view format : WrittenFormats())
    EXPECT_THAT(RecipeFormats(), testing::Contains(format));
}

TEST(ConvertTest, ATargetLeavesTheBitsToBeChosen) {
  v1::Recipe recipe;
  recipe.set_target_bits_per_weight(4.25);
  JobSpec spec = ToJobSpec("/in", "/out", recipe);
  EXPECT_EQ(spec.bits, 0);
  EXPECT_TRUE(ValidateJobSpec(spec, true).ok()) << ValidateJobSpec(spec, true);
  recipe.set_bits(4);
  EXPECT_FALSE(ValidateJobSpec(ToJobSpec("/in", "/out", recipe), true).ok());
  recipe.Clear();
  recipe.set_target_size_bytes(-1);
  EXPECT_THAT(std::string(ValidateJobSpec(ToJobSpec("/in", "/out", recipe), true).message()),
              HasSubstr("target_size_bytes must be at most"));
}

TEST(ConvertTest, EveryFieldOfARecipeComesBack) {
  v1::Recipe recipe;
  recipe.set_method("asinq");
  recipe.set_profile("upstream");
  recipe.set_format("gguf");
  recipe.set_group_size(128);
  recipe.set_symmetric(true);
  recipe.set_aux("f32");
  recipe.add_include("a");
  recipe.add_exclude("b");
  recipe.set_tiling("2D");
  recipe.set_fold("off");
  recipe.set_target_bits_per_weight(5.5);
  recipe.set_target_size_bytes(123);
  recipe.set_activations_uri("/a");
  recipe.set_gguf_template_uri("/g");
  v1::RecipeRule* rule = recipe.add_rules();
  rule->set_pattern("c");
  rule->set_bits(8);
  rule->set_group_size(32);
  rule->set_symmetric(false);
  rule->set_method("rtn");
  rule = recipe.add_rules();
  rule->set_pattern("d");
  rule->set_quantize(false);
  Job job;
  job.spec = ToJobSpec("/in", "/out", recipe);
  EXPECT_EQ(ToProto(job).recipe().SerializeAsString(), recipe.SerializeAsString());
  // A field that is added to the message needs its line above.
  for (int i = 0; i < v1::Recipe::descriptor()->field_count(); ++i) {
    const auto* field = v1::Recipe::descriptor()->field(i);
    if (field->name() == "bits") continue;  // chosen here
    const auto* reflection = recipe.GetReflection();
    EXPECT_TRUE(field->is_repeated() ? reflection->FieldSize(recipe, field) > 0
                                     : reflection->HasField(recipe, field))
        << field->name();
  }
}

TEST(ConvertTest, StreamsRefuseWhatNeedsTheWholeModel) {
  for (const char* what : {"bits", "rules", "activations"}) {
    v1::Recipe recipe;
    if (what == std::string("bits")) recipe.set_target_bits_per_weight(4.25);
    if (what == std::string("rules")) {
      recipe.add_rules()->set_pattern("a");
      recipe.mutable_rules(0)->set_bits(8);
    }
    if (what == std::string("activations")) {
      recipe.set_method("asinq");
      recipe.set_activations_uri("/a.safetensors");
    }
    const absl::Status status = ToQuantParams(recipe).status();
    EXPECT_THAT(std::string(status.message()), HasSubstr(what));
    EXPECT_THAT(std::string(status.message()), HasSubstr("stream")) << status;
  }
}

// Its format is not used, so neither are that format's defaults.
TEST(ConvertTest, StreamsTakeTheDefaultsOfTheNativeFormat) {
  v1::Recipe recipe;
  recipe.set_format("compressed-tensors");
  const auto params = ToQuantParams(recipe);
  ASSERT_TRUE(params.ok()) << params.status();
  EXPECT_FALSE(params->symmetric);
  EXPECT_EQ(params->aux, kernels::AuxStorage::kU8);
}

TEST(ConvertTest, FiltersNameStates) {
  EXPECT_THAT(*ParseListFilter("state=QUEUED|RUNNING"),
              ElementsAre(JobState::kQueued, JobState::kRunning));
  EXPECT_TRUE(ParseListFilter("")->empty());
  for (const char* filter : {"state=", "state=LOST", "owner=me", "QUEUED", "state=QUEUED|"}) {
    EXPECT_FALSE(ParseListFilter(filter).ok()) << filter;
  }
}

TEST(ConvertTest, AJobThatJustStartedIsPlanning) {
  Job job;
  job.state = JobState::kRunning;
  EXPECT_EQ(ToProto(job).progress().stage(), v1::JOB_STAGE_PLAN);
  job.state = JobState::kQueued;
  EXPECT_EQ(ToProto(job).progress().stage(), v1::JOB_STAGE_UNSPECIFIED);
}

}  // namespace
}  // namespace sinq
