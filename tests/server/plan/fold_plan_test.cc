#include "server/plan/fold_plan.h"

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sinq {
namespace {

using testing::HasSubstr;

// A model by names and shapes alone.
class FoldPlanTest : public testing::Test {
 protected:
  void Add(const std::string& name, std::vector<int64_t> shape, bool quantized = false) {
    PlannedTensor& tensor = tensors_.emplace_back();
    tensor.source.name = name;
    tensor.source.dtype = "BF16";
    tensor.source.shape = std::move(shape);
    tensor.action = quantized ? TensorAction::kQuantize : TensorAction::kCopy;
  }
  void AddLinear(const std::string& module, int64_t rows, int64_t cols, bool quantized = true) {
    Add(module + ".weight", {rows, cols}, quantized);
  }

  // Four query heads on two kv heads of 16; hidden size 64.
  void AddAttention(const std::string& p) {
    Add(p + "input_layernorm.weight", {64});
    AddLinear(p + "self_attn.q_proj", 64, 64);
    AddLinear(p + "self_attn.k_proj", 32, 64);
    AddLinear(p + "self_attn.v_proj", 32, 64);
    AddLinear(p + "self_attn.o_proj", 64, 64);
  }
  void AddMlp(const std::string& p) {
    Add(p + "post_attention_layernorm.weight", {64});
    AddLinear(p + "mlp.gate_proj", 128, 64);
    AddLinear(p + "mlp.up_proj", 128, 64);
    AddLinear(p + "mlp.down_proj", 64, 128);
  }
  void AddLlama() {
    AddAttention("model.layers.0.");
    AddMlp("model.layers.0.");
  }
  ModelShape Llama() const { return Family("llama"); }
  ModelShape Family(const std::string& type) const {
    ModelShape shape;
    shape.model_type = type;
    shape.heads = 4;
    shape.kv_heads = 2;
    shape.head_dim = 16;
    return shape;
  }

  FoldPlan Find(const ModelShape& shape) {
    const absl::StatusOr<FoldPlan> plan = FindFolds(shape, tensors_);
    EXPECT_TRUE(plan.ok()) << plan.status();
    return plan.ok() ? *plan : FoldPlan();
  }
  // Names of the readers of a producer; empty if it is refused.
  std::set<std::string> ReadersOf(const FoldPlan& plan, const std::string& producer) {
    std::set<std::string> names;
    for (const FoldPair& pair : plan.pairs) {
      if (pair.name != producer || !pair.folded()) continue;
      for (const int index : pair.consumers)
        names.insert(tensors_[static_cast<size_t>(index)].source.name);
    }
    return names;
  }
  static std::string RefusalOf(const FoldPlan& plan, const std::string& name) {
    for (const FoldPair& pair : plan.pairs) {
      if (pair.name == name) return pair.refusal;
    }
    return "no such pair";
  }
  static size_t Folded(const FoldPlan& plan) {
    return static_cast<size_t>(
        std::count_if(plan.pairs.begin(), plan.pairs.end(),
                      [](const FoldPair& pair) { return pair.folded(); }));
  }
  void Remove(const std::string& name) {
    std::erase_if(tensors_, [&](const PlannedTensor& t) { return t.source.name == name; });
  }

  std::vector<PlannedTensor> tensors_;
};

using Names = std::set<std::string>;
constexpr char kLayer[] = "model.layers.0.";

TEST_F(FoldPlanTest, LlamaHasFourPairsPerLayer) {
  AddLlama();
  const FoldPlan plan = Find(Llama());
  EXPECT_EQ(plan.pairs.size(), 4u);
  EXPECT_EQ(Folded(plan), 4u);
  EXPECT_EQ(ReadersOf(plan, "model.layers.0.input_layernorm.weight"),
            (Names{"model.layers.0.self_attn.q_proj.weight",
                   "model.layers.0.self_attn.k_proj.weight",
                   "model.layers.0.self_attn.v_proj.weight"}));
  EXPECT_EQ(ReadersOf(plan, "model.layers.0.post_attention_layernorm.weight"),
            (Names{"model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"}));
  EXPECT_EQ(ReadersOf(plan, "model.layers.0.mlp.up_proj.weight"),
            (Names{"model.layers.0.mlp.down_proj.weight"}));
  EXPECT_EQ(plan.measured_columns, 3u * 64 + 2 * 64 + 128 + 64);
  EXPECT_EQ(plan.channels, 64u + 64 + 128 + 32);
}

TEST_F(FoldPlanTest, QueryHeadsShareTheChannelsOfTheirKvHead) {
  AddLlama();
  const FoldPlan plan = Find(Llama());
  const auto pair = std::find_if(plan.pairs.begin(), plan.pairs.end(), [](const FoldPair& p) {
    return p.kind == FoldProducer::kValueRows;
  });
  ASSERT_NE(pair, plan.pairs.end());
  EXPECT_EQ(pair->channels, 32);
  EXPECT_EQ(pair->repeat, 2);
  // Query heads 0, 1 read kv head 0; 2, 3 read kv head 1.
  EXPECT_EQ(pair->ChannelOf(5), 5);
  EXPECT_EQ(pair->ChannelOf(16 + 5), 5);
  EXPECT_EQ(pair->ChannelOf(32 + 5), 16 + 5);
  EXPECT_EQ(pair->ChannelOf(48 + 15), 31);
  EXPECT_EQ(pair->RowOf(31), 31);
}

TEST_F(FoldPlanTest, ATensorThatTheTableDoesNotKnowRefusesItsLayer) {
  AddLlama();
  AddAttention("model.layers.1.");
  AddMlp("model.layers.1.");
  Add("model.layers.0.self_attn.v_norm.weight", {16});
  const FoldPlan plan = Find(Llama());
  EXPECT_EQ(Folded(plan), 4u);
  EXPECT_THAT(RefusalOf(plan, kLayer), HasSubstr("model.layers.0.self_attn.v_norm.weight"));
}

TEST_F(FoldPlanTest, AnUnknownFamilyIsLeftAloneAndNamed) {
  AddLlama();
  const FoldPlan plan = Find(Family("alpaca"));
  EXPECT_TRUE(plan.pairs.empty());
  EXPECT_FALSE(plan.active());
  EXPECT_THAT(plan.note, HasSubstr("\"alpaca\""));
}

// Loaders do not take "00" for a layer, so nothing there may stand for layer 0.
TEST_F(FoldPlanTest, APaddedNumberIsNoLayer) {
  AddLlama();
  Add("model.layers.00.input_layernorm.weight", {64});
  const FoldPlan plan = Find(Llama());
  EXPECT_EQ(Folded(plan), 4u);
  EXPECT_EQ(ReadersOf(plan, "model.layers.0.input_layernorm.weight").size(), 3u);
}

// Which of the two a loader takes is up to it, tensor by tensor.
TEST_F(FoldPlanTest, ALayerThatIsThereTwiceIsRefused) {
  AddLlama();
  AddMlp("layers.0.");
  const FoldPlan plan = Find(Llama());
  EXPECT_EQ(Folded(plan), 0u);
  EXPECT_THAT(RefusalOf(plan, "model.layers.0."), HasSubstr("as layers.0."));
  EXPECT_THAT(RefusalOf(plan, "layers.0."), HasSubstr("as model.layers.0."));
}

TEST_F(FoldPlanTest, LayersUnderUnknownNamesAreSaidToBeUnfolded) {
  AddAttention("model.tower.0.");
  const FoldPlan plan = Find(Llama());
  EXPECT_TRUE(plan.pairs.empty());
  EXPECT_THAT(plan.note, HasSubstr("no column scale is folded"));
  AddAttention("model.text_model.layers.0.");
  EXPECT_EQ(Folded(Find(Llama())), 2u);
}

TEST_F(FoldPlanTest, AnEmptyTensorIsAbsent) {
  AddLlama();
  AddLinear("model.layers.0.mlp.unheard_of", 0, 64);
  EXPECT_EQ(Folded(Find(Llama())), 4u);
}

TEST_F(FoldPlanTest, AMissingReaderRefusesItsPairOnly) {
  AddLlama();
  Remove("model.layers.0.self_attn.k_proj.weight");
  const FoldPlan plan = Find(Llama());
  EXPECT_EQ(Folded(plan), 3u);
  EXPECT_THAT(RefusalOf(plan, "model.layers.0.input_layernorm.weight"),
              HasSubstr("self_attn.k_proj.weight is missing"));
}

TEST_F(FoldPlanTest, ShapesThatDoNotFitRefuse) {
  AddAttention(kLayer);
  Add("model.layers.0.post_attention_layernorm.weight", {32});
  AddLinear("model.layers.0.mlp.gate_proj", 128, 64);
  AddLinear("model.layers.0.mlp.up_proj", 128, 64);
  AddLinear("model.layers.0.mlp.down_proj", 64, 96);
  ModelShape shape = Llama();
  shape.head_dim = 32;
  const FoldPlan plan = Find(shape);
  EXPECT_EQ(Folded(plan), 1u);
  EXPECT_THAT(RefusalOf(plan, "model.layers.0.post_attention_layernorm.weight"),
              HasSubstr("does not read 32"));
  EXPECT_THAT(RefusalOf(plan, "model.layers.0.mlp.up_proj.weight"), HasSubstr("does not read 128"));
  EXPECT_THAT(RefusalOf(plan, "model.layers.0.self_attn.v_proj.weight"), HasSubstr("heads"));
}

TEST_F(FoldPlanTest, ClippedValuesAndNormsWithABiasRefuse) {
  AddLlama();
  Add("model.layers.0.input_layernorm.bias", {64});
  ModelShape shape = Llama();
  shape.clips_values = true;
  const FoldPlan plan = Find(shape);
  EXPECT_EQ(Folded(plan), 2u);
  EXPECT_THAT(RefusalOf(plan, "model.layers.0.self_attn.v_proj.weight"), HasSubstr("clip_qkv"));
  EXPECT_THAT(RefusalOf(plan, "model.layers.0.input_layernorm.weight"), HasSubstr("bias"));
}

TEST_F(FoldPlanTest, DenseReadersAreDividedButDoNotVote) {
  AddLlama();
  for (PlannedTensor& tensor : tensors_) {
    if (tensor.source.name.find("gate_proj") != std::string::npos)
      tensor.action = TensorAction::kCopy;
  }
  const FoldPlan plan = Find(Llama());
  EXPECT_EQ(Folded(plan), 4u);
  EXPECT_EQ(plan.measured_columns, 3u * 64 + 64 + 128 + 64);
  EXPECT_EQ(ReadersOf(plan, "model.layers.0.post_attention_layernorm.weight").size(), 2u);
}

TEST_F(FoldPlanTest, NothingIsFoldedForDenseReadersAlone) {
  AddLlama();
  for (PlannedTensor& tensor : tensors_) tensor.action = TensorAction::kCopy;
  EXPECT_FALSE(Find(Llama()).active());
  for (PlannedTensor& tensor : tensors_) {
    tensor.action = TensorAction::kQuantize;
    tensor.params.method = kernels::Method::kRtn;
  }
  EXPECT_FALSE(Find(Llama()).active());
}

// Rows of a matrix that is not quantized would be rounded by any other factor.
TEST_F(FoldPlanTest, ADenseLinearProducerTakesPowersOfTwo) {
  AddLlama();
  for (PlannedTensor& tensor : tensors_) {
    if (tensor.source.name.find("up_proj") != std::string::npos)
      tensor.action = TensorAction::kCopy;
  }
  for (const FoldPair& pair : Find(Llama()).pairs)
    EXPECT_EQ(pair.power_of_two, pair.kind == FoldProducer::kRows) << pair.name;
}

TEST_F(FoldPlanTest, GemmaUsesItsOwnNorms) {
  AddLlama();
  Add("model.layers.0.pre_feedforward_layernorm.weight", {64});
  Add("model.layers.0.post_feedforward_layernorm.weight", {64});
  const FoldPlan plan = Find(Family("gemma2"));
  EXPECT_EQ(Folded(plan), 4u);
  EXPECT_TRUE(ReadersOf(plan, "model.layers.0.post_attention_layernorm.weight").empty());
  for (const FoldPair& pair : plan.pairs) {
    if (pair.name.find("norm") == std::string::npos) continue;
    EXPECT_EQ(pair.kind, FoldProducer::kNormPlusOne);
  }
}

TEST_F(FoldPlanTest, FusedLayersTakeOnlyTheirValueAndUpRows) {
  Add("model.layers.0.input_layernorm.weight", {64});
  AddLinear("model.layers.0.self_attn.qkv_proj", 64 + 2 * 32, 64);
  AddLinear("model.layers.0.self_attn.o_proj", 64, 64);
  Add("model.layers.0.post_attention_layernorm.weight", {64});
  AddLinear("model.layers.0.mlp.gate_up_proj", 256, 64);
  AddLinear("model.layers.0.mlp.down_proj", 64, 128);
  const FoldPlan plan = Find(Family("phi3"));
  EXPECT_EQ(Folded(plan), 4u);
  for (const FoldPair& pair : plan.pairs) {
    if (pair.row_block == 0) continue;
    EXPECT_EQ(pair.RowOf(0), pair.kind == FoldProducer::kFusedValueRows ? 96 : 128);
    EXPECT_EQ(pair.RowOf(31), pair.RowOf(0) + 31);
  }
}

TEST_F(FoldPlanTest, ValueRowsOfLatentAttentionLieBehindEachHeadsKeys) {
  Add("model.layers.0.input_layernorm.weight", {64});
  AddLinear("model.layers.0.self_attn.q_proj", 4 * 24, 64);
  AddLinear("model.layers.0.self_attn.kv_a_proj_with_mqa", 40, 64);
  Add("model.layers.0.self_attn.kv_a_layernorm.weight", {32});
  AddLinear("model.layers.0.self_attn.kv_b_proj", 4 * (16 + 8), 32);
  AddLinear("model.layers.0.self_attn.o_proj", 64, 32);
  ModelShape shape = Family("deepseek_v2");
  shape.qk_nope_head_dim = 16;
  shape.v_head_dim = 8;
  const FoldPlan plan = Find(shape);
  EXPECT_EQ(Folded(plan), 3u);
  for (const FoldPair& pair : plan.pairs) {
    if (pair.kind != FoldProducer::kLatentValueRows) continue;
    EXPECT_EQ(pair.channels, 32);
    EXPECT_EQ(pair.RowOf(0), 16);
    EXPECT_EQ(pair.RowOf(7), 23);
    EXPECT_EQ(pair.RowOf(8), 24 + 16);
    EXPECT_EQ(pair.ChannelOf(31), 31);
  }
}

TEST_F(FoldPlanTest, ExpertsRouterAndSharedExpertAreAllDivided) {
  AddAttention(kLayer);
  Add("model.layers.0.post_attention_layernorm.weight", {64});
  AddLinear("model.layers.0.mlp.gate", 2, 64, false);
  AddLinear("model.layers.0.mlp.shared_expert_gate", 1, 64, false);
  for (const char* part : {"experts.0", "experts.1", "shared_expert"}) {
    const std::string p = absl::StrCat("model.layers.0.mlp.", part);
    AddLinear(p + ".gate_proj", 32, 64);
    AddLinear(p + ".up_proj", 32, 64);
    AddLinear(p + ".down_proj", 64, 32);
  }
  ModelShape shape = Family("qwen2_moe");
  shape.experts = 2;
  FoldPlan plan = Find(shape);
  EXPECT_EQ(Folded(plan), 2u + 1 + 3);
  EXPECT_EQ(ReadersOf(plan, "model.layers.0.post_attention_layernorm.weight").size(), 8u);
  EXPECT_EQ(ReadersOf(plan, "model.layers.0.mlp.experts.1.up_proj.weight"),
            (Names{"model.layers.0.mlp.experts.1.down_proj.weight"}));

  Remove("model.layers.0.mlp.shared_expert_gate.weight");
  plan = Find(shape);
  EXPECT_THAT(RefusalOf(plan, "model.layers.0.post_attention_layernorm.weight"),
              HasSubstr("shared_expert_gate"));
  shape.experts = 3;
  plan = Find(shape);
  EXPECT_THAT(RefusalOf(plan, "model.layers.0.post_attention_layernorm.weight"),
              HasSubstr("config.json says 3"));
  EXPECT_EQ(Folded(plan), 2u + 3);
}

// Fused experts of three dimensions are no matrices that can be divided by columns here.
TEST_F(FoldPlanTest, FusedExpertsOnDiskRefuseTheLayer) {
  AddAttention(kLayer);
  Add("model.layers.0.post_attention_layernorm.weight", {64});
  AddLinear("model.layers.0.mlp.gate", 2, 64, false);
  Add("model.layers.0.mlp.experts.gate_up_proj", {2, 64, 64});
  Add("model.layers.0.mlp.experts.down_proj", {2, 64, 32});
  EXPECT_EQ(Folded(Find(Family("qwen3_moe"))), 0u);
}

TEST_F(FoldPlanTest, TowersAreNoLayersAndWrappedLanguageModelsAre) {
  AddAttention("model.language_model.layers.12.");
  AddAttention("vision_tower.encoder.layers.0.");
  const FoldPlan plan = Find(Llama());
  EXPECT_EQ(plan.pairs.size(), 2u);
  for (const FoldPair& pair : plan.pairs)
    EXPECT_THAT(pair.name, HasSubstr("model.language_model.layers.12."));
}

TEST(Architectures, EveryFamilyIsFoundOnce) {
  std::set<std::string> names;
  for (const Architecture& architecture : AllArchitectures()) {
    EXPECT_FALSE(architecture.block_span().empty());
    for (const char* name : architecture.model_types.span()) {
      EXPECT_TRUE(names.insert(name).second) << name;
      EXPECT_EQ(FindArchitecture(name), &architecture);
    }
  }
  EXPECT_EQ(FindArchitecture("gpt2"), nullptr);
}

}  // namespace
}  // namespace sinq
