// What engines call the module that a layer of the source becomes.
#ifndef SINQ_SERVER_EXPORT_MODULE_NAMES_H_
#define SINQ_SERVER_EXPORT_MODULE_NAMES_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "server/export/exporter.h"

namespace sinq {

// The module that engines make out of a layer and its neighbours: ".qkv_proj" of q_proj, k_proj
// and v_proj, ".gate_up_proj", ".experts" of everything in a mixture; the path itself for others.
// Layers with one fused module must be stored alike.
std::string FusedModule(absl::string_view layer_path);

// All names by which readers look for a layer, its own first: fused modules, and for the parts of a
// multi-modal model the places where transformers and vLLM have them. Thread-safe.
class ModuleNames {
 public:
  explicit ModuleNames(const ExportedModel& model);
  std::vector<std::string> Of(absl::string_view layer_path) const;
  // Those of all linear layers that stay dense, and the head; each once.
  std::vector<std::string> OfDense(const ExportedModel& model) const;

 private:
  const bool is_multi_modal_;
};

}  // namespace sinq

#endif  // SINQ_SERVER_EXPORT_MODULE_NAMES_H_
