#include <algorithm>
#include <map>
#include <memory>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "server/base/error.h"
#include "server/plan/plan.h"
#include "tests/fakes/native_spec.h"
#include "tests/fakes/temp_dir.h"
#include "tests/fakes/tiny_checkpoint.h"

namespace sinq {
namespace {

using nlohmann::json;
using testing::HasSubstr;

class PlannerTest : public testing::Test {
 protected:
  void WriteModel(const std::vector<TestTensor>& tensors, const std::string& config = kTinyConfig) {
    temp_.Write("m/model.safetensors", SafetensorsOf(tensors));
    if (!config.empty()) temp_.Write("m/config.json", config);
  }

  absl::StatusOr<Plan> MakeIt(const std::string& source = "m") {
    const auto files = MakePosixFileSystem({temp_.path()});
    const auto path = (*files)->Resolve(temp_.Join(source));
    if (!path.ok()) return path.status();
    const auto opened = OpenLocalSource(*path);
    if (!opened.ok()) return opened.status();
    const auto exporter = MakeExporter(spec_.format);
    if (!exporter.ok()) return exporter.status();
    return MakePlan(spec_, **opened, **exporter, {64 << 20, 2});
  }

  static const PlannedTensor& Find(const Plan& plan, const std::string& name) {
    const auto found =
        std::find_if(plan.tensors.begin(), plan.tensors.end(),
                     [&](const PlannedTensor& tensor) { return tensor.source.name == name; });
    EXPECT_NE(found, plan.tensors.end()) << name;
    return *found;
  }

  // Every byte of every shard behind its header belongs to exactly one tensor.
  static void ExpectNoGaps(const Plan& plan) {
    std::vector<std::map<uint64_t, uint64_t>> ranges(plan.files.size());
    const auto add = [&](const OutputRange& range) {
      const bool fresh = ranges[static_cast<size_t>(range.file_index)]
                             .emplace(range.offset, range.tensor.size_bytes)
                             .second;
      EXPECT_TRUE(fresh || range.tensor.size_bytes == 0) << range.tensor.name;
    };
    for (const PlannedTensor& tensor : plan.tensors)
      std::for_each(tensor.outputs.begin(), tensor.outputs.end(), add);
    for (const PlannedExtra& extra : plan.extras) add(extra.range);
    for (size_t i = 0; i < plan.files.size(); ++i) {
      uint64_t at = plan.files[i].header.size();
      for (const auto& [offset, size_bytes] : ranges[i]) {
        EXPECT_EQ(offset, at) << plan.files[i].name;
        at += size_bytes;
      }
      EXPECT_EQ(at, plan.files[i].size_bytes);
    }
  }

  TempDir temp_;
  JobSpec spec_ = NativeSpec();
};

TEST_F(PlannerTest, EveryTensorHasAnActionAndAReason) {
  WriteModel(TinyLlamaTensors());
  const auto plan = MakeIt();
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->tensors.size(), 6u);
  for (const PlannedTensor& tensor : plan->tensors) EXPECT_FALSE(tensor.reason.empty());
  EXPECT_EQ(Find(*plan, "model.layers.0.mlp.down_proj.weight").action, TensorAction::kQuantize);
  EXPECT_EQ(Find(*plan, "model.embed_tokens.weight").action, TensorAction::kCopy);
  EXPECT_THAT(Find(*plan, "lm_head.weight").reason, HasSubstr("output head"));
  EXPECT_EQ(plan->quantized_weights, 64u * 128 + 64 * 64);
  ExpectNoGaps(*plan);
}

TEST_F(PlannerTest, HeaderAndIndexAgreeWithTheRanges) {
  WriteModel(TinyLlamaTensors());
  const auto plan = MakeIt();
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->files.size(), 1u);
  const PlannedFile& file = plan->files[0];
  const json header = json::parse(file.header.substr(8));
  for (const PlannedTensor& tensor : plan->tensors) {
    for (const OutputRange& range : tensor.outputs) {
      const json& entry = header[range.tensor.name];
      EXPECT_EQ(entry["data_offsets"][0], range.offset - file.header.size());
      EXPECT_EQ(entry["data_offsets"][1],
                range.offset - file.header.size() + range.tensor.size_bytes);
      EXPECT_EQ(entry["dtype"], range.tensor.dtype);
    }
  }
  const auto index = std::find_if(
      plan->side_files.begin(), plan->side_files.end(),
      [](const SideFile& side) { return side.name == "model.safetensors.index.json"; });
  ASSERT_NE(index, plan->side_files.end());
  const json map = json::parse(index->content)["weight_map"];
  EXPECT_EQ(map["model.layers.0.self_attn.q_proj.W_q"], file.name);
  EXPECT_EQ(map.size(), header.size() - header.count("__metadata__"));
}

TEST_F(PlannerTest, DigestDependsOnRecipeAndSourceOnly) {
  WriteModel(TinyLlamaTensors());
  spec_.output_uri = "/a";
  const auto first = MakeIt();
  ASSERT_TRUE(first.ok()) << first.status();
  spec_.output_uri = "/b";
  EXPECT_EQ(MakeIt()->digest, first->digest);
  spec_.bits = 3;
  EXPECT_NE(MakeIt()->digest, first->digest);
  spec_.bits = 4;
  std::vector<TestTensor> changed = TinyLlamaTensors();
  changed.pop_back();
  WriteModel(changed);
  EXPECT_NE(MakeIt()->digest, first->digest);
}

TEST_F(PlannerTest, GroupsShrinkAndAuxFallsBackWithAReason) {
  WriteModel({Bf16Tensor("a.weight", {64, 96}, 1), Bf16Tensor("b.weight", {6, 64}, 2),
              Bf16Tensor("c.weight", {64, 50}, 3)});
  const auto plan = MakeIt();
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(Find(*plan, "a.weight").params.group_size, 32);
  EXPECT_THAT(Find(*plan, "a.weight").reason, HasSubstr("groups of 32"));
  EXPECT_EQ(Find(*plan, "b.weight").params.aux, kernels::AuxStorage::kF16);
  EXPECT_THAT(Find(*plan, "b.weight").reason, HasSubstr("f16"));
  EXPECT_EQ(Find(*plan, "c.weight").action, TensorAction::kCopy);
  ExpectNoGaps(*plan);
}

TEST_F(PlannerTest, BlockScalesOfFp8AreMultipliedInAndDropped) {
  const TestTensor weight{"a.weight", "F8_E4M3", {130, 128}, std::string(130 * 128, '\x38')};
  const TestTensor scale{"a.weight_scale_inv", "F32", {2, 1}, std::string(8, '\0')};
  WriteModel({weight, scale});
  const auto plan = MakeIt();
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(Find(*plan, "a.weight").action, TensorAction::kQuantize);
  EXPECT_EQ(Find(*plan, "a.weight_scale_inv").action, TensorAction::kDrop);
  EXPECT_TRUE(Find(*plan, "a.weight_scale_inv").outputs.empty());

  WriteModel({weight, {"a.weight_scale_inv", "F32", {1, 1}, std::string(4, '\0')}});
  EXPECT_THAT(std::string(MakeIt().status().message()), HasSubstr("a.weight_scale_inv"));
}

TEST_F(PlannerTest, Fp8ThatStaysDenseBecomesBf16) {
  const TestTensor weight{"a.weight", "F8_E4M3", {130, 128}, std::string(130 * 128, '\x38')};
  const TestTensor scale{"a.weight_scale_inv", "F32", {2, 1}, std::string(8, '\0')};
  WriteModel({weight, scale, Bf16Tensor("b.weight", {64, 64}, 1)});
  spec_.exclude = {"a"};
  const auto plan = MakeIt();
  ASSERT_TRUE(plan.ok()) << plan.status();
  const PlannedTensor& dense = Find(*plan, "a.weight");
  ASSERT_EQ(dense.outputs.size(), 1u);
  EXPECT_EQ(dense.outputs[0].tensor.dtype, "BF16");
  EXPECT_EQ(dense.outputs[0].tensor.size_bytes, 2u * 130 * 128);
  EXPECT_EQ(Find(*plan, "a.weight_scale_inv").action, TensorAction::kDrop);
  ExpectNoGaps(*plan);
}

TEST_F(PlannerTest, ABareFileIsASource) {
  temp_.Write("only.safetensors", SafetensorsOf({Bf16Tensor("kernel", {64, 64}, 1)}));
  const auto plan = MakeIt("only.safetensors");
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(Find(*plan, "kernel").action, TensorAction::kQuantize);
  for (const SideFile& side : plan->side_files) EXPECT_NE(side.name, "config.json");
}

TEST_F(PlannerTest, AQuantizedCheckpointIsRefused) {
  WriteModel(TinyLlamaTensors(),
             R"({"model_type": "llama", "quantization_config": {"quant_method": "gptq"}})");
  EXPECT_EQ(GetErrorDetails(MakeIt().status()).reason, Reason::kUnsupportedSource);
}

TEST_F(PlannerTest, AQuantizedCheckpointIsKnownByItsTensorsToo) {
  const std::string bytes(64 * 64, '\x38');
  const std::vector<std::vector<TestTensor>> models = {
      {{"a.weight", "F8_E4M3", {64, 64}, bytes}},  // whatever its scale is, there is none by block
      {{"a.weight", "F8_E4M3", {64, 64}, bytes}, {"a.weight_scale", "F32", {1}, "1234"}},
      {{"a.weight", "F8_E5M2", {64, 64}, bytes}},
      {{"a.weight", "I8", {64, 64}, bytes}},
      {{"a.weight", "U8", {64, 64}, bytes}},
      {{"e_blocks", "U8", {64, 64}, bytes}, {"e_scales", "U8", {64, 64}, bytes}},
      {Bf16Tensor("a.weight", {64, 64}, 1),
       {"a.weight.quant_state.bitsandbytes__nf4", "U8", {4}, "1234"}}};
  for (const std::vector<TestTensor>& model : models) {
    WriteModel(model);
    const absl::Status status = MakeIt().status();
    EXPECT_EQ(GetErrorDetails(status).reason, Reason::kUnsupportedSource)
        << model[0].name << " " << model[0].dtype << ": " << status;
  }
}

TEST_F(PlannerTest, AQuantizedPartOfAMultiModalCheckpointIsRefused) {
  for (const char* config : {R"({"text_config": {"quantization_config": {"quant_method": "awq"}}})",
                             R"({"compression_config": {}})"}) {
    WriteModel(TinyLlamaTensors(), config);
    EXPECT_EQ(GetErrorDetails(MakeIt().status()).reason, Reason::kUnsupportedSource) << config;
  }
}

TEST_F(PlannerTest, AnExpressionThatMatchesNothingIsAnError) {
  WriteModel(TinyLlamaTensors());
  spec_.exclude = {"no_such_layer"};
  EXPECT_THAT(std::string(MakeIt().status().message()), HasSubstr("no_such_layer"));
}

// "x.weight" becomes "x.W_q"; a tensor that is called so already cannot stand beside it.
TEST_F(PlannerTest, CollidingOutputNamesAreRefused) {
  WriteModel({Bf16Tensor("x.weight", {64, 64}, 1), Bf16Tensor("x.W_q", {64}, 2)});
  EXPECT_THAT(std::string(MakeIt().status().message()), HasSubstr("x.W_q"));
}

TEST_F(PlannerTest, FoldingShowsInActionsReasonsAndPhases) {
  WriteModel(FoldableLlamaTensors(), kFoldableConfig);
  spec_.format = "bf16-presinq";
  const auto plan = MakeIt();
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_TRUE(plan->fold.active());
  EXPECT_EQ(plan->fold.pairs.size(), 4u);
  for (const PlannedTensor& tensor : plan->tensors)
    EXPECT_EQ(tensor.action, TensorAction::kFold) << tensor.source.name;
  const PlannedTensor& v = Find(*plan, "model.layers.0.self_attn.v_proj.weight");
  EXPECT_TRUE(HasUnit(Phase::kMeasure, v));
  EXPECT_THAT(v.reason, HasSubstr("folded into model.layers.0.input_layernorm.weight"));
  EXPECT_THAT(v.reason, HasSubstr("column scale of model.layers.0.self_attn.o_proj.weight"));
  EXPECT_FALSE(HasUnit(Phase::kMeasure, Find(*plan, "model.layers.0.input_layernorm.weight")));
  EXPECT_THAT(Find(*plan, "model.layers.0.input_layernorm.weight").reason, HasSubstr("and 2 more"));
  EXPECT_EQ(Find(*plan, "model.layers.0.self_attn.v_proj.bias").fold_rows, v.fold_rows);
  EXPECT_EQ(plan->measured_bytes, 2u * (3 * 128 * 64 + 2 * 64 * 64 + 2 * 32 * 64));
  EXPECT_GT(plan->peak_memory_bytes, 64u << 20);
  ExpectNoGaps(*plan);
}

TEST_F(PlannerTest, FoldOffAndFormatsWithAColumnScaleHaveOnePhase) {
  WriteModel(FoldableLlamaTensors(), kFoldableConfig);
  const auto native = MakeIt();
  ASSERT_TRUE(native.ok()) << native.status();
  EXPECT_FALSE(native->fold.active());
  EXPECT_TRUE(FoldNotes(native->fold, 10).empty());
  spec_.format = "bf16-presinq";
  spec_.fold = "off";
  const auto plan = MakeIt();
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_FALSE(plan->fold.active());
  EXPECT_THAT(FoldNotes(plan->fold, 10)[0], HasSubstr("off"));
  for (const PlannedTensor& tensor : plan->tensors) {
    EXPECT_EQ(tensor.action, TensorAction::kCopy) << tensor.source.name;
    EXPECT_FALSE(tensor.measured);
  }
}

TEST_F(PlannerTest, TheDigestCoversTheFolds) {
  WriteModel(FoldableLlamaTensors(), kFoldableConfig);
  spec_.format = "bf16-presinq";
  const auto first = MakeIt();
  ASSERT_TRUE(first.ok()) << first.status();
  // The same tensors with other heads: the columns of o_proj go with other rows of v_proj.
  std::string other = kFoldableConfig;
  other.replace(other.find("heads\": 4"), 9, "heads\": 8");
  other.replace(other.find("value_heads\": 2"), 15, "value_heads\": 4");
  WriteModel(FoldableLlamaTensors(), other);
  const auto second = MakeIt();
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(FoldNotes(second->fold, 10).size(), 1u);
  EXPECT_NE(second->digest, first->digest);
}

TEST_F(PlannerTest, RefusedFoldsAreNamed) {
  std::vector<TestTensor> tensors = FoldableLlamaTensors();
  tensors.push_back(Bf16Tensor("model.layers.0.self_attn.extra.weight", {64, 64}, 11));
  WriteModel(tensors, kFoldableConfig);
  spec_.format = "bf16-presinq";
  const auto plan = MakeIt();
  ASSERT_TRUE(plan.ok()) << plan.status();
  const std::vector<std::string> notes = FoldNotes(plan->fold, 10);
  ASSERT_EQ(notes.size(), 2u);
  EXPECT_THAT(notes[0], HasSubstr("0 of 1"));
  EXPECT_THAT(notes[1], HasSubstr("self_attn.extra.weight"));
  EXPECT_EQ(Find(*plan, "model.layers.0.mlp.up_proj.weight").action, TensorAction::kCopy);
}

TEST_F(PlannerTest, DenseFp8BecomesBf16WhereItIsFolded) {
  std::vector<TestTensor> tensors = FoldableLlamaTensors();
  tensors[7] = {tensors[7].name, "F8_E4M3", {64, 64}, std::string(64 * 64, '\x38')};
  tensors.push_back({tensors[7].name + "_scale_inv", "F32", {1, 1}, std::string("\0\0\x80?", 4)});
  WriteModel(tensors, kFoldableConfig);
  spec_.format = "bf16-presinq";
  spec_.exclude = {"q_proj"};
  const auto plan = MakeIt();
  ASSERT_TRUE(plan.ok()) << plan.status();
  const PlannedTensor& q = Find(*plan, "model.layers.0.self_attn.q_proj.weight");
  EXPECT_EQ(q.action, TensorAction::kFold);
  EXPECT_FALSE(q.measured);
  EXPECT_EQ(q.outputs[0].tensor.dtype, "BF16");
  EXPECT_EQ(q.outputs[0].tensor.size_bytes, 2u * 64 * 64);
  EXPECT_EQ(Find(*plan, "model.layers.0.self_attn.q_proj.weight_scale_inv").action,
            TensorAction::kDrop);
}

}  // namespace
}  // namespace sinq
