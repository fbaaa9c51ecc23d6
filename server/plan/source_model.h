// What the planner reads out of config.json.
#ifndef SINQ_SERVER_PLAN_SOURCE_MODEL_H_
#define SINQ_SERVER_PLAN_SOURCE_MODEL_H_

#include <string>

#include "absl/status/statusor.h"
#include "server/source/model_source.h"

namespace sinq {

struct SourceModel {
  std::string compute_dtype;  // "bfloat16", "float16", "float32"
};

// InvalidArgument/kMalformedSource for a config.json that cannot be right, kUnsupportedSource for a
// checkpoint that is already quantized (block-wise FP8 is welcome).
absl::StatusOr<SourceModel> ReadSourceModel(const ModelSource& source);

}  // namespace sinq

#endif  // SINQ_SERVER_PLAN_SOURCE_MODEL_H_
