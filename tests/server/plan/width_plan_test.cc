#include "server/plan/width_plan.h"

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/base/error.h"
#include "tests/fakes/native_spec.h"
#include "tests/fakes/temp_dir.h"
#include "tests/fakes/tiny_checkpoint.h"

namespace sinq {
namespace {

using testing::HasSubstr;

class WidthPlanTest : public testing::Test {
 protected:
  WidthPlanTest() {
    spec_.bits = 0;
    spec_.target_bits_per_weight = 4.75;
    Write({"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
           "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"});
  }

  void Write(const std::vector<std::string>& names) {
    std::vector<TestTensor> tensors = {Bf16Tensor("model.norm.weight", {256}, 1)};
    for (const std::string& name : names) {
      tensors.push_back(Bf16Tensor(absl::StrCat("model.layers.0.", name, ".weight"), {256, 256},
                                   static_cast<uint32_t>(tensors.size())));
    }
    temp_.Write("m/model.safetensors", SafetensorsOf(tensors));
    temp_.Write("m/config.json", kTinyConfig);
    const auto files = MakePosixFileSystem({temp_.path()});
    source_ = *OpenLocalSource(*(*files)->Resolve(temp_.Join("m")));
  }

  absl::StatusOr<Plan> Open() {
    return MakePlan(spec_, *source_, **MakeExporter(spec_.format), {64 << 20, 2, nullptr});
  }

  // As of a quantizer whose error falls by four for each bit and grows with the group; `weight`
  // makes tensors with that part in their name more sensitive.
  WidthErrors ErrorsOf(const Plan& plan, const std::string& part, double weight) {
    WidthErrors errors;
    for (const PlannedTensor& tensor : plan.tensors) {
      for (const kernels::QuantParams& params : tensor.candidates) {
        const bool is_sensitive = tensor.source.name.find(part) != std::string::npos;
        errors[tensor.source.name].push_back((is_sensitive ? weight : 1) *
                                             (1 + params.group_size / 64.0) /
                                             static_cast<double>(1 << (2 * params.bits)));
      }
    }
    return errors;
  }

  absl::StatusOr<Plan> Choose(const std::string& part, double weight) {
    const auto open = Open();
    if (!open.ok()) return open;
    return PlanWidths(spec_, *source_, **MakeExporter(spec_.format), {64 << 20, 2, nullptr},
                      ErrorsOf(*open, part, weight));
  }

  static std::map<std::string, int> BitsOf(const Plan& plan) {
    std::map<std::string, int> bits;
    for (const PlannedTensor& tensor : plan.tensors) {
      const std::string& name = tensor.source.name;
      const size_t end = name.rfind('.');
      if (tensor.action == TensorAction::kQuantize)
        bits[name.substr(name.rfind('.', end - 1) + 1, end - name.rfind('.', end - 1) - 1)] =
            tensor.params.bits;
    }
    return bits;
  }

  TempDir temp_;
  JobSpec spec_ = NativeSpec();
  std::unique_ptr<ModelSource> source_;
};

TEST_F(WidthPlanTest, TheOpenPlanListsWhatCanBeChosenAndTakesTheSmallest) {
  const auto plan = Open();
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->width_groups.size(), 7u);
  for (const WidthGroup& group : plan->width_groups) {
    EXPECT_EQ(group.tensors.size(), 1u) << group.name;
    EXPECT_EQ(group.widths.size(), 13u);  // six widths with two groups, four bits with a third
    const PlannedTensor& tensor = plan->tensors[static_cast<size_t>(group.tensors[0])];
    EXPECT_EQ(tensor.candidates.size(), group.widths.size());
    EXPECT_EQ(tensor.params.bits, 2);
    EXPECT_EQ(tensor.params.group_size, 128);
  }
}

TEST_F(WidthPlanTest, TheTargetIsKeptAndSensitiveLayersGetMore) {
  const auto plan = Choose("down_proj", 1000);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_LE(plan->effective_bits, 4.75);
  EXPECT_GT(plan->effective_bits, 4.75 - 0.5);
  std::map<std::string, int> bits = BitsOf(*plan);
  EXPECT_EQ(bits["down_proj"], 8);
  EXPECT_LT(bits["q_proj"], 8);
  EXPECT_EQ(Choose("down_proj", 1000)->digest, plan->digest);
  EXPECT_NE(Choose("up_proj", 1000)->digest, plan->digest);
}

TEST_F(WidthPlanTest, ASizeIsOfTheWholeOutput) {
  spec_.target_bits_per_weight = 0;
  spec_.target_size_bytes = 300'000;
  const auto plan = Choose("o_proj", 10);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_LE(plan->output_bytes, spec_.target_size_bytes);
  EXPECT_GT(plan->output_bytes, spec_.target_size_bytes - 20'000);
  // Just what it takes is enough.
  spec_.target_size_bytes = plan->output_bytes;
  const auto exact = Choose("o_proj", 10);
  ASSERT_TRUE(exact.ok()) << exact.status();
  EXPECT_LE(exact->output_bytes, spec_.target_size_bytes);
}

TEST_F(WidthPlanTest, ATargetBelowTheSmallestSaysTheSmallest) {
  spec_.target_bits_per_weight = 2;
  absl::Status status = Open().status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("the smallest possible is 2."));
  EXPECT_EQ(GetErrorDetails(status).metadata["field"], "recipe.target_bits_per_weight");
  spec_.target_bits_per_weight = 0;
  spec_.target_size_bytes = 1000;
  status = Open().status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("the smallest possible output has"));
  EXPECT_EQ(GetErrorDetails(status).metadata["field"], "recipe.target_size_bytes");
}

TEST_F(WidthPlanTest, FusedLayersGetOneWidth) {
  spec_.format = "compressed-tensors";
  spec_.symmetric = true;
  spec_.target_bits_per_weight = 6;
  const auto open = Open();
  ASSERT_TRUE(open.ok()) << open.status();
  EXPECT_EQ(open->width_groups.size(), 4u);  // qkv, o, gate and up, down
  const auto plan = Choose("k_proj", 1000);
  ASSERT_TRUE(plan.ok()) << plan.status();
  std::map<std::string, int> bits = BitsOf(*plan);
  EXPECT_EQ(bits["q_proj"], 8);
  EXPECT_EQ(bits["k_proj"], 8);
  EXPECT_EQ(bits["v_proj"], 8);
  EXPECT_EQ(bits["gate_proj"], bits["up_proj"]);
  EXPECT_LE(plan->effective_bits, 6);
}

TEST_F(WidthPlanTest, RulesFixWhatTheyGive) {
  spec_.rules = {{.pattern = "q_proj", .bits = 3}, {.pattern = "o_proj", .group_size = 64}};
  const auto plan = Choose("q_proj", 1e6);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(BitsOf(*plan)["q_proj"], 3);
  for (const PlannedTensor& tensor : plan->tensors) {
    if (tensor.source.name.find("o_proj") == std::string::npos) continue;
    EXPECT_EQ(tensor.params.group_size, 64);
  }
}

TEST_F(WidthPlanTest, ARuleCannotTakeTheChoiceAway) {
  spec_.format = "gptq";
  spec_.symmetric = true;
  spec_.target_bits_per_weight = 6;
  spec_.rules = {{.pattern = "down_proj", .symmetric = false}};
  const absl::Status status = Open().status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("down_proj"));
}

TEST_F(WidthPlanTest, ExpertsOfALayerCountOnce) {
  Write({"mlp.experts.0.up_proj", "mlp.experts.1.up_proj", "mlp.experts.2.up_proj",
         "mlp.experts.3.up_proj", "self_attn.o_proj"});
  spec_.target_bits_per_weight = 5;
  const auto plan = Choose("nothing", 1);
  ASSERT_TRUE(plan.ok()) << plan.status();
  int o_proj = 0, experts = 0;
  for (const PlannedTensor& tensor : plan->tensors) {
    if (tensor.action != TensorAction::kQuantize) continue;
    (tensor.source.name.find("experts") == std::string::npos ? o_proj : experts) +=
        tensor.params.bits;
  }
  EXPECT_GT(o_proj * 4, experts);
}

TEST_F(WidthPlanTest, MeasurementsOfAnotherPlanAreRefused) {
  EXPECT_TRUE(absl::IsDataLoss(
      PlanWidths(spec_, *source_, **MakeExporter("sinq"), {64 << 20, 2, nullptr}, {}).status()));
}

}  // namespace
}  // namespace sinq
