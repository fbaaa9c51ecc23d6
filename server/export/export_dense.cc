#include "server/export/export_dense.h"

#include <utility>

#include "absl/strings/match.h"
#include "server/export/hf_config.h"
#include "server/export/serving_rules.h"

namespace sinq {

absl::StatusOr<kernels::QuantParams> DenseExporter::Adapt(const kernels::QuantParams& requested,
                                                          absl::string_view) const {
  // The auxiliaries are kept as requested: the values are those that format sinq would give.
  kernels::QuantParams params = requested;
  params.layout = kernels::Layout::kDense;
  return params;
}

std::optional<std::string> DenseExporter::Refusal(const QuantizedLayer& layer) const {
  if (layer.rows == 1) return "one row: too few values to balance";
  const auto planes = kernels::PlanesOf(layer.params, layer.rows, layer.cols);
  if (!planes.ok()) return std::string(planes.status().message());
  return std::nullopt;
}

absl::StatusOr<std::vector<OutputTensor>> DenseExporter::Tensors(
    const QuantizedLayer& layer) const {
  // A bare file may name its matrices freely; they keep their names here.
  const absl::string_view suffix = absl::EndsWith(layer.name, ".weight") ? ".weight" : "";
  return PlaneTensors(layer, [&](kernels::PlaneKind) { return suffix; });
}

absl::StatusOr<std::vector<SideFile>> DenseExporter::SideFiles(const ExportedModel& model) const {
  absl::StatusOr<std::optional<SideFile>> config = ConfigFile(model, nullptr);
  if (!config.ok()) return config.status();
  std::vector<SideFile> files;
  if (config->has_value()) files.push_back(**std::move(config));
  return files;
}

}  // namespace sinq
