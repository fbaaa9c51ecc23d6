#include "server/export/export_awq.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
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

// The section has one group size for all layers. Symmetric layers are no exception in it: their
// zeros are stored.
absl::Status CheckOneScheme(const ExportedModel& model) {
  for (const QuantizedLayer& layer : model.layers) {
    const QuantizedLayer& first = model.layers.front();
    if (layer.params.group_size == first.params.group_size) continue;
    return MakeError(
        absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
        absl::StrCat("Format awq has one group size for all layers, but ", first.name, " has ",
                     first.params.group_size, " and ", layer.name, " has ", layer.params.group_size,
                     "; use one group size, or format compressed-tensors or gptq."),
        {{"tensor", layer.name}});
  }
  return absl::OkStatus();
}

// Engines look for the names of dense modules anywhere in a layer's path.
absl::Status CheckNames(const ExportedModel& model, const std::vector<std::string>& dense) {
  for (const QuantizedLayer& layer : model.layers) {
    for (const std::string& module : dense) {
      if (!absl::StrContains(layer.name, module)) continue;
      return MakeError(
          absl::StatusCode::kInvalidArgument, Reason::kUnsupportedSource,
          absl::StrCat("Format awq cannot say that ", module, " stays dense and ", layer.name,
                       " does not: readers look for the former anywhere in the latter. Exclude the "
                       "latter, or use format compressed-tensors or gptq."),
          {{"tensor", layer.name}});
    }
  }
  return absl::OkStatus();
}

ordered_json Section(const ExportedModel& model, const std::vector<std::string>& dense) {
  if (model.layers.empty()) return nullptr;
  ordered_json section;
  section["quant_method"] = "awq";
  section["bits"] = 4;
  section["group_size"] = model.layers.front().params.group_size;
  section["zero_point"] = true;  // vLLM takes no other; zeros are always stored
  section["version"] = "gemm";
  section["modules_to_not_convert"] = dense;
  return section;
}

}  // namespace

absl::StatusOr<kernels::QuantParams> AwqExporter::Adapt(const kernels::QuantParams& requested,
                                                        absl::string_view) const {
  if (absl::Status status = CheckUniform(requested, Zeros::kInteger, name()); !status.ok())
    return status;
  if (absl::Status status = CheckWidth(requested.bits, {4}, name(), " only"); !status.ok())
    return status;
  kernels::QuantParams params = requested;
  params.layout = kernels::Layout::kAwq;
  params.aux = kernels::AuxStorage::kF16;
  return params;
}

std::optional<std::string> AwqExporter::Refusal(const QuantizedLayer& layer) const {
  return KernelRefusal(layer);
}

absl::StatusOr<std::vector<OutputTensor>> AwqExporter::Tensors(const QuantizedLayer& layer) const {
  return PlaneTensors(layer, Suffix);
}

absl::StatusOr<std::vector<SideFile>> AwqExporter::SideFiles(const ExportedModel& model) const {
  const std::vector<std::string> dense = ModuleNames(model).OfDense(model);
  for (const absl::Status& status :
       {CheckOneScheme(model), CheckFusedModules(model), CheckNames(model, dense)}) {
    if (!status.ok()) return status;
  }
  absl::StatusOr<std::optional<SideFile>> config = ConfigFile(model, Section(model, dense));
  if (!config.ok()) return config.status();
  std::vector<SideFile> files;
  if (config->has_value()) files.push_back(**std::move(config));
  return files;
}

}  // namespace sinq
