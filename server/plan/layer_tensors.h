// The tensors of a plan, by decoder layer.
#ifndef SINQ_SERVER_PLAN_LAYER_TENSORS_H_
#define SINQ_SERVER_PLAN_LAYER_TENSORS_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "server/plan/plan.h"

namespace sinq {

struct LayerTensors {
  std::string prefix;                // "model.layers.0."
  std::map<std::string, int> index;  // name behind the prefix -> index into Plan::tensors
  std::string twin;                  // prefix of another list's layer of that number, or empty

  // -1 if there is none.
  int Find(absl::string_view name) const;
};

// Layers of language models ("model.layers.N.", "model.language_model.layers.N.", ...), in order;
// towers for images and sound are not among them, nor tensors without elements.
std::vector<LayerTensors> GroupByLayer(const std::vector<PlannedTensor>& tensors);

}  // namespace sinq

#endif  // SINQ_SERVER_PLAN_LAYER_TENSORS_H_
