// "gguf": llama.cpp and what is built on it. A converter's GGUF file of the model is the template;
// the quantized layers replace its tensors as Q4_0, Q4_1 or Q8_0, and all the rest (metadata,
// vocabulary, other tensors) is taken over. Where the tensors go: server/plan/gguf_plan.h.
#ifndef SINQ_SERVER_EXPORT_EXPORT_GGUF_H_
#define SINQ_SERVER_EXPORT_EXPORT_GGUF_H_

#include <optional>
#include <string>
#include <vector>

#include "server/export/exporter.h"
#include "server/export/gguf_file.h"

namespace sinq {

// What a layer with one of the GGUF layouts is stored as.
GgmlType GgmlTypeOf(kernels::Layout layout);

class GgufExporter : public Exporter {
 public:
  absl::string_view name() const override { return "gguf"; }
  bool HoldsColumnScale() const override { return false; }
  bool PatchesTemplate() const override { return true; }
  absl::StatusOr<kernels::QuantParams> Adapt(const kernels::QuantParams& requested,
                                             absl::string_view compute_dtype) const override;
  std::optional<std::string> Refusal(const QuantizedLayer& layer) const override;
  // One tensor, still under its source's name; its dtype is a GgmlTypeName.
  absl::StatusOr<std::vector<OutputTensor>> Tensors(const QuantizedLayer& layer) const override;
  // None: the template has the model's configuration.
  absl::StatusOr<std::vector<SideFile>> SideFiles(const ExportedModel& model) const override;
};

}  // namespace sinq

#endif  // SINQ_SERVER_EXPORT_EXPORT_GGUF_H_
