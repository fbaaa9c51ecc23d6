#include "server/export/export_gptq.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "nlohmann/json.hpp"
#include "server/base/error.h"
#include "server/export/hf_config.h"
#include "server/export/module_names.h"
#include "server/export/serving_rules.h"

namespace sinq {
namespace {

using nlohmann::ordered_json;

absl::string_view Suffix(kernels::PlaneKind kind) {
  switch (kind) {
    case kernels::PlaneKind::kCodes:
      return ".qweight";
    case kernels::PlaneKind::kScale:
      return ".scales";
    default:
      return ".qzeros";
  }
}

using Scheme = std::pair<int, int>;  // bits, group size

Scheme SchemeOf(const QuantizedLayer& layer) {
  return {layer.params.bits, layer.params.group_size};
}

// The scheme of most layers: the others become exceptions to it.
Scheme CommonScheme(const std::vector<QuantizedLayer>& layers) {
  std::map<Scheme, size_t> counts;
  for (const QuantizedLayer& layer : layers) ++counts[SchemeOf(layer)];
  return std::max_element(counts.begin(), counts.end(),
                          [](const auto& a, const auto& b) { return a.second < b.second; })
      ->first;
}

std::string Exactly(absl::string_view path) {
  return absl::StrCat("^", absl::StrReplaceAll(path, {{".", "\\."}}), "$");
}

// Exceptions by name: "-:" leaves a module dense, "+:" has other widths. Engines ask for the module
// that they fuse a layer into as well.
class DynamicRules {
 public:
  explicit DynamicRules(const ExportedModel& model) : names_(model) {}
  void LeaveDense(const std::string& path) {
    for (const std::string& name : names_.Of(path))
      rules_[absl::StrCat("-:", Exactly(name))] = ordered_json::object();
  }
  void Override(const std::string& path, const Scheme& scheme) {
    for (const std::string& name : names_.Of(path)) {
      ordered_json& rule = rules_[absl::StrCat("+:", Exactly(name))];
      rule["bits"] = scheme.first;
      rule["group_size"] = scheme.second;
    }
  }
  const ordered_json& rules() const { return rules_; }

 private:
  const ModuleNames names_;
  ordered_json rules_ = ordered_json::object();
};

ordered_json Rules(const ExportedModel& model, const Scheme& common) {
  DynamicRules rules(model);
  for (const QuantizedLayer& layer : model.layers) {
    if (SchemeOf(layer) != common) rules.Override(LayerPath(layer.name), SchemeOf(layer));
  }
  for (const std::string& name : model.dense_linears) {
    // The key lm_head says it for the head.
    if (const std::string path = LayerPath(name); path != "lm_head") rules.LeaveDense(path);
  }
  return rules.rules();
}

// "model.layers.12.mlp.up_proj" -> "mlp.up_proj": what follows the number of the block.
absl::string_view PathInBlock(absl::string_view path) {
  for (size_t dot = path.find('.'); dot != absl::string_view::npos;) {
    const size_t next = path.find('.', dot + 1);
    if (next == absl::string_view::npos) break;
    const absl::string_view part = path.substr(dot + 1, next - dot - 1);
    if (part.find_first_not_of("0123456789") == absl::string_view::npos)
      return path.substr(next + 1);
    dot = next;
  }
  return path;
}

constexpr absl::string_view kFusedOnDisk = ".gate_up_proj";

bool IsFusedOnDisk(const QuantizedLayer& layer) {
  return absl::EndsWith(LayerPath(layer.name), kFusedOnDisk);
}

// vLLM takes the gate_up_proj that GLM-4 has on disk for gate_proj and up_proj, and looks for them.
void AddPartsOfFused(std::set<std::string>& names) {
  for (const std::string& name : std::set<std::string>(names)) {
    if (!absl::EndsWith(name, kFusedOnDisk)) continue;
    const std::string stem = name.substr(0, name.size() - kFusedOnDisk.size());
    for (const char* part : {".gate_proj", ".up_proj"}) names.insert(absl::StrCat(stem, part));
  }
}

// transformers replaces every linear layer of a block unless it is told which. Names inside a block
// where they tell quantized from dense layers, else whole paths (readers take both).
ordered_json QuantizedModules(const ExportedModel& model) {
  std::set<std::string> in_block, whole;
  for (const QuantizedLayer& layer : model.layers) {
    whole.insert(LayerPath(layer.name));
    in_block.emplace(PathInBlock(LayerPath(layer.name)));
  }
  for (std::set<std::string>* names : {&in_block, &whole}) AddPartsOfFused(*names);
  const bool ambiguous =
      std::any_of(model.dense_linears.begin(), model.dense_linears.end(), [&](const auto& name) {
        return std::any_of(in_block.begin(), in_block.end(), [&](const std::string& part) {
          return absl::StrContains(LayerPath(name), part);
        });
      });
  return ordered_json::array({ambiguous ? whole : in_block});
}

bool IsVersion2(const ExportedModel& model) {
  return model.layers.front().params.layout == kernels::Layout::kGptqV2;
}

ordered_json Section(const ExportedModel& model) {
  if (model.layers.empty()) return nullptr;
  const Scheme common = CommonScheme(model.layers);
  const char* format = IsVersion2(model) ? "gptq_v2" : "gptq";
  ordered_json section;
  section["quant_method"] = "gptq";
  section["bits"] = common.first;
  section["group_size"] = common.second;
  section["desc_act"] = false;
  section["sym"] = !IsVersion2(model);
  section["lm_head"] = false;
  section["checkpoint_format"] = format;
  section["format"] = format;
  section["pack_dtype"] = "int32";
  section["damp_percent"] = 0.01;
  section["true_sequential"] = true;
  section["meta"]["quantizer"] = {"sinqd"};
  ordered_json rules = Rules(model, common);
  const bool has_dense =
      std::any_of(model.dense_linears.begin(), model.dense_linears.end(),
                  [](const std::string& name) { return LayerPath(name) != "lm_head"; });
  const bool has_fused = std::any_of(model.layers.begin(), model.layers.end(), IsFusedOnDisk);
  if (has_dense || has_fused) section["modules_in_block_to_quantize"] = QuantizedModules(model);
  if (!rules.empty()) section["dynamic"] = std::move(rules);
  return section;
}

// The two versions differ in how every zero is stored, and one key tells them apart for all.
absl::Status CheckOneVersion(const ExportedModel& model) {
  for (const QuantizedLayer& layer : model.layers) {
    if (layer.params.layout == model.layers.front().params.layout) continue;
    return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
                     absl::StrCat("Format gptq has symmetric layers (v1) or asymmetric ones (v2), "
                                  "not both: ",
                                  model.layers.front().name, " and ", layer.name,
                                  " differ; make all of them alike, or use format "
                                  "compressed-tensors."),
                     {{"tensor", layer.name}});
  }
  return absl::OkStatus();
}

// Marlin kernels, for symmetric layers of 4 and 8 bits, take the model's own dtype; the exllama
// ones, for everything else, only float16.
std::optional<absl::string_view> NeededDtype(const ExportedModel& model) {
  const bool marlin =
      std::all_of(model.layers.begin(), model.layers.end(), [](const QuantizedLayer& layer) {
        return layer.params.symmetric && (layer.params.bits == 4 || layer.params.bits == 8);
      });
  if (marlin) return std::nullopt;
  return "float16";
}

}  // namespace

absl::StatusOr<kernels::QuantParams> GptqExporter::Adapt(const kernels::QuantParams& requested,
                                                         absl::string_view) const {
  if (absl::Status status = CheckUniform(requested, Zeros::kInteger, name()); !status.ok())
    return status;
  if (absl::Status status = CheckWidth(requested.bits, {2, 3, 4, 8}, name(), ""); !status.ok())
    return status;
  kernels::QuantParams params = requested;
  params.layout = requested.symmetric ? kernels::Layout::kGptq : kernels::Layout::kGptqV2;
  params.aux = kernels::AuxStorage::kF16;
  return params;
}

std::optional<std::string> GptqExporter::Refusal(const QuantizedLayer& layer) const {
  return KernelRefusal(layer);
}

absl::StatusOr<std::vector<OutputTensor>> GptqExporter::Tensors(const QuantizedLayer& layer) const {
  return PlaneTensors(layer, Suffix);
}

std::vector<ExtraTensor> GptqExporter::LayerExtras(const QuantizedLayer& layer) const {
  std::string content(static_cast<size_t>(layer.cols) * sizeof(int32_t), '\0');
  auto* index = content.data();
  for (int64_t k = 0; k < layer.cols; ++k, index += sizeof(int32_t)) {
    const auto group = static_cast<int32_t>(k / layer.params.group_size);
    std::copy_n(reinterpret_cast<const char*>(&group), sizeof group, index);
  }
  const uint64_t size_bytes = content.size();
  return {{{absl::StrCat(LayerPath(layer.name), ".g_idx"), "I32", {layer.cols}, size_bytes},
           std::move(content)}};
}

absl::StatusOr<std::vector<SideFile>> GptqExporter::SideFiles(const ExportedModel& model) const {
  for (const absl::Status& status : {CheckOneVersion(model), CheckFusedModules(model)}) {
    if (!status.ok()) return status;
  }
  const ordered_json section = Section(model);
  absl::StatusOr<std::optional<SideFile>> config = ConfigFile(model, section, NeededDtype(model));
  if (!config.ok()) return config.status();
  std::vector<SideFile> files;
  if (config->has_value()) files.push_back(**std::move(config));
  // GPTQModel and older readers look here first.
  if (!section.is_null()) files.push_back({"quantize_config.json", section.dump(2) + "\n"});
  return files;
}

}  // namespace sinq
