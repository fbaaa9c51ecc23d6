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
  bool HoldsColumnScale() const override { return true; }
  absl::StatusOr<kernels::QuantParams> Adapt(const kernels::QuantParams& requested,
                                             absl::string_view compute_dtype) const override;
  std::optional<std::string> Refusal(const QuantizedLayer& layer) const override;
  absl::StatusOr<std::vector<OutputTensor>> Tensors(const QuantizedLayer& layer) const override;
  std::vector<ExtraTensor> ExtraTensors(
      const std::vector<std::string>& tensor_names) const override;
  absl::StatusOr<std::vector<SideFile>> SideFiles(const ExportedModel& model) const override;
};

}  // namespace sinq

#endif  // SINQ_SERVER_EXPORT_EXPORT_SINQ_H_
