// Names, shapes, configurations and refusals of the formats that serving engines read.
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "server/base/error.h"
#include "server/export/exporter.h"
#include "server/export/module_names.h"
#include "server/export/serving_rules.h"

namespace sinq {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kConfig[] = R"({"model_type": "llama", "dtype": "bfloat16",
                              "quantization_config": {"quant_method": "fp8"}})";

struct Request {
  int bits = 4;
  int group_size = 64;
  bool symmetric = false;
};

class Format {
 public:
  explicit Format(absl::string_view name, absl::string_view dtype = "bfloat16")
      : exporter_(MakeExporter(name).value()), dtype_(dtype) {}

  absl::StatusOr<kernels::QuantParams> Adapt(kernels::QuantParams params) const {
    return exporter_->Adapt(params, dtype_);
  }
  kernels::QuantParams Params(const Request& request) const {
    kernels::QuantParams params;
    params.bits = request.bits;
    params.group_size = request.group_size;
    params.symmetric = request.symmetric;
    const auto adapted = Adapt(params);
    EXPECT_TRUE(adapted.ok()) << adapted.status();
    return adapted.ok() ? *adapted : params;
  }
  QuantizedLayer Layer(const std::string& path, const Request& request = {}, int64_t rows = 64,
                       int64_t cols = 128) const {
    return {path + ".weight", rows, cols, Params(request)};
  }
  std::map<std::string, OutputTensor> Tensors(const QuantizedLayer& layer) const {
    std::map<std::string, OutputTensor> by_name;
    const auto tensors = exporter_->Tensors(layer);
    EXPECT_TRUE(tensors.ok()) << tensors.status();
    for (const OutputTensor& tensor : *tensors) by_name[tensor.name] = tensor;
    for (const ExtraTensor& extra : exporter_->LayerExtras(layer)) {
      EXPECT_EQ(extra.content.size(), extra.tensor.size_bytes);
      by_name[extra.tensor.name] = extra.tensor;
    }
    return by_name;
  }
  absl::StatusOr<std::map<std::string, std::string>> Files(
      std::vector<QuantizedLayer> layers, std::vector<std::string> dense = {},
      std::optional<std::string> config = kConfig) const {
    const auto files = exporter_->SideFiles(
        {std::move(config), std::string(dtype_), std::move(layers), std::move(dense)});
    if (!files.ok()) return files.status();
    std::map<std::string, std::string> by_name;
    for (const SideFile& file : *files) by_name[file.name] = file.content;
    return by_name;
  }
  json Section(std::vector<QuantizedLayer> layers, std::vector<std::string> dense = {}) const {
    const auto files = Files(std::move(layers), std::move(dense));
    EXPECT_TRUE(files.ok()) << files.status();
    return files.ok() ? json::parse(files->at("config.json"))["quantization_config"] : json();
  }
  const Exporter* operator->() const { return exporter_.get(); }

 private:
  std::unique_ptr<Exporter> exporter_;
  std::string dtype_;
};

constexpr char kUp[] = "model.layers.0.mlp.up_proj";
constexpr char kDown[] = "model.layers.1.mlp.down_proj";

std::string Why(const absl::Status& status) { return std::string(status.message()); }

TEST(CompressedTensorsTest, TensorsOfALayer) {
  const Format format("compressed-tensors");
  auto tensors = format.Tensors(format.Layer(kUp));
  ASSERT_EQ(tensors.size(), 4u);
  EXPECT_THAT(tensors[absl::StrCat(kUp, ".weight_packed")].shape, ElementsAre(64, 16));
  EXPECT_EQ(tensors[absl::StrCat(kUp, ".weight_packed")].dtype, "I32");
  EXPECT_THAT(tensors[absl::StrCat(kUp, ".weight_scale")].shape, ElementsAre(64, 2));
  EXPECT_EQ(tensors[absl::StrCat(kUp, ".weight_scale")].dtype, "BF16");
  EXPECT_THAT(tensors[absl::StrCat(kUp, ".weight_zero_point")].shape, ElementsAre(8, 2));
  EXPECT_EQ(tensors[absl::StrCat(kUp, ".weight_shape")].dtype, "I64");
  EXPECT_EQ(format.Tensors(format.Layer(kUp, {4, 64, true})).size(), 3u);
}

TEST(CompressedTensorsTest, ShapeTensorHoldsTheShape) {
  const Format format("compressed-tensors");
  const auto extras = format->LayerExtras(format.Layer(kUp));
  ASSERT_EQ(extras.size(), 1u);
  int64_t shape[2];
  ASSERT_EQ(extras[0].content.size(), sizeof shape);
  std::memcpy(shape, extras[0].content.data(), sizeof shape);
  EXPECT_THAT(shape, ElementsAre(64, 128));
}

TEST(CompressedTensorsTest, ScalesHaveTheModelsDtype) {
  EXPECT_EQ(Format("compressed-tensors", "float16").Params({}).aux, kernels::AuxStorage::kF16);
  EXPECT_EQ(Format("compressed-tensors", "float32").Params({}).aux, kernels::AuxStorage::kF32);
}

TEST(CompressedTensorsTest, OneSchemeTargetsTheClass) {
  const Format format("compressed-tensors");
  const json section = format.Section({format.Layer(kUp, {4, 64, true})}, {"a.router.weight"});
  EXPECT_EQ(section["quant_method"], "compressed-tensors");
  EXPECT_EQ(section["format"], "pack-quantized");
  EXPECT_EQ(section["quantization_status"], "compressed");
  EXPECT_EQ(section["ignore"], json::array({"a.router", "lm_head"}));
  const json expected = {{"num_bits", 4},
                         {"type", "int"},
                         {"symmetric", true},
                         {"strategy", "group"},
                         {"group_size", 64}};
  EXPECT_EQ(section["config_groups"]["group_0"]["weights"], expected);
  EXPECT_EQ(section["config_groups"]["group_0"]["targets"], json::array({"Linear"}));
}

TEST(CompressedTensorsTest, SeveralSchemesTargetLayersByName) {
  const Format format("compressed-tensors");
  const json groups = format.Section(
      {format.Layer(kUp, {4, 64, true}), format.Layer(kDown, {8, 64, true})})["config_groups"];
  ASSERT_EQ(groups.size(), 2u);
  EXPECT_EQ(groups["group_0"]["targets"],
            json::array({kUp, "model.layers.0.mlp.gate_up_proj"}));  // of vLLM
  EXPECT_EQ(groups["group_1"]["targets"], json::array({kDown}));
  EXPECT_EQ(groups["group_1"]["weights"]["num_bits"], 8);
}

TEST(CompressedTensorsTest, OneGroupMentionsAllExperts) {
  const Format format("compressed-tensors");
  const std::string expert = "model.layers.0.mlp.experts.3.up_proj";
  const json groups =
      format.Section({format.Layer(expert, {4, 64, true}), format.Layer(kDown, {8, 64, true})})
          ["config_groups"];
  const json& targets = groups["group_0"]["targets"];
  ASSERT_EQ(targets.size(), 2u);  // and not the module "experts", which is no linear layer
  EXPECT_EQ(targets[0], expert);
  EXPECT_THAT(targets[1].get<std::string>(), testing::StartsWith("re:.*\\.experts"));
  EXPECT_EQ(groups["group_1"]["targets"], json::array({kDown}));
}

TEST(CompressedTensorsTest, WidthsThatItsReadersOpen) {
  const Format format("compressed-tensors");
  kernels::QuantParams params;
  params.bits = 2;
  EXPECT_THAT(Why(format.Adapt(params).status()), HasSubstr("nearest is 4"));
  params.symmetric = true;
  EXPECT_TRUE(format.Adapt(params).ok());
  params.bits = 3;
  EXPECT_THAT(Why(format.Adapt(params).status()), HasSubstr("nearest is 4"));
  EXPECT_EQ(GetErrorDetails(format.Adapt(params).status()).metadata["field"], "recipe.bits");
}

TEST(AwqTest, TensorsOfALayer) {
  const Format format("awq");
  auto tensors = format.Tensors(format.Layer(kUp));
  ASSERT_EQ(tensors.size(), 3u);
  EXPECT_THAT(tensors[absl::StrCat(kUp, ".qweight")].shape, ElementsAre(128, 8));
  EXPECT_THAT(tensors[absl::StrCat(kUp, ".scales")].shape, ElementsAre(2, 64));
  EXPECT_EQ(tensors[absl::StrCat(kUp, ".scales")].dtype, "F16");
  EXPECT_THAT(tensors[absl::StrCat(kUp, ".qzeros")].shape, ElementsAre(2, 8));
}

TEST(AwqTest, ConfigNamesEveryDenseLinear) {
  const Format format("awq");
  const json section =
      format.Section({format.Layer(kUp)}, {"model.layers.3.mlp.gate.weight", "lm_head.weight"});
  EXPECT_EQ(section["quant_method"], "awq");
  EXPECT_EQ(section["bits"], 4);
  EXPECT_EQ(section["group_size"], 64);
  EXPECT_EQ(section["zero_point"], true);
  EXPECT_EQ(section["version"], "gemm");
  EXPECT_EQ(section["modules_to_not_convert"], json::array({"model.layers.3.mlp.gate", "lm_head"}));
}

// Engines ask for the fused module, and look for the names as parts of its path.
TEST(AwqTest, ConfigNamesFusedModulesThatStayDense) {
  const Format format("awq");
  const json section = format.Section({format.Layer(kDown)},
                                      {"model.layers.0.self_attn.q_proj.weight",
                                       "model.layers.0.self_attn.k_proj.weight",
                                       "model.layers.0.mlp.experts.0.up_proj.weight"});
  EXPECT_EQ(section["modules_to_not_convert"],
            json::array({"model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.qkv_proj",
                         "model.layers.0.self_attn.k_proj",
                         "model.layers.0.mlp.experts.0.up_proj", "model.layers.0.mlp.experts",
                         "lm_head"}));
}

// Readers search for "model.layers.0.mlp.gate" in every path, and find it in that of gate_proj.
TEST(AwqTest, ANameThatIsPartOfAnotherIsRefused) {
  const Format format("awq");
  const auto files = format.Files({format.Layer("model.layers.0.mlp.gate_proj")},
                                  {"model.layers.0.mlp.gate.weight"});
  EXPECT_THAT(Why(files.status()), HasSubstr("model.layers.0.mlp.gate_proj"));
}

TEST(AwqTest, HoldsOneGroupSizeAndFourBits) {
  const Format format("awq");
  const auto files =
      format.Files({format.Layer(kUp, {4, 64}), format.Layer(kDown, {4, 128, true})});
  EXPECT_THAT(Why(files.status()), HasSubstr("one group size"));
  kernels::QuantParams params;
  params.bits = 8;
  EXPECT_THAT(Why(format.Adapt(params).status()), HasSubstr("nearest is 4"));
}

TEST(GptqTest, TensorsOfALayer) {
  const Format format("gptq");
  auto tensors = format.Tensors(format.Layer(kUp, {3, 64, true}));
  ASSERT_EQ(tensors.size(), 4u);
  EXPECT_THAT(tensors[absl::StrCat(kUp, ".qweight")].shape, ElementsAre(12, 64));
  EXPECT_THAT(tensors[absl::StrCat(kUp, ".qzeros")].shape, ElementsAre(2, 6));
  EXPECT_THAT(tensors[absl::StrCat(kUp, ".scales")].shape, ElementsAre(2, 64));
  EXPECT_THAT(tensors[absl::StrCat(kUp, ".g_idx")].shape, ElementsAre(128));
}

TEST(GptqTest, GroupIndexCountsGroups) {
  const Format format("gptq");
  const auto extras = format->LayerExtras(format.Layer(kUp));
  ASSERT_EQ(extras.size(), 1u);
  std::vector<int32_t> index(128);
  std::memcpy(index.data(), extras[0].content.data(), 512);
  for (size_t k = 0; k < index.size(); ++k) EXPECT_EQ(index[k], k < 64 ? 0 : 1) << k;
}

TEST(GptqTest, SymmetryDecidesTheVersion) {
  const Format format("gptq");
  const json v1 = format.Section({format.Layer(kUp, {4, 64, true})});
  EXPECT_EQ(v1["checkpoint_format"], "gptq");
  EXPECT_EQ(v1["format"], "gptq");
  EXPECT_EQ(v1["sym"], true);
  EXPECT_FALSE(v1.contains("dynamic"));
  EXPECT_FALSE(v1.contains("modules_in_block_to_quantize"));
  const json v2 = format.Section({format.Layer(kUp)});
  EXPECT_EQ(v2["checkpoint_format"], "gptq_v2");
  EXPECT_EQ(v2["sym"], false);
  EXPECT_THAT(Why(format.Files({format.Layer(kUp), format.Layer(kDown, {4, 64, true})}).status()),
              HasSubstr("not both"));
}

TEST(GptqTest, TheSectionIsMirrored) {
  const Format format("gptq");
  const auto files = format.Files({format.Layer(kUp, {4, 64, true})});
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_EQ(json::parse(files->at("quantize_config.json")),
            json::parse(files->at("config.json"))["quantization_config"]);
}

// Marlin takes the model's dtype, exllama only float16.
TEST(GptqTest, DtypeOfTheKernelsThatReadIt) {
  const Format format("gptq");
  const auto dtype = [&](const Request& request) {
    return json::parse(format.Files({format.Layer(kUp, request)})->at("config.json"))["dtype"];
  };
  EXPECT_EQ(dtype({4, 64, true}), "bfloat16");
  EXPECT_EQ(dtype({8, 64, true}), "bfloat16");
  EXPECT_EQ(dtype({3, 64, true}), "float16");
  EXPECT_EQ(dtype({4, 64, false}), "float16");
}

TEST(GptqTest, RulesForDenseAndOtherWidths) {
  const Format format("gptq");
  const Request four{4, 64, true}, eight{8, 128, true};
  const json section =
      format.Section({format.Layer(kUp, four), format.Layer("model.layers.0.mlp.gate_proj", four),
                      format.Layer(kDown, eight)},
                     {"model.layers.0.self_attn.q_proj.weight", "lm_head.weight"});
  EXPECT_EQ(section["bits"], 4);
  const json& rules = section["dynamic"];
  EXPECT_EQ(rules[R"(+:^model\.layers\.1\.mlp\.down_proj$)"],
            json({{"bits", 8}, {"group_size", 128}}));
  EXPECT_TRUE(rules.contains(R"(-:^model\.layers\.0\.self_attn\.q_proj$)"));
  EXPECT_TRUE(rules.contains(R"(-:^model\.layers\.0\.self_attn\.qkv_proj$)"));
  EXPECT_EQ(rules.size(), 3u);  // lm_head has a key of its own
  EXPECT_EQ(section["modules_in_block_to_quantize"],
            json::array({json::array({"mlp.down_proj", "mlp.gate_proj", "mlp.up_proj"})}));
}

// vLLM takes it for gate_proj and up_proj, and asks whether those are quantized.
TEST(GptqTest, AFusedLayerOfTheSourceIsNamedByItsPartsToo) {
  const Format format("gptq");
  const json section =
      format.Section({format.Layer("model.layers.0.mlp.gate_up_proj", {4, 64, true})});
  EXPECT_EQ(section["modules_in_block_to_quantize"],
            json::array({json::array({"mlp.gate_proj", "mlp.gate_up_proj", "mlp.up_proj"})}));
}

TEST(GptqTest, WholePathsWhereNamesInsideABlockAreAmbiguous) {
  const Format format("gptq");
  const json section =
      format.Section({format.Layer(kDown, {4, 64, true})}, {"model.layers.0.mlp.down_proj.weight"});
  EXPECT_EQ(section["modules_in_block_to_quantize"], json::array({json::array({kDown})}));
}

TEST(HqqTest, MetadataAreTensors) {
  const Format format("hqq");
  auto tensors = format.Tensors(format.Layer(kUp, {3, 64}));
  EXPECT_EQ(tensors.size(), 3u + 16);
  EXPECT_THAT(tensors[absl::StrCat(kUp, ".W_q")].shape, ElementsAre(13, 64));
  EXPECT_EQ(tensors[absl::StrCat(kUp, ".zero")].dtype, "BF16");
  EXPECT_EQ(tensors[absl::StrCat(kUp, ".nbits")].dtype, "I32");
  EXPECT_TRUE(tensors[absl::StrCat(kUp, ".nbits")].shape.empty());
  std::map<std::string, std::string> contents;
  for (const ExtraTensor& extra : format->LayerExtras(format.Layer(kUp, {3, 64})))
    contents[extra.tensor.name.substr(sizeof kUp)] = extra.content;
  EXPECT_EQ(contents["packing"], "3bit_32");
  EXPECT_EQ(contents["unpack_view_dtype"], "torch.int32");
  EXPECT_EQ(contents["compute_dtype"], "torch.bfloat16");
  EXPECT_EQ(contents["nbits"], std::string("\3\0\0\0", 4));
  EXPECT_EQ(contents["view_as_float"], std::string(1, '\0'));
}

TEST(HqqTest, ConfigNamesWhatIsSkipped) {
  const Format format("hqq");
  const json section = format.Section({format.Layer(kUp)}, {"a.gate.weight"});
  EXPECT_EQ(section["quant_method"], "hqq");
  EXPECT_EQ(section["quant_config"]["weight_quant_params"]["nbits"], 4);
  EXPECT_EQ(section["skip_modules"], json::array({"a.gate", "lm_head"}));
}

TEST(DenseTest, WeightsKeepTheirNameAndDtype) {
  const Format format("dense");
  QuantizedLayer layer = format.Layer(kUp);
  for (const auto& [source, written] :
       std::map<std::string, std::string>{{"BF16", "BF16"}, {"F32", "F32"}, {"F8_E4M3", "BF16"}}) {
    layer.source_dtype = source;
    auto tensors = format.Tensors(layer);
    ASSERT_EQ(tensors.size(), 1u);
    EXPECT_EQ(tensors[layer.name].dtype, written);
    EXPECT_THAT(tensors[layer.name].shape, ElementsAre(64, 128));
  }
  layer.name = "kernel";
  EXPECT_EQ(format.Tensors(layer).count("kernel"), 1u);
  const auto files = format.Files({layer});
  EXPECT_FALSE(json::parse(files->at("config.json")).contains("quantization_config"));
}

TEST(DenseTest, TakesEveryMethod) {
  kernels::QuantParams params;
  params.method = kernels::Method::kHadamard;
  EXPECT_EQ(Format("dense").Adapt(params)->layout, kernels::Layout::kDense);
}

TEST(ServingRulesTest, RequestsThatOnlyOtherFormatsHold) {
  for (const char* name : {"compressed-tensors", "awq", "gptq"}) {
    const Format format(name);
    const auto refused = [&](auto change) {
      kernels::QuantParams params;
      change(params);
      const absl::Status status = format.Adapt(params).status();
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name;
      return Why(status);
    };
    using kernels::QuantParams;
    EXPECT_THAT(refused([](QuantParams& p) { p.method = kernels::Method::kNf4; }),
                HasSubstr("codebook"));
    EXPECT_THAT(refused([](QuantParams& p) { p.method = kernels::Method::kHadamard; }),
                HasSubstr("format dense"));
    EXPECT_THAT(refused([](QuantParams& p) { p.method = kernels::Method::kHqq; }),
                HasSubstr("real zeros"));
    EXPECT_THAT(refused([](QuantParams& p) { p.method = kernels::Method::kAsinq; }),
                HasSubstr("column scale of its own"));
    EXPECT_THAT(refused([](QuantParams& p) { p.tiling = kernels::Tiling::k2D; }),
                HasSubstr("tiling 1D"));
    EXPECT_THAT(refused([](QuantParams& p) { p.profile = kernels::Profile::kUpstream; }),
                HasSubstr("profile default"));
    EXPECT_THAT(refused([](QuantParams& p) { p.group_size = 16; }), HasSubstr("32, 64 or 128"));
  }
}

TEST(ServingRulesTest, ShapesThatKernelsRefuse) {
  for (const char* name : {"compressed-tensors", "awq", "gptq"}) {
    const Format format(name);
    EXPECT_THAT(*format->Refusal(format.Layer(kUp, {}, 96, 128)), HasSubstr("out_features = 96"));
    EXPECT_THAT(*format->Refusal(format.Layer(kUp, {}, 64, 192)), HasSubstr("in_features = 192"));
    EXPECT_FALSE(format->Refusal(format.Layer(kUp, {}, 64, 256)));
    EXPECT_FALSE(format->HoldsColumnScale());
  }
}

TEST(ServingRulesTest, FusedModules) {
  EXPECT_EQ(FusedModule("model.layers.0.self_attn.k_proj"), "model.layers.0.self_attn.qkv_proj");
  EXPECT_EQ(FusedModule("model.layers.0.mlp.gate_proj"), "model.layers.0.mlp.gate_up_proj");
  EXPECT_EQ(FusedModule("model.layers.0.mlp.experts.7.down_proj"), "model.layers.0.mlp.experts");
  EXPECT_EQ(FusedModule("model.layers.0.mlp.down_proj"), "model.layers.0.mlp.down_proj");
  EXPECT_EQ(FusedModule("q_proj"), "qkv_proj");
}

TEST(ModuleNamesTest, TextModelsHaveTheirOwnNamesAlone) {
  const Format format("awq");
  const ModuleNames names({kConfig, "bfloat16", {format.Layer(kUp)}, {}});
  EXPECT_THAT(names.Of(kUp), ElementsAre(kUp, "model.layers.0.mlp.gate_up_proj"));
  EXPECT_THAT(names.Of("model.layers.0.self_attn.q_a_proj"),
              ElementsAre("model.layers.0.self_attn.q_a_proj",
                          "model.layers.0.self_attn.fused_qkv_a_proj_with_mqa",
                          "model.layers.0.self_attn.fused_qkv_a_proj"));
}

// On disk, in transformers and in vLLM the same part has other names.
TEST(ModuleNamesTest, PartsOfMultiModalModelsAreNamedWhereverTheyMayBe) {
  const Format format("awq");
  const ModuleNames names(
      {kConfig, "bfloat16", {format.Layer(kDown)}, {"visual.blocks.0.attn.proj.weight"}});
  EXPECT_THAT(names.Of(kDown),
              testing::UnorderedElementsAre(kDown, "model.language_model.layers.1.mlp.down_proj",
                                            "language_model.model.layers.1.mlp.down_proj"));
  EXPECT_THAT(names.Of("visual.blocks.0.attn.proj"),
              ElementsAre("visual.blocks.0.attn.proj", "model.visual.blocks.0.attn.proj"));
  EXPECT_THAT(names.Of("vision_tower.vision_model.a"),
              ElementsAre("vision_tower.vision_model.a", "model.vision_tower.a", "vision_tower.a"));
}

TEST(ServingRulesTest, PartsOfAFusedModuleMustBeAlike) {
  for (const char* name : {"compressed-tensors", "gptq"}) {
    const Format format(name);
    const auto widths = format.Files(
        {format.Layer("a.q_proj", {4, 64, true}), format.Layer("a.v_proj", {8, 64, true})});
    EXPECT_THAT(Why(widths.status()), HasSubstr("a.q_proj (4 bits in groups of 64, symmetric)"));
    const auto half = format.Files({format.Layer("a.up_proj")}, {"a.gate_proj.weight"});
    EXPECT_THAT(Why(half.status()), HasSubstr("a.gate_proj (dense)"));
  }
}

TEST(ServingRulesTest, TheSourcesOwnQuantizationIsGone) {
  for (const char* name : {"compressed-tensors", "awq", "gptq", "hqq"}) {
    const Format format(name);
    EXPECT_NE(format.Section({format.Layer(kUp)})["quant_method"], "fp8");
    EXPECT_TRUE(format.Section({}).is_null()) << "nothing is quantized";
  }
}

TEST(ServingRulesTest, ABareFileGetsTheSectionAlone) {
  for (const char* name : {"compressed-tensors", "awq", "gptq", "hqq"}) {
    const Format format(name);
    const auto files = format.Files({format.Layer("kernel")}, {}, std::nullopt);
    ASSERT_TRUE(files.ok()) << files.status();
    EXPECT_EQ(files->count("config.json"), 0u);
    EXPECT_EQ(json::parse(files->at("quantization_config.json"))["quant_method"], name);
  }
  EXPECT_TRUE(Format("dense").Files({}, {}, std::nullopt)->empty());
}

TEST(ServingRulesTest, ABrokenConfigIsRefused) {
  for (const absl::string_view name : {"compressed-tensors", "awq", "gptq", "hqq", "dense"}) {
    const auto files = Format(name).Files({}, {}, "[1]");
    EXPECT_EQ(GetErrorDetails(files.status()).reason, Reason::kMalformedSource) << name;
  }
}

TEST(ServingRulesTest, ADtypeInsideTheTextPartIsReplacedToo) {
  const Format format("gptq");
  const auto files =
      format.Files({format.Layer(kUp)}, {}, R"({"text_config": {"torch_dtype": "bfloat16"}})");
  const json config = json::parse(files->at("config.json"));
  EXPECT_EQ(config["text_config"]["torch_dtype"], "float16");
  EXPECT_FALSE(config.contains("torch_dtype"));
}

}  // namespace
}  // namespace sinq
