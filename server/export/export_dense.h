// An ordinary checkpoint with the dequantized weights: for comparisons, and for converters that
// quantize by themselves.
#ifndef SINQ_SERVER_EXPORT_EXPORT_DENSE_H_
#define SINQ_SERVER_EXPORT_EXPORT_DENSE_H_

#include <optional>
#include <string>
#include <vector>

#include "server/export/exporter.h"

namespace sinq {

class DenseExporter : public Exporter {
 public:
  absl::string_view name() const override { return "dense"; }
  bool HoldsColumnScale() const override { return true; }
  absl::StatusOr<kernels::QuantParams> Adapt(const kernels::QuantParams& requested,
                                             absl::string_view compute_dtype) const override;
  std::optional<std::string> Refusal(const QuantizedLayer& layer) const override;
  absl::StatusOr<std::vector<OutputTensor>> Tensors(const QuantizedLayer& layer) const override;
  absl::StatusOr<std::vector<SideFile>> SideFiles(const ExportedModel& model) const override;
};

}  // namespace sinq

#endif  // SINQ_SERVER_EXPORT_EXPORT_DENSE_H_
