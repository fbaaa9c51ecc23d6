#include "server/plan/tensor_rules.h"

#include <string>

#include "gtest/gtest.h"
#include "tests/fakes/native_spec.h"

namespace sinq {
namespace {

SourceTensor Tensor(std::string name, std::vector<int64_t> shape = {64, 64},
                    std::string dtype = "BF16") {
  SourceTensor tensor;
  tensor.name = std::move(name);
  tensor.shape = std::move(shape);
  tensor.dtype = std::move(dtype);
  return tensor;
}

bool IsCopied(const std::string& name) { return ReasonToCopy(Tensor(name), false).has_value(); }

TEST(TensorRulesTest, LinearLayersAreQuantized) {
  for (const char* name :
       {"model.layers.0.self_attn.q_proj.weight", "model.layers.11.mlp.gate_proj.weight",
        "model.layers.3.mlp.experts.7.down_proj.weight",
        "model.layers.3.block_sparse_moe.experts.0.w1.weight",
        "model.language_model.layers.0.mlp.up_proj.weight", "layers.0.attention.wq.weight"}) {
    EXPECT_FALSE(IsCopied(name)) << name << ": " << *ReasonToCopy(Tensor(name), false);
  }
}

TEST(TensorRulesTest, WhatEnginesExpectDenseIsCopied) {
  for (const char* name :
       {"model.embed_tokens.weight", "transformer.wte.weight", "lm_head.weight",
        "model.layers.0.mlp.gate.weight", "model.layers.0.block_sparse_moe.gate.weight",
        "model.layers.0.mlp.shared_expert_gate.weight", "model.layers.0.input_layernorm.weight",
        "model.visual.blocks.0.attn.qkv.weight", "model.layers.0.mlp.router.weight",
        "model.layers.0.mamba.conv1d.weight", "model.layers.61.eh_proj.weight"}) {
    EXPECT_TRUE(IsCopied(name)) << name;
  }
}

// Components count, not substrings.
TEST(TensorRulesTest, SimilarNamesAreNotMistaken) {
  EXPECT_FALSE(IsCopied("model.layers.0.mlp.output_proj.weight"));
  EXPECT_FALSE(IsCopied("model.layers.0.routerish.weight"));
}

TEST(TensorRulesTest, ShapeAndDtypeDecideFirst) {
  const std::string name = "model.layers.0.mlp.up_proj.weight";
  EXPECT_TRUE(ReasonToCopy(Tensor(name, {64}), false));
  EXPECT_TRUE(ReasonToCopy(Tensor(name, {}), false));
  EXPECT_TRUE(ReasonToCopy(Tensor(name, {8, 64, 64}), false));
  EXPECT_TRUE(ReasonToCopy(Tensor(name, {1, 64}), false));
  EXPECT_TRUE(ReasonToCopy(Tensor(name, {0, 64}), false));
  EXPECT_TRUE(ReasonToCopy(Tensor(name, {64, 64}, "I8"), false));
  EXPECT_TRUE(ReasonToCopy(Tensor(name, {64, 64}, "F64"), false));
  EXPECT_FALSE(ReasonToCopy(Tensor(name, {64, 64}, "F8_E4M3"), false));
}

// What a format must name when it stays dense.
TEST(TensorRulesTest, DenseLinearLayersAreKnown) {
  EXPECT_TRUE(IsLinear(Tensor("lm_head.weight")));
  EXPECT_TRUE(IsLinear(Tensor("model.layers.0.mlp.gate.weight", {8, 64})));
  EXPECT_TRUE(IsLinear(Tensor("model.layers.0.mlp.shared_expert_gate.weight", {1, 64})));
  EXPECT_TRUE(IsLinear(Tensor("model.visual.blocks.0.attn.qkv.weight")));
  EXPECT_TRUE(IsLinear(Tensor("model.layers.0.self_attn.q_proj.weight", {64, 50}, "F32")));
  EXPECT_FALSE(IsLinear(Tensor("model.embed_tokens.weight")));
  EXPECT_FALSE(IsLinear(Tensor("model.layers.0.self_attn.q_proj.bias", {64})));
  EXPECT_FALSE(IsLinear(Tensor("model.layers.0.mamba.conv1d.weight")));
  EXPECT_FALSE(IsLinear(Tensor("model.layers.0.mlp.experts.down_proj.weight", {4, 64, 64})));
  EXPECT_FALSE(IsLinear(Tensor("model.layers.0.some_norm.weight")));
}

TEST(TensorRulesTest, ABareFileMayNameItsMatricesFreely) {
  EXPECT_TRUE(ReasonToCopy(Tensor("blocks.0.attn.kernel"), false));
  EXPECT_FALSE(ReasonToCopy(Tensor("blocks.0.attn.kernel"), true));
}

TEST(NameFilterTest, ExcludeWinsAndUnusedExpressionsAreErrors) {
  JobSpec spec = NativeSpec();
  spec.include = {"mlp"};
  spec.exclude = {"down_proj"};
  auto filter = NameFilter::Make(spec);
  ASSERT_TRUE(filter.ok()) << filter.status();
  EXPECT_FALSE(filter->ReasonToCopy("a.mlp.up_proj.weight"));
  EXPECT_FALSE(filter->CheckAllMatched().ok());  // nothing was excluded yet
  EXPECT_EQ(*filter->ReasonToCopy("a.mlp.down_proj.weight"), "excluded by \"down_proj\"");
  EXPECT_TRUE(filter->ReasonToCopy("a.attn.q_proj.weight"));
  EXPECT_TRUE(filter->CheckAllMatched().ok());
  spec.include = {"("};
  EXPECT_FALSE(NameFilter::Make(spec).ok());
}

}  // namespace
}  // namespace sinq
