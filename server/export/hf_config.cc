#include "server/export/hf_config.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "server/base/error.h"

namespace sinq {
namespace {

using nlohmann::ordered_json;

constexpr const char* kDtypeKeys[] = {"dtype", "torch_dtype"};

// Sets the dtype where the config has one, at the top and in the text part of a multi-modal model.
bool ReplaceDtype(ordered_json& config, absl::string_view dtype) {
  bool found = false;
  for (const char* key : kDtypeKeys) {
    if (!config.contains(key)) continue;
    config[key] = dtype;
    found = true;
  }
  const auto text = config.find("text_config");
  if (text != config.end() && text->is_object()) found |= ReplaceDtype(*text, dtype);
  return found;
}

}  // namespace

absl::StatusOr<std::optional<SideFile>> ConfigFile(const ExportedModel& model,
                                                   const ordered_json& section,
                                                   std::optional<absl::string_view> dtype) {
  if (!model.config_json.has_value()) {
    if (section.is_null()) return std::nullopt;
    return SideFile{"quantization_config.json", section.dump(2) + "\n"};
  }
  ordered_json config =
      ordered_json::parse(*model.config_json, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object()) {
    return MakeError(absl::StatusCode::kInvalidArgument, Reason::kMalformedSource,
                     "config.json is not a JSON object.");
  }
  config.erase("quantization_config");
  if (dtype.has_value() && !ReplaceDtype(config, *dtype)) config["torch_dtype"] = *dtype;
  if (!section.is_null()) config["quantization_config"] = section;
  return SideFile{"config.json", config.dump(2) + "\n"};
}

std::vector<std::string> DenseModules(const ExportedModel& model) {
  std::vector<std::string> modules;
  for (const std::string& name : model.dense_linears) modules.push_back(LayerPath(name));
  constexpr absl::string_view kHead = "lm_head";
  if (std::find(modules.begin(), modules.end(), kHead) == modules.end())
    modules.emplace_back(kHead);
  return modules;
}

}  // namespace sinq
