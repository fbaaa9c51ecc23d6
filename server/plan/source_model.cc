#include "server/plan/source_model.h"

#include <optional>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "nlohmann/json.hpp"
#include "server/base/error.h"
#include "server/base/json.h"
#include "server/base/limits.h"

namespace sinq {
namespace {

using nlohmann::json;

std::optional<std::string> StringField(const json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_string()) return std::nullopt;
  return found->get<std::string>();
}

// "dtype" (newer) or "torch_dtype", here or in the text part of a multi-modal config.
std::optional<std::string> DtypeOf(const json& config) {
  for (const char* key : {"dtype", "torch_dtype"}) {
    if (auto dtype = StringField(config, key))
      return std::string(absl::StripPrefix(*dtype, "torch."));
  }
  const auto text = config.find("text_config");
  return text != config.end() && text->is_object() ? DtypeOf(*text) : std::nullopt;
}

std::string DtypeOfTensors(const ModelSource& source) {
  for (const SourceTensor& tensor : source.tensors()) {
    if (tensor.shape.size() != 2) continue;
    if (tensor.dtype == "F16") return "float16";
    if (tensor.dtype == "F32") return "float32";
    if (tensor.dtype == "BF16") return "bfloat16";
  }
  return "bfloat16";
}

absl::Status AlreadyQuantized(absl::string_view what) {
  return MakeError(
      absl::StatusCode::kInvalidArgument, Reason::kUnsupportedSource,
      absl::StrCat("The source is already quantized (", what, "); give the original checkpoint."));
}

absl::Status CheckQuantization(const json& config) {
  if (config.contains("compression_config")) return AlreadyQuantized("compression_config");
  if (const auto text = config.find("text_config"); text != config.end() && text->is_object()) {
    if (absl::Status status = CheckQuantization(*text); !status.ok()) return status;
  }
  const auto section = config.find("quantization_config");
  if (section == config.end() || section->is_null()) return absl::OkStatus();
  if (!section->is_object()) {
    return MakeError(absl::StatusCode::kInvalidArgument, Reason::kMalformedSource,
                     "quantization_config in config.json is not an object.");
  }
  const std::string method = StringField(*section, "quant_method").value_or("unnamed method");
  const auto block = section->find("weight_block_size");
  if (method == "fp8" && block != section->end() && *block == json::array({128, 128}))
    return absl::OkStatus();
  return AlreadyQuantized(absl::StrCat("quantization_config.quant_method ", method));
}

// A matrix of whole numbers, or of the FP8 that is not read, is packed or wants a scale.
bool HoldsCodes(const SourceTensor& tensor) {
  if (tensor.shape.size() != 2 || !absl::EndsWith(tensor.name, ".weight")) return false;
  const char kind = tensor.dtype.front();
  return kind == 'I' || kind == 'U' || tensor.dtype == "F8_E5M2";
}

// Not every tool leaves a quantization_config.
absl::Status CheckTensorNames(const ModelSource& source) {
  std::set<absl::string_view> scaled;  // "x" of every "x_scales"
  for (const SourceTensor& tensor : source.tensors()) {
    if (absl::string_view stem = tensor.name; absl::ConsumeSuffix(&stem, "_scales"))
      scaled.insert(stem);
  }
  for (const SourceTensor& tensor : source.tensors()) {
    const absl::string_view name = tensor.name;
    bool is_quantized = HoldsCodes(tensor) || absl::StrContains(name, ".quant_state.bitsandbytes");
    for (const char* suffix : {".W_q", ".qweight", ".weight_packed", ".weight_quant_state", ".SCB",
                               ".weight_scale_2", ".weight._data"}) {
      is_quantized = is_quantized || absl::EndsWith(name, suffix);
    }
    if (absl::string_view stem = name; absl::ConsumeSuffix(&stem, "_blocks"))  // MXFP4
      is_quantized = is_quantized || scaled.contains(stem);
    if (is_quantized) return AlreadyQuantized(absl::StrCat("it has a tensor ", name));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SourceModel> ReadSourceModel(const ModelSource& source) {
  if (absl::Status status = CheckTensorNames(source); !status.ok()) return status;
  SourceModel model{DtypeOfTensors(source)};
  if (!source.config_json().has_value()) return model;
  const absl::StatusOr<json> config =
      ParseStrictJsonTree(*source.config_json(), kMaxJsonDepth, "config.json");
  if (!config.ok()) return config.status();
  if (!config->is_object()) {
    return MakeError(absl::StatusCode::kInvalidArgument, Reason::kMalformedSource,
                     "config.json is not a JSON object.");
  }
  if (absl::Status status = CheckQuantization(*config); !status.ok()) return status;
  const std::optional<std::string> dtype = DtypeOf(*config);
  if (dtype == "bfloat16" || dtype == "float16" || dtype == "float32") model.compute_dtype = *dtype;
  return model;
}

}  // namespace sinq
