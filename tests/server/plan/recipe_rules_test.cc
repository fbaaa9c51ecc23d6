#include "server/plan/recipe_rules.h"

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/base/error.h"
#include "server/plan/plan.h"
#include "tests/fakes/native_spec.h"
#include "tests/fakes/temp_dir.h"
#include "tests/fakes/tiny_checkpoint.h"

namespace sinq {
namespace {

using testing::HasSubstr;

class RecipeRulesTest : public testing::Test {
 protected:
  RecipeRulesTest() {
    std::vector<TestTensor> tensors;
    for (const char* name : {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                             "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}) {
      tensors.push_back(Bf16Tensor("model.layers.0." + std::string(name) + ".weight", {128, 128},
                                   static_cast<uint32_t>(tensors.size())));
    }
    temp_.Write("m/model.safetensors", SafetensorsOf(tensors));
    temp_.Write("m/config.json", kTinyConfig);
  }

  absl::StatusOr<Plan> MakeIt() {
    const auto files = MakePosixFileSystem({temp_.path()});
    const auto opened = OpenLocalSource(*(*files)->Resolve(temp_.Join("m")));
    const auto exporter = MakeExporter(spec_.format);
    return MakePlan(spec_, **opened, **exporter, {64 << 20, 2, nullptr});
  }

  static const PlannedTensor& Find(const Plan& plan, const std::string& part) {
    const auto found =
        std::find_if(plan.tensors.begin(), plan.tensors.end(), [&](const PlannedTensor& tensor) {
          return tensor.source.name.find(part) != std::string::npos;
        });
    EXPECT_NE(found, plan.tensors.end()) << part;
    return *found;
  }

  TempDir temp_;
  JobSpec spec_ = NativeSpec();
};

TEST_F(RecipeRulesTest, TheLastThatMatchesWinsAsAWhole) {
  spec_.rules = {{.pattern = "mlp", .bits = 8, .group_size = 32},
                 {.pattern = "down_proj", .group_size = 128, .symmetric = true},
                 {.pattern = "o_proj", .quantize = false},
                 {.pattern = "q_proj", .method = "rtn"}};
  const auto plan = MakeIt();
  ASSERT_TRUE(plan.ok()) << plan.status();
  const PlannedTensor& up = Find(*plan, "up_proj");
  EXPECT_EQ(up.params.bits, 8);
  EXPECT_EQ(up.params.group_size, 32);
  EXPECT_FALSE(up.params.symmetric);
  EXPECT_THAT(up.reason, HasSubstr("rule 0 (\"mlp\")"));
  const PlannedTensor& down = Find(*plan, "down_proj");
  EXPECT_EQ(down.params.bits, 4);  // the recipe's, not the first rule's
  EXPECT_EQ(down.params.group_size, 128);
  EXPECT_TRUE(down.params.symmetric);
  EXPECT_EQ(Find(*plan, "o_proj").action, TensorAction::kCopy);
  EXPECT_THAT(Find(*plan, "o_proj").reason, HasSubstr("rule 2 (\"o_proj\")"));
  EXPECT_EQ(Find(*plan, "q_proj").params.method, kernels::Method::kRtn);
  EXPECT_EQ(Find(*plan, "k_proj").params.method, kernels::Method::kSinq);
  EXPECT_THAT(Find(*plan, "k_proj").reason, testing::Not(HasSubstr("rule")));
}

TEST_F(RecipeRulesTest, EffectiveBitsCountEverything) {
  spec_.exclude = {"attn", "gate", "up"};
  const auto plan = MakeIt();
  ASSERT_TRUE(plan.ok()) << plan.status();
  // 128 x 128 codes of 4 bits, 256 scales and 256 zeros of 8 bits with F16 steps and minima (8 and
  // 1 of each), 128 column scales of F16, and the byte that stands for the rotary module.
  const double bytes = 128 * 128 / 2 + 256 + 8 * 4 + 256 + 4 + 128 * 2 + 1;
  EXPECT_DOUBLE_EQ(plan->effective_bits, bytes * 8 / (128 * 128));
}

TEST_F(RecipeRulesTest, APatternThatMatchesNothingIsAnError) {
  spec_.rules = {{.pattern = "mlp", .bits = 8}, {.pattern = "w_proj", .bits = 8}};
  const absl::Status status = MakeIt().status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("\"w_proj\" in recipe.rules[1]"));
  EXPECT_EQ(GetErrorDetails(status).metadata["field"], "recipe.rules[1]");
}

TEST_F(RecipeRulesTest, FusedLayersMustAgreeWhereEnginesFuse) {
  spec_.format = "compressed-tensors";
  spec_.symmetric = true;
  spec_.rules = {{.pattern = "attn", .bits = 8}, {.pattern = "k_proj", .bits = 4}};
  absl::Status status = MakeIt().status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  for (const char* part : {"q_proj", "k_proj", "rule 0 (\"attn\")", "rule 1 (\"k_proj\")"})
    EXPECT_THAT(std::string(status.message()), HasSubstr(part));

  spec_.rules = {{.pattern = "gate_proj", .group_size = 128}};
  EXPECT_THAT(std::string(MakeIt().status().message()), HasSubstr("the recipe itself"));
  spec_.rules = {{.pattern = "v_proj", .symmetric = false}};
  EXPECT_THAT(std::string(MakeIt().status().message()), HasSubstr("v_proj"));
  spec_.rules = {{.pattern = "v_proj", .quantize = false}};
  EXPECT_THAT(std::string(MakeIt().status().message()), HasSubstr("v_proj"));

  spec_.rules = {{.pattern = "[qkv]_proj", .bits = 8}, {.pattern = "down_proj", .bits = 8}};
  const auto plan = MakeIt();
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(Find(*plan, "v_proj").params.bits, 8);
  EXPECT_EQ(Find(*plan, "up_proj").params.bits, 4);
}

TEST_F(RecipeRulesTest, TheNativeFormatTakesAnyMixture) {
  spec_.rules = {{.pattern = "k_proj", .bits = 8}};
  EXPECT_TRUE(MakeIt().ok()) << MakeIt().status();
}

TEST_F(RecipeRulesTest, WhatTheFormatCannotHoldNamesTheRule) {
  spec_.format = "compressed-tensors";
  spec_.symmetric = true;
  spec_.rules = {{.pattern = "down_proj", .bits = 5}};
  const absl::Status status = MakeIt().status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("rule 0 (\"down_proj\")"));
}

}  // namespace
}  // namespace sinq
