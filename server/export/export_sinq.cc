#include "server/export/export_sinq.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "server/base/error.h"
#include "server/export/sinq_sidecar.h"

namespace sinq {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

const char* Suffix(kernels::PlaneKind kind) {
  switch (kind) {
    case kernels::PlaneKind::kCodes:
      return ".W_q";
    case kernels::PlaneKind::kColumnScale:
      return ".meta.scale2";
    case kernels::PlaneKind::kScale:
      return ".meta.scale";
    case kernels::PlaneKind::kZero:
      return ".meta.zero";
    case kernels::PlaneKind::kScaleCode:
      return ".meta.scale.x";
    case kernels::PlaneKind::kScaleStep:
      return ".meta.scale.s";
    case kernels::PlaneKind::kScaleMin:
      return ".meta.scale.m";
    case kernels::PlaneKind::kZeroCode:
      return ".meta.zero.x";
    case kernels::PlaneKind::kZeroStep:
      return ".meta.zero.s";
    case kernels::PlaneKind::kZeroMin:
      return ".meta.zero.m";
    default:
      return "";  // planes of other formats
  }
}

// Defaults of the section that transformers' SinqConfig reads; per-layer truth is in the sidecar.
ordered_json QuantizationSection(const std::vector<QuantizedLayer>& layers) {
  ordered_json section;
  const kernels::QuantParams params =
      layers.empty() ? kernels::QuantParams() : layers.front().params;
  section["quant_method"] = "sinq";
  section["nbits"] = params.bits;
  section["group_size"] = params.group_size;
  section["tiling_mode"] = "1D";
  section["method"] = "sinq";
  section["modules_to_not_convert"] = {"lm_head"};
  return section;
}

absl::StatusOr<std::string> ConfigFile(const std::string& config_json,
                                       const std::vector<QuantizedLayer>& layers) {
  ordered_json config = ordered_json::parse(config_json, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object()) {
    return MakeError(absl::StatusCode::kInvalidArgument, Reason::kMalformedSource,
                     "config.json is not a JSON object.");
  }
  config.erase("quantization_config");
  config["quantization_config"] = QuantizationSection(layers);
  return config.dump(2) + "\n";
}

// Scales must have the dtype that the codebook's values are multiplied in (the authors' loader does
// not convert the product).
kernels::AuxStorage CodebookAux(absl::string_view compute_dtype) {
  if (compute_dtype == "float32") return kernels::AuxStorage::kF32;
  return compute_dtype == "float16" ? kernels::AuxStorage::kF16 : kernels::AuxStorage::kBf16;
}

}  // namespace

absl::StatusOr<kernels::QuantParams> SinqExporter::Adapt(const kernels::QuantParams& requested,
                                                         absl::string_view compute_dtype) const {
  kernels::QuantParams params = requested;
  params.layout = kernels::Layout::kSinq;
  switch (kernels::RoundingOf(params.method)) {
    case kernels::Rounding::kNf4:
    case kernels::Rounding::kNf3:
      params.aux = CodebookAux(compute_dtype);
      break;
    case kernels::Rounding::kHadamard:
      return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
                       "Method hadamard has no place in format sinq, whose readers do not undo the "
                       "transform; use format dense, or method sinq.",
                       {{"field", "recipe.method"}});
    default:
      break;
  }
  return params;
}

std::optional<std::string> SinqExporter::Refusal(const QuantizedLayer& layer) const {
  if (layer.rows == 1) return "one row: too few values to balance";
  const auto planes = kernels::NativePlanes(layer.params, layer.rows, layer.cols);
  if (!planes.ok()) return std::string(planes.status().message());
  return std::nullopt;
}

absl::StatusOr<std::vector<OutputTensor>> SinqExporter::Tensors(const QuantizedLayer& layer) const {
  const auto planes = kernels::NativePlanes(layer.params, layer.rows, layer.cols);
  if (!planes.ok()) return Annotate(planes.status(), layer.name);
  const std::string path = LayerPath(layer.name);
  std::vector<OutputTensor> tensors;
  for (const kernels::PlaneSpec& plane : *planes) {
    tensors.push_back({absl::StrCat(path, Suffix(plane.kind)), std::string(DtypeName(plane.dtype)),
                       plane.shape, plane.size_bytes});
  }
  return tensors;
}

std::vector<ExtraTensor> SinqExporter::ExtraTensors(
    const std::vector<std::string>& tensor_names) const {
  // The loader insists on a tensor for every module with a buffer; the rotary module's own buffers
  // are not in checkpoints. An unknown name beneath it satisfies the check and leaves the model's
  // own frequencies in force.
  bool has_layers = false, has_rotary = false;
  absl::string_view prefix;
  for (const std::string& name : tensor_names) {
    if (absl::StartsWith(name, "model.layers.")) prefix = "model.";
    has_layers |= absl::StartsWith(name, "model.layers.") || absl::StartsWith(name, "layers.");
    has_rotary |= absl::StrContains(name, "rotary_emb.");
  }
  if (!has_layers || has_rotary) return {};
  return {{{absl::StrCat(prefix, "rotary_emb.sinq_pad"), "U8", {1}, 1}, std::string(1, '\0')}};
}

absl::StatusOr<std::vector<SideFile>> SinqExporter::SideFiles(const ExportedModel& model) const {
  std::vector<SideFile> files;
  if (model.config_json.has_value()) {
    absl::StatusOr<std::string> config = ConfigFile(*model.config_json, model.layers);
    if (!config.ok()) return config.status();
    files.push_back({"config.json", *std::move(config)});
  }
  std::string sidecar = "{";
  for (const QuantizedLayer& layer : model.layers) {
    absl::StrAppend(&sidecar, sidecar.size() > 1 ? ",\n " : "\n ",
                    json(LayerPath(layer.name)).dump(), ": ",
                    SinqSidecarEntryJson(layer, model.compute_dtype));
  }
  files.push_back({"model.safetensors.index.json.meta.json", sidecar + "\n}\n"});
  return files;
}

}  // namespace sinq
