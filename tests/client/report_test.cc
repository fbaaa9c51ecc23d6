#include "client/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "client/manifest.h"
#include "tests/client/scratch_dir.h"

namespace sinq::client {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

// As a server writes it; two quantized tensors and a copied one.
constexpr char kManifest[] = R"({
  "manifest_version": 1, "job_id": "job-1", "code_version": "0.1.0",
  "source": {"uri": "/models/tiny"},
  "recipe": {"method": "sinq", "bits": 4, "symmetric": false, "include": [], "exclude": ["a", "b"]},
  "effective_bits": 4.25, "quantized_weights": 8192, "output_bytes": 5000,
  "tensors": [
    {"name": "model.norm.weight", "action": "copy", "reason": "norm", "shape": [64],
     "outputs": [{"name": "model.norm.weight", "size_bytes": 128}]},
    {"name": "model.layers.3.mlp.up_proj.weight", "action": "quantize", "reason": "linear layer",
     "shape": [64, 64], "bits": 4, "group_size": 64, "aux": "u8", "relative_error": 0.1,
     "balanced_error": 0.05, "cosine": 0.995, "max_abs_error": 0.5, "imbalance_before": 8,
     "imbalance_after": 2, "rounds": 3.5, "kurtosis": 3.25,
     "outputs": [{"name": "model.layers.3.mlp.up_proj.W_q", "size_bytes": 2048},
                 {"name": "model.layers.3.mlp.up_proj.meta.scale2", "size_bytes": 128},
                 {"name": "model.layers.3.mlp.up_proj.meta.scale.x", "size_bytes": 64},
                 {"name": "model.layers.3.mlp.up_proj.meta.zero.x", "size_bytes": 32}]},
    {"name": "model.layers.4.mlp.experts.7.up_proj.weight", "action": "quantize", "reason": "",
     "shape": [64, 64], "bits": 4, "group_size": 64, "relative_error": 0.01,
     "balanced_error": 0.0625, "outputs": [{"name": "x.weight_packed", "size_bytes": 1000}]}]})";

QualityReport Parsed(absl::string_view text) {
  const auto report = ParseReport(text);
  EXPECT_TRUE(report.ok()) << report.status();
  return report.ok() ? *report : QualityReport();
}

TEST(Report, BlocksUnderTheWeightsNameAreCodes) {
  const QualityReport report = Parsed(R"({"manifest_version": 1, "tensors": [
    {"name": "a.weight", "action": "quantize", "shape": [2, 32],
     "outputs": [{"name": "a.weight", "size_bytes": 40}]},
    {"name": "b.weight", "action": "quantize", "shape": [2, 32],
     "outputs": [{"name": "b.weight", "size_bytes": 128}]}]})");
  ASSERT_EQ(report.tensors.size(), 2u);
  EXPECT_THAT(report.tensors[0].bytes, ElementsAre(40, 0, 0, 0, 0));
  EXPECT_THAT(report.tensors[1].bytes, ElementsAre(0, 0, 0, 0, 128));  // format dense
}

TEST(Report, FiguresOfATensor) {
  const QualityReport report = Parsed(kManifest);
  ASSERT_EQ(report.tensors.size(), 3u);
  const TensorReport& tensor = report.tensors[1];
  EXPECT_EQ(tensor.layer, 3);
  EXPECT_EQ(tensor.projection, "model.layers.mlp.up_proj");
  EXPECT_EQ(tensor.weights, 4096);
  EXPECT_NEAR(*tensor.sqnr_db(), 20, 1e-12);
  EXPECT_EQ(tensor.cosine, 0.995);
  EXPECT_EQ(tensor.max_abs_error, 0.5);
  EXPECT_EQ(tensor.kurtosis, 3.25);
  EXPECT_THAT(tensor.bytes, ElementsAre(2048, 64, 32, 128, 0));
}

TEST(Report, ExpertsOfALayerShareAProjection) {
  const TensorReport tensor = Parsed(kManifest).tensors[2];
  EXPECT_EQ(tensor.layer, 4);
  EXPECT_EQ(tensor.projection, "model.layers.mlp.experts.up_proj");
}

TEST(Report, Totals) {
  const QualityReport report = Parsed(kManifest);
  EXPECT_EQ(report.quantized_tensors, 2);
  EXPECT_EQ(report.quantized_weights, 8192);
  EXPECT_EQ(report.effective_bits, 4.25);
  EXPECT_EQ(report.recipe, "method sinq, bits 4, exclude (2)");
  EXPECT_THAT(report.bytes, ElementsAre(3048, 64, 32, 128, 128));
}

TEST(Report, RanksByTheBalancedError) {
  // By the plain error tensor 1 would be first.
  EXPECT_THAT(Parsed(kManifest).worst, ElementsAre(2, 1));
}

TEST(Report, RanksByThePlainErrorUnlessAllHaveTheBalancedOne) {
  const QualityReport report = Parsed(R"({"tensors": [
      {"name": "a", "action": "quantize", "relative_error": 0.01, "balanced_error": 0.9},
      {"name": "b", "action": "quantize", "relative_error": 0.02}]})");
  EXPECT_THAT(report.worst, ElementsAre(1, 0));
}

TEST(Report, OldManifestShowsDashes) {
  const QualityReport report = Parsed(R"({"tensors": [
      {"name": "a", "action": "quantize", "relative_error": 0.1,
       "outputs": [{"name": "a.W_q", "sha256": "00"}]}]})");
  EXPECT_FALSE(report.has_bytes);
  EXPECT_THAT(ReportText(report), HasSubstr("quantize  -     -      20.00    -"));
}

TEST(Report, NoErrorIsExact) {
  const QualityReport report =
      Parsed(R"({"tensors": [{"name": "a", "action": "quantize", "relative_error": 0}]})");
  EXPECT_THAT(ReportText(report), HasSubstr("exact"));
  EXPECT_THAT(ReportJson(report, "d"), HasSubstr("\"sqnr_db\": null"));
}

TEST(Report, JsonHasItsFieldsAlsoWhereFiguresAreAbsent) {
  const nlohmann::json json = nlohmann::json::parse(ReportJson(Parsed(kManifest), "out"));
  EXPECT_EQ(json["directory"], "out");
  EXPECT_EQ(json["totals"]["bytes"]["codes"], 3048);
  EXPECT_EQ(json["worst"][0], "model.layers.4.mlp.experts.7.up_proj.weight");
  for (const auto& tensor : json["tensors"]) {
    for (const char* field :
         {"name", "action", "reason", "layer", "projection", "shape", "bits", "group_size", "aux",
          "sqnr_db", "relative_error", "balanced_error", "cosine", "max_abs_error",
          "imbalance_before", "imbalance_after", "rounds", "kurtosis", "bytes"}) {
      EXPECT_TRUE(tensor.contains(field)) << field;
    }
  }
  EXPECT_TRUE(json["tensors"][0]["cosine"].is_null());
}

TEST(Report, RefusesWhatIsNoManifest) {
  for (const char* text :
       {"", "[]", "{", R"({"files": []})", R"({"tensors": 3})", R"({"tensors": [3]})",
        R"({"tensors": [{"action": "copy"}]})", R"({"tensors": [{"name": "a", "shape": [-1]}]})",
        R"({"tensors": [{"name": "a", "shape": [1e300]}]})",
        R"({"tensors": [{"name": "a", "shape": [4294967296, 4294967296]}]})"}) {
    EXPECT_EQ(ParseReport(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(Report, TakesNoFigureOfAnotherType) {
  const QualityReport report = Parsed(
      R"({"effective_bits": "4", "output_bytes": -1, "recipe": 3, "tensors": [
          {"name": "a", "action": "quantize", "bits": "4", "relative_error": [], "cosine": null,
           "outputs": [{"name": "a.W_q", "size_bytes": 18446744073709551615}]}]})");
  EXPECT_EQ(report.output_bytes, 0);
  EXPECT_FALSE(report.effective_bits);
  EXPECT_FALSE(report.tensors[0].bits);
  EXPECT_FALSE(report.tensors[0].relative_error);
  EXPECT_FALSE(report.tensors[0].has_bytes);
}

TEST(Report, NamesCannotSteerTheTerminalOrMakeRows) {
  const QualityReport report = Parsed(
      "{\"tensors\": [{\"name\": \"a\\u001b[2J\\nb\", \"action\": \"copy\"}]}");
  EXPECT_THAT(ReportText(report), HasSubstr("a?[2J?b"));
  EXPECT_THAT(ReportText(report), Not(HasSubstr("\x1b")));
}

TEST(Report, PartsOfEveryFormat) {
  EXPECT_EQ(PartOf("l.meta.scale2", true), PartKind::kColumnScales);
  EXPECT_EQ(PartOf("l.meta.scale.m", true), PartKind::kScales);
  EXPECT_EQ(PartOf("l.meta.zero.x", true), PartKind::kZeros);
  EXPECT_EQ(PartOf("l.weight_packed", true), PartKind::kCodes);
  EXPECT_EQ(PartOf("l.weight_scale", true), PartKind::kScales);
  EXPECT_EQ(PartOf("l.weight_zero_point", true), PartKind::kZeros);
  EXPECT_EQ(PartOf("l.qweight", true), PartKind::kCodes);
  EXPECT_EQ(PartOf("l.qzeros", true), PartKind::kZeros);
  EXPECT_EQ(PartOf("l.scales", true), PartKind::kScales);
  EXPECT_EQ(PartOf("l.weight", true), PartKind::kDense);
  EXPECT_EQ(PartOf("l.scale", false), PartKind::kDense);
}

TEST(Report, ReadsADirectory) {
  const ScratchDir scratch;
  EXPECT_EQ(ReadReport(scratch.path()).status().code(), absl::StatusCode::kNotFound);
  std::filesystem::create_directories(scratch.path());
  std::ofstream(scratch.path() + "/" + kManifestName) << kManifest;
  const auto report = ReadReport(scratch.path());
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->tensors.size(), 3u);
}

}  // namespace
}  // namespace sinq::client
