#include "server/export/export_gguf.h"

#include "absl/strings/str_cat.h"
#include "server/base/error.h"
#include "server/export/serving_rules.h"

namespace sinq {

GgmlType GgmlTypeOf(kernels::Layout layout) {
  if (layout == kernels::Layout::kGgufQ8_0) return GgmlType::kQ8_0;
  return layout == kernels::Layout::kGgufQ4_0 ? GgmlType::kQ4_0 : GgmlType::kQ4_1;
}

absl::StatusOr<kernels::QuantParams> GgufExporter::Adapt(const kernels::QuantParams& requested,
                                                         absl::string_view) const {
  // Q4_1 stores a minimum for each block, so that a zero may be any number.
  const Zeros zeros = requested.symmetric ? Zeros::kInteger : Zeros::kReal;
  if (absl::Status status = CheckUniform(requested, zeros, name()); !status.ok()) return status;
  if (absl::Status status = CheckWidth(requested.bits, {4, 8}, name(), ""); !status.ok())
    return status;
  if (requested.bits == 8 && !requested.symmetric) {
    return CannotHold("symmetric",
                      "Format gguf has 8 bits without zeros only (Q8_0); use symmetric true, or 4 "
                      "bits.");
  }
  kernels::QuantParams params = requested;
  params.aux = kernels::AuxStorage::kF16;
  if (requested.bits == 8) {
    params.layout = kernels::Layout::kGgufQ8_0;
  } else {
    params.layout = requested.symmetric ? kernels::Layout::kGgufQ4_0 : kernels::Layout::kGgufQ4_1;
  }
  return params;
}

std::optional<std::string> GgufExporter::Refusal(const QuantizedLayer& layer) const {
  if (layer.rows == 1) return "one row: too few values to balance";
  const auto planes = kernels::PlanesOf(layer.params, layer.rows, layer.cols);
  if (!planes.ok()) return std::string(planes.status().message());
  return std::nullopt;
}

absl::StatusOr<std::vector<OutputTensor>> GgufExporter::Tensors(const QuantizedLayer& layer) const {
  const auto planes = kernels::PlanesOf(layer.params, layer.rows, layer.cols);
  if (!planes.ok()) return Annotate(planes.status(), layer.name);
  const GgmlType type = GgmlTypeOf(layer.params.layout);
  return std::vector<OutputTensor>{{layer.name,
                                    std::string(GgmlTypeName(type)),
                                    {layer.rows, layer.cols},
                                    planes->front().size_bytes}};
}

absl::StatusOr<std::vector<SideFile>> GgufExporter::SideFiles(const ExportedModel&) const {
  return std::vector<SideFile>();
}

}  // namespace sinq
