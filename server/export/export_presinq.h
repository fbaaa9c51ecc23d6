// "bf16-presinq": the checkpoint as it is, but with the column scales of its layers folded into
// their neighbours, so that any quantizer without a column scale profits (for GGUF: convert the
// result). Named after its usual dtype; every tensor keeps its own, only FP8 becomes BF16.
#ifndef SINQ_SERVER_EXPORT_EXPORT_PRESINQ_H_
#define SINQ_SERVER_EXPORT_EXPORT_PRESINQ_H_

#include <optional>
#include <string>
#include <vector>

#include "server/export/exporter.h"

namespace sinq {

class PresinqExporter : public Exporter {
 public:
  absl::string_view name() const override { return "bf16-presinq"; }
  bool HoldsColumnScale() const override { return false; }
  bool Quantizes() const override { return false; }
  absl::StatusOr<kernels::QuantParams> Adapt(const kernels::QuantParams& requested,
                                             absl::string_view compute_dtype) const override;
  std::optional<std::string> Refusal(const QuantizedLayer& layer) const override;
  // FailedPrecondition: it has no quantized layers.
  absl::StatusOr<std::vector<OutputTensor>> Tensors(const QuantizedLayer& layer) const override;
  absl::StatusOr<std::vector<SideFile>> SideFiles(const ExportedModel& model) const override;
};

}  // namespace sinq

#endif  // SINQ_SERVER_EXPORT_EXPORT_PRESINQ_H_
