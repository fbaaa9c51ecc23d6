#include "server/export/module_names.h"

#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/export/hf_config.h"

namespace sinq {
namespace {

constexpr std::array<std::pair<absl::string_view, absl::string_view>, 9> kFusedParts = {{
    {"q_proj", "qkv_proj"},
    {"k_proj", "qkv_proj"},
    {"v_proj", "qkv_proj"},
    {"gate_proj", "gate_up_proj"},
    {"up_proj", "gate_up_proj"},
    {"w1", "gate_up_proj"},
    {"w3", "gate_up_proj"},
    {"q_a_proj", "fused_qkv_a_proj"},
    {"kv_a_proj_with_mqa", "fused_qkv_a_proj"},
}};
// SGLang's name for what vLLM calls fused_qkv_a_proj.
constexpr absl::string_view kFusedLatents = "fused_qkv_a_proj", kWithMqa = "_with_mqa";

// Where the same part of a multi-modal model is: on disk, in transformers, in vLLM.
using Places = std::array<absl::string_view, 3>;
constexpr std::array<Places, 4> kPlaces = {{
    {"model.language_model.layers.", "language_model.model.layers.", "model.layers."},
    {"model.visual.", "visual.", ""},
    {"vision_tower.vision_model.", "model.vision_tower.", "vision_tower."},
    {"model.multi_modal_projector.", "multi_modal_projector.", ""},
}};

bool IsBesideText(absl::string_view path) {
  constexpr std::array<absl::string_view, 4> kParts = {
      "visual.", "vision_tower.", "language_model.", "multi_modal_projector."};
  return std::any_of(kParts.begin(), kParts.end(), [path](absl::string_view part) {
    return absl::StartsWith(path, part) || absl::StartsWith(path, absl::StrCat("model.", part));
  });
}

// The path in the other places that it may be in.
std::vector<std::string> Elsewhere(absl::string_view path) {
  std::vector<std::string> names;
  for (const Places& places : kPlaces) {
    const auto here = std::find_if(places.begin(), places.end(), [path](absl::string_view place) {
      return !place.empty() && absl::StartsWith(path, place);
    });
    if (here == places.end()) continue;
    for (const absl::string_view place : places) {
      if (!place.empty() && place != *here)
        names.push_back(absl::StrCat(place, path.substr(here->size())));
    }
    break;
  }
  return names;
}

}  // namespace

std::string FusedModule(absl::string_view layer_path) {
  constexpr absl::string_view kExperts = ".experts.";
  if (const size_t at = layer_path.find(kExperts); at != absl::string_view::npos)
    return std::string(layer_path.substr(0, at + kExperts.size() - 1));
  const size_t dot = layer_path.rfind('.');
  const size_t begin = dot == absl::string_view::npos ? 0 : dot + 1;
  for (const auto& [part, fused] : kFusedParts) {
    if (layer_path.substr(begin) == part) return absl::StrCat(layer_path.substr(0, begin), fused);
  }
  return std::string(layer_path);
}

ModuleNames::ModuleNames(const ExportedModel& model)
    : is_multi_modal_(
          std::any_of(model.layers.begin(), model.layers.end(),
                      [](const QuantizedLayer& layer) { return IsBesideText(layer.name); }) ||
          std::any_of(model.dense_linears.begin(), model.dense_linears.end(),
                      [](const std::string& name) { return IsBesideText(name); })) {}

std::vector<std::string> ModuleNames::Of(absl::string_view layer_path) const {
  std::vector<std::string> names = {std::string(layer_path)};
  if (std::string fused = FusedModule(layer_path); fused != layer_path) {
    if (absl::EndsWith(fused, kFusedLatents)) names.push_back(absl::StrCat(fused, kWithMqa));
    names.push_back(std::move(fused));
  }
  if (!is_multi_modal_) return names;
  for (size_t i = 0, count = names.size(); i < count; ++i) {
    for (std::string& name : Elsewhere(names[i])) names.push_back(std::move(name));
  }
  return names;
}

std::vector<std::string> ModuleNames::OfDense(const ExportedModel& model) const {
  std::vector<std::string> all;
  std::set<std::string> known;
  for (const std::string& path : DenseModules(model)) {
    for (std::string& name : Of(path)) {
      if (known.insert(name).second) all.push_back(std::move(name));
    }
  }
  return all;
}

}  // namespace sinq
