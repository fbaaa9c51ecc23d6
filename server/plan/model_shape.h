// The head and expert counts of a language model, from config.json.
#ifndef SINQ_SERVER_PLAN_MODEL_SHAPE_H_
#define SINQ_SERVER_PLAN_MODEL_SHAPE_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"

namespace sinq {

// Of the text model where config.json has several. 0: not said, or not a number between 1 and 2^20.
struct ModelShape {
  std::string model_type;  // empty: not said
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  int64_t qk_nope_head_dim = 0, v_head_dim = 0;  // MLA
  int64_t experts = 0;                           // routed, per layer
  // The values are changed between v_proj and the attention (clipped): no scale passes.
  bool clips_values = false;
};

// InvalidArgument/kMalformedSource for JSON that is none. An absent config has an empty shape.
absl::StatusOr<ModelShape> ReadModelShape(const std::optional<std::string>& config_json);

}  // namespace sinq

#endif  // SINQ_SERVER_PLAN_MODEL_SHAPE_H_
