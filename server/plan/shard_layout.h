// Places tensors in an output shard and makes its safetensors header.
#ifndef SINQ_SERVER_PLAN_SHARD_LAYOUT_H_
#define SINQ_SERVER_PLAN_SHARD_LAYOUT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "server/plan/plan.h"

namespace sinq {

// Sets the offsets of `ranges` (all of one file) in place: largest dtype first, then by name,
// without gaps, so that every tensor is aligned to its own dtype. Returns the file's header and
// total size.
PlannedFile LayOutShard(std::string file_name, const std::vector<OutputRange*>& ranges);

}  // namespace sinq

#endif  // SINQ_SERVER_PLAN_SHARD_LAYOUT_H_
