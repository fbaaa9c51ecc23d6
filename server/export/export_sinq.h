// The SINQ native format: what the authors' loader AutoSINQHFModel opens.
#ifndef SINQ_SERVER_EXPORT_EXPORT_SINQ_H_
#define SINQ_SERVER_EXPORT_EXPORT_SINQ_H_

#include <optional>
#include <string>
#include <vector>

#include "server/export/exporter.h"

namespace sinq {

class SinqExporter : public Exporter {
 public:
  absl::string_view name() const override { return "sinq"; }
  std::optional<std::string> Refusal(const QuantizedLayer& layer) const override;
  absl::StatusOr<std::vector<OutputTensor>> Tensors(const QuantizedLayer& layer) const override;
  std::vector<ExtraTensor> ExtraTensors(
      const std::vector<std::string>& tensor_names) const override;
  absl::StatusOr<std::vector<SideFile>> SideFiles(
      const std::optional<std::string>& config_json, absl::string_view compute_dtype,
      const std::vector<QuantizedLayer>& layers) const override;
};

}  // namespace sinq

#endif  // SINQ_SERVER_EXPORT_EXPORT_SINQ_H_
