// compressed-tensors "pack-quantized": vLLM, SGLang, transformers with the compressed-tensors
// package.
#ifndef SINQ_SERVER_EXPORT_EXPORT_COMPRESSED_TENSORS_H_
#define SINQ_SERVER_EXPORT_EXPORT_COMPRESSED_TENSORS_H_

#include <optional>
#include <string>
#include <vector>

#include "server/export/exporter.h"

namespace sinq {

class CompressedTensorsExporter : public Exporter {
 public:
  absl::string_view name() const override { return "compressed-tensors"; }
  bool HoldsColumnScale() const override { return false; }
  absl::StatusOr<kernels::QuantParams> Adapt(const kernels::QuantParams& requested,
                                             absl::string_view compute_dtype) const override;
  std::optional<std::string> Refusal(const QuantizedLayer& layer) const override;
  absl::StatusOr<std::vector<OutputTensor>> Tensors(const QuantizedLayer& layer) const override;
  std::vector<ExtraTensor> LayerExtras(const QuantizedLayer& layer) const override;
  absl::StatusOr<std::vector<SideFile>> SideFiles(const ExportedModel& model) const override;
};

}  // namespace sinq

#endif  // SINQ_SERVER_EXPORT_EXPORT_COMPRESSED_TENSORS_H_
