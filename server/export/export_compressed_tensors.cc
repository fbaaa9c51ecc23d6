#include "server/export/export_compressed_tensors.h"

#include <array>
#include <cstring>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "server/export/hf_config.h"
#include "server/export/module_names.h"
#include "server/export/serving_rules.h"

namespace sinq {
namespace {

using nlohmann::ordered_json;

absl::string_view Suffix(kernels::PlaneKind kind) {
  switch (kind) {
    case kernels::PlaneKind::kCodes:
      return ".weight_packed";
    case kernels::PlaneKind::kScale:
      return ".weight_scale";
    default:
      return ".weight_zero_point";
  }
}

// Bits, group size, symmetric: what one config group can say.
using Scheme = std::tuple<int, int, bool>;

ordered_json Group(const Scheme& scheme, ordered_json targets) {
  const auto [bits, group_size, symmetric] = scheme;
  // No more keys than these: readers refuse unknown ones, and which they know depends on their age.
  ordered_json weights;
  weights["num_bits"] = bits;
  weights["type"] = "int";
  weights["symmetric"] = symmetric;
  weights["strategy"] = "group";
  weights["group_size"] = group_size;
  ordered_json group;
  group["targets"] = std::move(targets);
  group["weights"] = std::move(weights);
  group["input_activations"] = nullptr;
  group["output_activations"] = nullptr;
  return group;
}

Scheme SchemeOf(const QuantizedLayer& layer) {
  return {layer.params.bits, layer.params.group_size, layer.params.symmetric};
}

constexpr absl::string_view kExpertsExpression =
    "re:.*\\.experts\\.\\d+\\.(gate_proj|up_proj|down_proj|w1|w2|w3)$";

// One group for all linear layers; with several schemes every layer by its name, because engines
// prefer a class to the parts of a fused module.
ordered_json Groups(const ExportedModel& model, const ModuleNames& names_of) {
  std::map<Scheme, std::vector<std::string>> targets;
  std::set<Scheme> of_experts;
  std::set<std::string> known;
  for (const QuantizedLayer& layer : model.layers) {
    const Scheme scheme = SchemeOf(layer);
    if (absl::StrContains(layer.name, ".experts.")) of_experts.insert(scheme);
    for (std::string& name : names_of.Of(LayerPath(layer.name))) {
      // transformers has a module of that name, which is no linear layer.
      if (absl::EndsWith(name, ".experts")) continue;
      if (known.insert(name).second) targets[scheme].push_back(std::move(name));
    }
  }
  ordered_json groups;
  if (targets.size() == 1) {
    groups["group_0"] = Group(targets.begin()->first, {"Linear"});
    return groups;
  }
  // transformers takes the scheme of all experts from the group whose expressions mention them.
  if (of_experts.size() == 1) targets[*of_experts.begin()].emplace_back(kExpertsExpression);
  for (auto& [scheme, names] : targets)
    groups[absl::StrCat("group_", groups.size())] = Group(scheme, std::move(names));
  return groups;
}

ordered_json Section(const ExportedModel& model) {
  if (model.layers.empty()) return nullptr;
  ordered_json section;
  section["quant_method"] = "compressed-tensors";
  section["format"] = "pack-quantized";
  section["quantization_status"] = "compressed";
  section["version"] = "0.11.0";
  const ModuleNames names(model);
  section["config_groups"] = Groups(model, names);
  section["ignore"] = names.OfDense(model);
  section["kv_cache_scheme"] = nullptr;
  section["global_compression_ratio"] = nullptr;
  return section;
}

}  // namespace

absl::StatusOr<kernels::QuantParams> CompressedTensorsExporter::Adapt(
    const kernels::QuantParams& requested, absl::string_view compute_dtype) const {
  if (absl::Status status = CheckUniform(requested, Zeros::kInteger, name()); !status.ok())
    return status;
  absl::Status status = requested.symmetric ? CheckWidth(requested.bits, {2, 4, 8}, name(), "")
                                            : CheckWidth(requested.bits, {4, 8}, name(),
                                                         " when asymmetric (2 when symmetric)");
  if (!status.ok()) return status;
  kernels::QuantParams params = requested;
  params.layout = kernels::Layout::kCompressedTensors;
  // Engines bring the scales to the model's dtype: any other would be rounded there.
  params.aux = AuxOf(compute_dtype);
  return params;
}

std::optional<std::string> CompressedTensorsExporter::Refusal(const QuantizedLayer& layer) const {
  return KernelRefusal(layer);
}

absl::StatusOr<std::vector<OutputTensor>> CompressedTensorsExporter::Tensors(
    const QuantizedLayer& layer) const {
  return PlaneTensors(layer, Suffix);
}

std::vector<ExtraTensor> CompressedTensorsExporter::LayerExtras(const QuantizedLayer& layer) const {
  const std::array<int64_t, 2> shape = {layer.rows, layer.cols};
  std::string content(sizeof shape, '\0');
  std::memcpy(content.data(), shape.data(), sizeof shape);
  return {{{absl::StrCat(LayerPath(layer.name), ".weight_shape"), "I64", {2}, sizeof shape},
           std::move(content)}};
}

absl::StatusOr<std::vector<SideFile>> CompressedTensorsExporter::SideFiles(
    const ExportedModel& model) const {
  if (absl::Status status = CheckFusedModules(model); !status.ok()) return status;
  absl::StatusOr<std::optional<SideFile>> config = ConfigFile(model, Section(model));
  if (!config.ok()) return config.status();
  std::vector<SideFile> files;
  if (config->has_value()) files.push_back(**std::move(config));
  return files;
}

}  // namespace sinq
