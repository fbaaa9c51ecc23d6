// Places tensors in an output shard and makes its safetensors header.
#ifndef SINQ_SERVER_PLAN_SHARD_LAYOUT_H_
#define SINQ_SERVER_PLAN_SHARD_LAYOUT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "server/plan/plan.h"

namespace sinq {

// Sets the offsets of `ranges` (all of one file) in place, without gaps. They keep their order,
// in which they will mostly be written: so the file can be digested as it grows.
// If that would leave a tensor unaligned to its own dtype, the largest dtype comes first, then
// names decide. Returns the file's header and total size.
PlannedFile LayOutShard(std::string file_name, const std::vector<OutputRange*>& ranges);

}  // namespace sinq

#endif  // SINQ_SERVER_PLAN_SHARD_LAYOUT_H_
