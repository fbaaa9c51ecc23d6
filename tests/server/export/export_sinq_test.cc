#include "server/export/export_sinq.h"

#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "server/base/error.h"
#include "server/export/sinq_sidecar.h"

namespace sinq {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

QuantizedLayer Layer(int bits, int group, kernels::AuxStorage aux, bool symmetric = false,
                     int64_t rows = 64, int64_t cols = 128) {
  kernels::QuantParams params;
  params.bits = bits;
  params.group_size = group;
  params.aux = aux;
  params.symmetric = symmetric;
  return {"model.layers.0.mlp.up_proj.weight", rows, cols, params};
}

std::map<std::string, OutputTensor> TensorsOf(const QuantizedLayer& layer) {
  std::map<std::string, OutputTensor> by_name;
  const auto tensors = SinqExporter().Tensors(layer);
  EXPECT_TRUE(tensors.ok()) << tensors.status();
  for (const OutputTensor& tensor : *tensors) by_name[tensor.name] = tensor;
  return by_name;
}

json MetaOf(const QuantizedLayer& layer) {
  return json::parse(SinqSidecarEntryJson(layer, "bfloat16"))["meta"];
}

constexpr char kPath[] = "model.layers.0.mlp.up_proj";

// M = 64 * 128 / 64 = 128 groups of 64.
TEST(SinqExporterTest, F16AuxiliariesAreFourTensors) {
  auto tensors = TensorsOf(Layer(4, 64, kernels::AuxStorage::kF16));
  ASSERT_EQ(tensors.size(), 4u);
  const OutputTensor& codes = tensors[absl::StrCat(kPath, ".W_q")];
  EXPECT_EQ(codes.dtype, "U8");
  EXPECT_THAT(codes.shape, ElementsAre(64, 64));  // two rows of groups share a byte
  EXPECT_EQ(codes.size_bytes, 64u * 64);
  EXPECT_THAT(tensors[absl::StrCat(kPath, ".meta.scale2")].shape, ElementsAre(1, 128));
  EXPECT_THAT(tensors[absl::StrCat(kPath, ".meta.scale")].shape, ElementsAre(128, 1));
  EXPECT_THAT(tensors[absl::StrCat(kPath, ".meta.zero")].shape, ElementsAre(128, 1));
  EXPECT_EQ(tensors[absl::StrCat(kPath, ".meta.zero")].dtype, "F16");
}

TEST(SinqExporterTest, U8AuxiliariesAreCodesStepsAndMinima) {
  auto tensors = TensorsOf(Layer(4, 64, kernels::AuxStorage::kU8));
  ASSERT_EQ(tensors.size(), 8u);
  EXPECT_THAT(tensors[absl::StrCat(kPath, ".meta.scale.x")].shape, ElementsAre(32, 4));
  EXPECT_THAT(tensors[absl::StrCat(kPath, ".meta.scale.s")].shape, ElementsAre(1, 4));
  EXPECT_THAT(tensors[absl::StrCat(kPath, ".meta.scale.m")].shape, ElementsAre(1, 4));
  EXPECT_THAT(tensors[absl::StrCat(kPath, ".meta.zero.x")].shape, ElementsAre(128, 1));
  EXPECT_THAT(tensors[absl::StrCat(kPath, ".meta.zero.s")].shape, ElementsAre(1, 1));
  EXPECT_EQ(tensors[absl::StrCat(kPath, ".meta.zero.x")].dtype, "U8");
}

TEST(SinqExporterTest, SymmetricStoresOneZero) {
  auto tensors = TensorsOf(Layer(4, 64, kernels::AuxStorage::kU8, /*symmetric=*/true));
  const OutputTensor& zero = tensors[absl::StrCat(kPath, ".meta.zero")];
  EXPECT_TRUE(zero.shape.empty());
  EXPECT_EQ(zero.size_bytes, 2u);
  EXPECT_EQ(tensors.count(absl::StrCat(kPath, ".meta.zero.x")), 0u);
  EXPECT_EQ(MetaOf(Layer(4, 64, kernels::AuxStorage::kU8, true))["method"], "sinq_noz_quantAux");
}

TEST(SinqExporterTest, ThreeBitsPackIntoWords) {
  auto tensors = TensorsOf(Layer(3, 64, kernels::AuxStorage::kF16));
  const OutputTensor& codes = tensors[absl::StrCat(kPath, ".W_q")];
  EXPECT_EQ(codes.dtype, "I32");
  EXPECT_THAT(codes.shape, ElementsAre(13, 64));  // ceil(128 / 10) rows of words
}

TEST(SinqExporterTest, SidecarTellsTheReaderEverything) {
  const json meta = MetaOf(Layer(4, 64, kernels::AuxStorage::kU8));
  EXPECT_EQ(meta["nbits"], 4);
  EXPECT_EQ(meta["group_size"], 64);
  EXPECT_EQ(meta["shape"], json::array({64, 128}));
  EXPECT_EQ(meta["packing"], "4bit_u8");
  EXPECT_EQ(meta["method"], "sinq_quantAux");
  EXPECT_EQ(meta["unpack_view_dtype"], "torch.uint8");
  EXPECT_EQ(meta["compute_dtype"], "torch.bfloat16");
  EXPECT_EQ(meta["axis"], 1);
  EXPECT_FALSE(meta.contains("tiling_mode"));
}

// The loader drops the key for 8 bits and then fails without it.
TEST(SinqExporterTest, EightBitsHavePackingNull) {
  const json meta = MetaOf(Layer(8, 64, kernels::AuxStorage::kU8));
  ASSERT_TRUE(meta.contains("packing"));
  EXPECT_TRUE(meta["packing"].is_null());
}

TEST(SinqExporterTest, AShapeThatTheFastPathRefusesIsMarked) {
  EXPECT_EQ(MetaOf(Layer(4, 64, kernels::AuxStorage::kF16, false, 64, 48))["tiling_mode"], "2D");
  EXPECT_EQ(MetaOf(Layer(4, 64, kernels::AuxStorage::kF16, false, 64, 48))["group_size"], 16);
}

TEST(SinqExporterTest, GroupCountsThatAreNoMultipleOf32FallBackToF16) {
  const QuantizedLayer layer = Layer(4, 64, kernels::AuxStorage::kU8, false, 6, 64);
  EXPECT_EQ(TensorsOf(layer).size(), 4u);
  EXPECT_EQ(MetaOf(layer)["method"], "sinq");
  EXPECT_FALSE(MetaOf(layer).contains("scale.shape"));
}

TEST(SinqExporterTest, RefusesWhatTheFormatCannotHold) {
  EXPECT_THAT(*SinqExporter().Refusal(Layer(4, 64, kernels::AuxStorage::kU8, false, 1, 64)),
              HasSubstr("one row"));
  EXPECT_TRUE(SinqExporter().Refusal(Layer(4, 64, kernels::AuxStorage::kU8, false, 64, 50)));
  EXPECT_FALSE(SinqExporter().Refusal(Layer(4, 64, kernels::AuxStorage::kU8)));
}

TEST(SinqExporterTest, RotaryDummyOnlyForModelsWithLayers) {
  const auto extras = SinqExporter().ExtraTensors({"model.layers.0.mlp.up_proj.W_q"});
  ASSERT_EQ(extras.size(), 1u);
  EXPECT_EQ(extras[0].tensor.name, "model.rotary_emb.sinq_pad");
  EXPECT_EQ(extras[0].content.size(), extras[0].tensor.size_bytes);
  EXPECT_TRUE(SinqExporter().ExtraTensors({"a.weight"}).empty());
  EXPECT_TRUE(
      SinqExporter().ExtraTensors({"model.layers.0.x.W_q", "model.rotary_emb.inv_freq"}).empty());
}

TEST(SinqExporterTest, ConfigKeepsTheModelAndReplacesQuantization) {
  const auto files = SinqExporter().SideFiles(
      {R"({"model_type": "llama", "quantization_config": {"quant_method": "fp8"}})",
       "bfloat16",
       {Layer(3, 32, kernels::AuxStorage::kU8)},
       {}});
  ASSERT_TRUE(files.ok()) << files.status();
  ASSERT_EQ(files->size(), 2u);
  EXPECT_EQ((*files)[0].name, "config.json");
  const json config = json::parse((*files)[0].content);
  EXPECT_EQ(config["model_type"], "llama");
  EXPECT_EQ(config["quantization_config"]["quant_method"], "sinq");
  EXPECT_EQ(config["quantization_config"]["nbits"], 3);
  EXPECT_EQ((*files)[1].name, "model.safetensors.index.json.meta.json");
  EXPECT_TRUE(json::parse((*files)[1].content).contains(kPath));
}

TEST(SinqExporterTest, ABareFileHasNoConfigAndABrokenOneIsRefused) {
  const auto bare = SinqExporter().SideFiles({std::nullopt, "bfloat16", {}, {}});
  ASSERT_TRUE(bare.ok());
  ASSERT_EQ(bare->size(), 1u);
  EXPECT_EQ(json::parse((*bare)[0].content), json::object());
  const auto broken = SinqExporter().SideFiles({"[1]", "bfloat16", {}, {}});
  EXPECT_EQ(GetErrorDetails(broken.status()).reason, Reason::kMalformedSource);
}

TEST(SinqExporterTest, AdaptKeepsTheRequestAndSetsTheLayout) {
  kernels::QuantParams params = Layer(3, 32, kernels::AuxStorage::kU8, true).params;
  params.layout = kernels::Layout::kAwq;
  const auto adapted = SinqExporter().Adapt(params, "bfloat16");
  ASSERT_TRUE(adapted.ok()) << adapted.status();
  params.layout = kernels::Layout::kSinq;
  EXPECT_EQ(*adapted, params);
  EXPECT_TRUE(SinqExporter().HoldsColumnScale());
}

// The loader multiplies the codebook's values by the scales and does not convert the product.
TEST(SinqExporterTest, CodebooksHaveScalesInTheComputeDtype) {
  kernels::QuantParams params;
  params.method = kernels::Method::kSinqNf4;
  EXPECT_EQ(SinqExporter().Adapt(params, "bfloat16")->aux, kernels::AuxStorage::kBf16);
  EXPECT_EQ(SinqExporter().Adapt(params, "float32")->aux, kernels::AuxStorage::kF32);
  EXPECT_EQ(SinqExporter().Adapt(params, "float16")->aux, kernels::AuxStorage::kF16);
  QuantizedLayer layer = Layer(4, 64, kernels::AuxStorage::kBf16);
  layer.params.method = kernels::Method::kSinqNf4;
  EXPECT_EQ(MetaOf(layer)["tiling_mode"], "2D");  // gemlite's kernel is uniform
  EXPECT_EQ(MetaOf(layer)["method"], "sinq_nf4");
  EXPECT_EQ(TensorsOf(layer)[absl::StrCat(kPath, ".meta.scale2")].dtype, "BF16");
}

TEST(SinqExporterTest, HadamardIsRefused) {
  kernels::QuantParams params;
  params.method = kernels::Method::kHadamard;
  const auto adapted = SinqExporter().Adapt(params, "bfloat16");
  EXPECT_THAT(std::string(adapted.status().message()), HasSubstr("dense"));
  EXPECT_EQ(GetErrorDetails(adapted.status()).metadata["field"], "recipe.method");
}

TEST(SinqExporterTest, SquareTilesSaySo) {
  QuantizedLayer layer = Layer(4, 64, kernels::AuxStorage::kU8);
  layer.params.tiling = kernels::Tiling::k2D;
  EXPECT_EQ(MetaOf(layer)["tiling_mode"], "2D");
  EXPECT_EQ(MetaOf(layer)["scale.shape"], json::array({2, 64, 1}));
  EXPECT_EQ(MetaOf(layer)["zero.shape"], json::array({2, 64, 1}));
  EXPECT_THAT(TensorsOf(layer)[absl::StrCat(kPath, ".meta.scale2")].shape, ElementsAre(2, 1, 64));
}

TEST(MakeExporterTest, NamesTheFormatsThatExist) {
  for (const absl::string_view name : WrittenFormats())
    EXPECT_EQ((*MakeExporter(name))->name(), name);
  EXPECT_THAT(std::string(MakeExporter("onnx").status().message()), HasSubstr("sinq"));
}

}  // namespace
}  // namespace sinq
