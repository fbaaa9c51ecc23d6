#include "server/plan/gguf_plan.h"

#include <algorithm>
#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/base/error.h"
#include "server/base/limits.h"
#include "server/plan/gguf_names.h"
#include "server/plan/plan.h"
#include "tests/fakes/gguf_bytes.h"
#include "tests/fakes/temp_dir.h"
#include "tests/fakes/tiny_checkpoint.h"

namespace sinq {
namespace {

using testing::HasSubstr;

std::string NameIn(absl::string_view architecture, absl::string_view source) {
  const auto place = GgufPlaceOf(*FindGgufArchitecture(architecture), source);
  return place ? place->name : "";
}

TEST(GgufNamesTest, NamesOfTheConverter) {
  EXPECT_EQ(NameIn("llama", "model.layers.31.self_attn.q_proj.weight"), "blk.31.attn_q.weight");
  EXPECT_EQ(NameIn("llama", "model.layers.0.post_attention_layernorm.weight"),
            "blk.0.ffn_norm.weight");
  EXPECT_EQ(NameIn("llama", "model.embed_tokens.weight"), "token_embd.weight");
  EXPECT_EQ(NameIn("llama", "model.norm.weight"), "output_norm.weight");
  EXPECT_EQ(NameIn("qwen2", "model.layers.2.self_attn.v_proj.bias"), "blk.2.attn_v.bias");
  EXPECT_EQ(NameIn("qwen3", "model.layers.2.self_attn.k_norm.weight"), "blk.2.attn_k_norm.weight");
  EXPECT_EQ(NameIn("phi3", "model.layers.2.mlp.gate_up_proj.weight"), "blk.2.ffn_up.weight");
  EXPECT_EQ(NameIn("olmo2", "model.layers.2.post_attention_layernorm.weight"),
            "blk.2.post_attention_norm.weight");
}

TEST(GgufNamesTest, OnlyLlamaAlternatesRows) {
  for (const GgufArchitecture& architecture : AllGgufArchitectures()) {
    for (const char* module : {"q_proj", "k_proj", "v_proj", "o_proj"}) {
      const auto place =
          GgufPlaceOf(architecture, absl::StrCat("model.layers.0.self_attn.", module, ".weight"));
      if (!place) continue;
      const bool alternates =
          architecture.name == "llama" && (module[0] == 'q' || module[0] == 'k');
      EXPECT_EQ(place->rows != GgufRows::kAsTheyAre, alternates) << architecture.name << module;
    }
  }
}

TEST(GgufNamesTest, OtherNamesHaveNoPlace) {
  for (const char* name :
       {"", "weight", "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.q_proj.scale",
        "model.layers.a.self_attn.q_proj.weight", "model.layers.0self_attn.q_proj.weight",
        "model.layers..self_attn.q_proj.weight", "model.layers.0.", "model.layers.0.weight",
        "model.layers.0.mlp.experts.0.up_proj.weight", "x.model.norm.weight", "norm.weight"}) {
    EXPECT_EQ(NameIn("llama", name), "") << name;
  }
  EXPECT_EQ(FindGgufArchitecture("gpt2"), nullptr);
}

class GgufPlanTest : public testing::Test {
 protected:
  GgufPlanTest() {
    spec_.format = "gguf";
    spec_.symmetric = false;
    spec_.group_size = 32;
    spec_.aux = "f16";
    spec_.source_uri = temp_.Join("m");
    spec_.gguf_template_uri = temp_.Join("t.gguf");
    WriteModel(FoldableLlamaTensors());
  }
  void WriteModel(const std::vector<TestTensor>& tensors,
                  const std::string& config = kFoldableConfig) {
    temp_.Write("m/model.safetensors", SafetensorsOf(tensors));
    temp_.Write("m/config.json", config);
  }
  void WriteTemplate(const std::function<void(TestGguf&)>& change = [](TestGguf&) {}) {
    TestGguf gguf = FoldableTemplate("llama");
    change(gguf);
    temp_.Write("t.gguf", gguf.Bytes());
  }
  absl::StatusOr<Plan> MakeIt() {
    const auto files = MakePosixFileSystem({temp_.path()});
    const auto inputs = OpenPlanInputs(spec_, **files);
    if (!inputs.ok()) return inputs.status();
    return MakePlan(spec_, *inputs->source, *inputs->exporter,
                    {64 << 20, 2, nullptr, nullptr, inputs->gguf_template.get()});
  }
  // Why the plan is refused; it names the field.
  std::string Why(const std::function<void(TestGguf&)>& change = [](TestGguf&) {}) {
    WriteTemplate(change);
    return WhyNot(MakeIt().status());
  }
  static std::string WhyNot(const absl::Status& status) {
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    return std::string(status.message());
  }
  static const PlannedTensor& Find(const Plan& plan, const std::string& name) {
    const auto found =
        std::find_if(plan.tensors.begin(), plan.tensors.end(),
                     [&](const PlannedTensor& tensor) { return tensor.source.name == name; });
    EXPECT_NE(found, plan.tensors.end()) << name;
    return *found;
  }
  static GgufFile Parse(const PlannedFile& file) {
    const auto parsed = ParseGguf(file.header, file.size_bytes, "planned");
    EXPECT_TRUE(parsed.ok()) << parsed.status();
    return parsed.ok() ? *parsed : GgufFile();
  }

  TempDir temp_;
  JobSpec spec_;
};

TEST_F(GgufPlanTest, EveryTensorOfTheTemplateIsWrittenOnce) {
  WriteTemplate();
  const auto plan = MakeIt();
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->files.size(), 1u);
  EXPECT_TRUE(plan->side_files.empty() && plan->copied_files.empty() && plan->extras.empty());
  const PlannedFile& file = plan->files.front();
  EXPECT_EQ(file.name, "model.gguf");
  std::map<uint64_t, uint64_t> ranges = {{0, file.header.size()}};
  for (const PlannedTensor& tensor : plan->tensors) {
    for (const OutputRange& range : tensor.outputs)
      EXPECT_TRUE(ranges.emplace(range.offset, range.tensor.size_bytes).second);
  }
  for (const PlannedPadding& zeros : file.padding)
    EXPECT_TRUE(ranges.emplace(zeros.offset, zeros.size_bytes).second);
  uint64_t at = 0;
  for (const auto& [offset, size_bytes] : ranges) {
    EXPECT_EQ(offset, at);
    at += size_bytes;
  }
  EXPECT_EQ(at, file.size_bytes);
  EXPECT_EQ(plan->output_bytes, file.size_bytes);
}

TEST_F(GgufPlanTest, QuantizedLayersBecomeBlocks) {
  spec_.fold = "off";
  const std::tuple<int, bool, GgmlType, uint32_t> cases[] = {
      {4, false, GgmlType::kQ4_1, 3}, {4, true, GgmlType::kQ4_0, 2}, {8, true, GgmlType::kQ8_0, 7}};
  for (const auto& [bits, symmetric, type, file_type] : cases) {
    spec_.bits = bits;
    spec_.symmetric = symmetric;
    WriteTemplate();
    const auto plan = MakeIt();
    ASSERT_TRUE(plan.ok()) << plan.status();
    const GgufFile file = Parse(plan->files.front());
    for (const GgufTensor& tensor : file.tensors) {
      const bool ours = absl::StrContains(tensor.name, "blk.0.") && tensor.dimensions.size() == 2;
      EXPECT_EQ(tensor.type == type, ours) << tensor.name;
    }
    EXPECT_EQ(file.numbers.at("general.file_type").value, file_type);
    EXPECT_EQ(file.numbers.at("general.quantization_version").value, 2u);
    EXPECT_EQ(file.metadata_count, 6u);  // the template's five and the version
  }
}

TEST_F(GgufPlanTest, RowsOfQueriesAndKeysAlternate) {
  WriteTemplate();
  const auto plan = MakeIt();
  ASSERT_TRUE(plan.ok()) << plan.status();
  const PlannedTensor& q = Find(*plan, "model.layers.0.self_attn.q_proj.weight");
  EXPECT_EQ(q.alternating_heads, 4);
  // Heads of 16 rows: 0, 8, 1, 9, ...; the next head begins at 16.
  EXPECT_EQ(q.SourceRow(0), 0);
  EXPECT_EQ(q.SourceRow(1), 8);
  EXPECT_EQ(q.SourceRow(2), 1);
  EXPECT_EQ(q.SourceRow(15), 15);
  EXPECT_EQ(q.SourceRow(17), 24);
  EXPECT_EQ(Find(*plan, "model.layers.0.self_attn.k_proj.weight").alternating_heads, 2);
  EXPECT_EQ(Find(*plan, "model.layers.0.self_attn.v_proj.weight").alternating_heads, 0);
}

TEST_F(GgufPlanTest, ScalesAreFoldedIntoTheTemplatesDtype) {
  WriteTemplate();
  const auto plan = MakeIt();
  ASSERT_TRUE(plan.ok()) << plan.status();
  const PlannedTensor& norm = Find(*plan, "model.layers.0.input_layernorm.weight");
  EXPECT_EQ(norm.action, TensorAction::kFold);
  EXPECT_EQ(norm.outputs.front().tensor.name, "blk.0.attn_norm.weight");
  EXPECT_EQ(norm.outputs.front().tensor.dtype, "F32");
  EXPECT_EQ(norm.outputs.front().tensor.size_bytes, 64u * 4);
  spec_.fold = "off";
  const auto unfolded = MakeIt();
  ASSERT_TRUE(unfolded.ok()) << unfolded.status();
  const PlannedTensor& dropped = Find(*unfolded, "model.layers.0.input_layernorm.weight");
  EXPECT_EQ(dropped.action, TensorAction::kDrop);
  EXPECT_THAT(dropped.reason, HasSubstr("blk.0.attn_norm.weight is kept"));
  const PlannedTensor& kept = Find(*unfolded, "blk.0.attn_norm.weight");
  EXPECT_TRUE(kept.from_template);
  EXPECT_EQ(kept.action, TensorAction::kCopy);
}

TEST_F(GgufPlanTest, DenseLayersStayTheTemplates) {
  spec_.fold = "off";
  spec_.exclude = {"q_proj"};
  WriteTemplate([](TestGguf& t) { t.Find("blk.0.attn_q.weight").type = kGgmlF16; });
  // An F16 of other bits is another checkpoint, also where nothing is replaced.
  EXPECT_THAT(WhyNot(MakeIt().status()), HasSubstr("another checkpoint"));
  WriteTemplate();
  const auto plan = MakeIt();
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(Find(*plan, "model.layers.0.self_attn.q_proj.weight").action, TensorAction::kDrop);
  EXPECT_EQ(Find(*plan, "blk.0.attn_q.weight").outputs.front().tensor.dtype, "BF16");
}

TEST_F(GgufPlanTest, WidthsAreChosenAmongBlocks) {
  spec_.bits = 0;
  spec_.symmetric = true;
  spec_.target_bits_per_weight = 7;
  WriteTemplate();
  const auto plan = MakeIt();
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->width_groups.size(), 7u);
  EXPECT_EQ(plan->width_groups.front().widths, (std::vector<Width>{{4, 32}, {8, 32}}));
}

TEST_F(GgufPlanTest, TheTemplateIsPartOfThePlan) {
  WriteTemplate();
  const auto first = MakeIt();
  WriteTemplate([](TestGguf& t) { t.AddText("general.name", "x"); });
  const auto second = MakeIt();
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_NE(first->digest, second->digest);
  ASSERT_TRUE(first->gguf_template.has_value());
  EXPECT_EQ(first->gguf_template->header_sha256.size(), 64u);
}

// More than what is read of the file at first.
TEST_F(GgufPlanTest, ALongHeaderIsRead) {
  WriteTemplate(
      [](TestGguf& t) { t.AddText("tokenizer.chat_template", std::string(3 << 20, 'x')); });
  const auto plan = MakeIt();
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_GT(Parse(plan->files.front()).data_offset, uint64_t{3} << 20);
}

TEST_F(GgufPlanTest, ATemplateOfAnotherModelIsRefused) {
  EXPECT_THAT(Why([](TestGguf& t) { t = FoldableTemplate("gpt2"); }),
              HasSubstr("architecture \"gpt2\""));
  EXPECT_THAT(Why([](TestGguf& t) { t = FoldableTemplate("qwen2"); }),
              HasSubstr("model type \"llama\""));
  EXPECT_THAT(Why([](TestGguf& t) { t.Find("blk.0.ffn_up.weight").name = "x"; }),
              HasSubstr("no blk.0.ffn_up.weight for model.layers.0.mlp.up_proj.weight"));
  EXPECT_THAT(Why([](TestGguf& t) {
                t.Find("blk.0.ffn_up.weight").dimensions = {128, 64};
              }),
              HasSubstr("is [128, 64], but the template's blk.0.ffn_up.weight is [64, 128]"));
  EXPECT_THAT(Why([](TestGguf& t) { t.Find("blk.0.ffn_up.weight").data[0] ^= 0x40; }),
              HasSubstr("at [0, 0] they differ"));
  EXPECT_THAT(Why([](TestGguf& t) { t.Find("blk.0.attn_norm.weight").data[3] ^= 1; }),
              HasSubstr("blk.0.attn_norm.weight is not"));
  // Rows in the checkpoint's order, as other architectures have them.
  EXPECT_THAT(Why([](TestGguf& t) {
                t.Find("blk.0.attn_q.weight").data =
                    FoldableTemplate("qwen2").Find("blk.0.attn_q.weight").data;
              }),
              HasSubstr("rows in another order"));
}

TEST_F(GgufPlanTest, ATemplateThatIsQuantizedIsRefused) {
  EXPECT_THAT(Why([](TestGguf& t) {
                t.Find("blk.0.ffn_up.weight").type = kGgmlQ8_0;
                t.Find("blk.0.ffn_up.weight").data = std::string(128 * 2 * 34, 'q');
              }),
              HasSubstr("blk.0.ffn_up.weight is Q8_0 already"));
  EXPECT_THAT(Why([](TestGguf& t) {
                t.Find("blk.0.attn_norm.weight").type = kGgmlF16;
                t.Find("blk.0.attn_norm.weight").data = std::string(128, '\0');
              }),
              HasSubstr("attn_norm"));
}

TEST_F(GgufPlanTest, HeadCountsThatDoNotFitAreRefused) {
  const auto with_heads = [](TestGguf& t, uint32_t heads) {
    t.pairs.erase(t.pairs.begin() + 2);
    t.AddNumber("llama.attention.head_count", heads);
  };
  EXPECT_THAT(Why([](TestGguf& t) { t.pairs.erase(t.pairs.begin() + 2); }),
              HasSubstr("no number llama.attention.head_count"));
  for (const uint32_t heads : {0u, 64u, 3u, ~0u}) {
    EXPECT_THAT(Why([&](TestGguf& t) { with_heads(t, heads); }),
                HasSubstr(absl::StrCat("not ", heads, " heads")));
  }
}

TEST_F(GgufPlanTest, FilesThatAreNoTemplatesAreRefused) {
  EXPECT_THAT(Why([](TestGguf& t) { t.version = 3u << 24; }), HasSubstr("big-endian"));
  EXPECT_THAT(Why([](TestGguf& t) { t.version = 2; }), HasSubstr("version of GGUF is 2"));
  EXPECT_THAT(Why([](TestGguf& t) { t.AddNumber("split.count", 2); }), HasSubstr("--merge"));
  EXPECT_THAT(Why([](TestGguf& t) {
                t.pairs.erase(t.pairs.begin() + 1);
                t.AddText("general.file_type", "x");
              }),
              HasSubstr("general.file_type is not a number of 32 bits"));
}

TEST_F(GgufPlanTest, HostileBytesAreRefused) {
  const auto why = [this](const std::string& bytes) {
    temp_.Write("t.gguf", bytes);
    return WhyNot(MakeIt().status());
  };
  EXPECT_THAT(why(""), HasSubstr("too early"));
  EXPECT_THAT(why("not GGUF"), HasSubstr("not a GGUF file"));
  const std::string whole = FoldableTemplate("llama").Bytes();
  for (size_t length = 0; length < whole.size(); length += 97)
    EXPECT_THAT(why(whole.substr(0, length)), HasSubstr("t.gguf")) << length;
  const std::string magic = absl::StrCat("GGUF", RawBytes(3u));
  EXPECT_THAT(why(absl::StrCat(magic, RawBytes(kMaxTensorsPerSource + 1), RawBytes<uint64_t>(0))),
              HasSubstr("max_tensors_per_source"));
  EXPECT_THAT(why(absl::StrCat(magic, RawBytes<uint64_t>(0), RawBytes(kMaxGgufPairs + 1))),
              HasSubstr("max_gguf_pairs"));
  const std::string one = absl::StrCat(magic, RawBytes<uint64_t>(0), RawBytes<uint64_t>(1));
  EXPECT_THAT(why(absl::StrCat(one, RawBytes(kMaxGgufHeaderBytes), std::string(65 << 20, 'k'))),
              HasSubstr("max_gguf_header_bytes"));
}

TEST_F(GgufPlanTest, FoldedNamesInTheWayAreRefused) {
  std::vector<TestTensor> tensors = FoldableLlamaTensors();
  tensors.push_back(Bf16Tensor("token_embd.weight", {64}, 3));
  WriteModel(tensors);
  EXPECT_THAT(Why(), HasSubstr("both have a tensor token_embd.weight"));
}

TEST_F(GgufPlanTest, LayersWithoutAPlaceMustBeExcluded) {
  std::vector<TestTensor> tensors = FoldableLlamaTensors();
  tensors.push_back(Bf16Tensor("adapter.weight", {64, 64}, 3));
  WriteModel(tensors);
  EXPECT_THAT(Why(), HasSubstr("adapter.weight has no place"));
  spec_.exclude = {"adapter"};
  const auto plan = MakeIt();
  EXPECT_TRUE(plan.ok()) << plan.status();
}

TEST_F(GgufPlanTest, WhatBlocksCannotHoldIsRefused) {
  spec_.bits = 3;
  EXPECT_THAT(Why(), HasSubstr("takes 4, 8 bits; got 3, the nearest is 4"));
  spec_.bits = 8;
  spec_.symmetric = false;
  EXPECT_THAT(Why(), HasSubstr("use symmetric true"));
  spec_.bits = 4;
  spec_.method = "sinq_nf4";
  EXPECT_THAT(Why(), HasSubstr("codebook"));
  spec_.method = "sinq";
  spec_.tiling = "2D";
  EXPECT_THAT(Why(), HasSubstr("tiling 1D"));
}

TEST_F(GgufPlanTest, AMissingTemplateIsNamed) {
  const absl::Status status = MakeIt().status();
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("gguf_template_uri"));
  spec_.gguf_template_uri = "/elsewhere/t.gguf";
  EXPECT_TRUE(absl::IsPermissionDenied(MakeIt().status()));
}

}  // namespace
}  // namespace sinq
