#include "server/export/export_presinq.h"

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "server/base/error.h"

namespace sinq {
namespace {

constexpr char kNoLayers[] = "this format has no quantized layers";

}  // namespace

absl::StatusOr<kernels::QuantParams> PresinqExporter::Adapt(
    const kernels::QuantParams& requested, absl::string_view /*compute_dtype*/) const {
  if (!kernels::Balances(requested.method)) {
    return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
                     absl::StrCat("Method \"", kernels::MethodName(requested.method),
                                  "\" has no column scale to fold; use \"sinq\"."),
                     {{"field", "recipe.method"}});
  }
  kernels::QuantParams params = requested;
  params.layout = kernels::Layout::kDense;
  return params;
}

std::optional<std::string> PresinqExporter::Refusal(const QuantizedLayer& /*layer*/) const {
  return kNoLayers;
}

absl::StatusOr<std::vector<OutputTensor>> PresinqExporter::Tensors(
    const QuantizedLayer& layer) const {
  return absl::FailedPreconditionError(absl::StrCat(layer.name, ": ", kNoLayers));
}

absl::StatusOr<std::vector<SideFile>> PresinqExporter::SideFiles(const ExportedModel& model) const {
  if (!model.config_json.has_value()) return std::vector<SideFile>();
  nlohmann::ordered_json config =
      nlohmann::ordered_json::parse(*model.config_json, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object()) {
    return MakeError(absl::StatusCode::kInvalidArgument, Reason::kMalformedSource,
                     "config.json is not a JSON object.");
  }
  // FP8 weights are in BF16 now.
  config.erase("quantization_config");
  return std::vector<SideFile>{{"config.json", config.dump(2) + "\n"}};
}

}  // namespace sinq
