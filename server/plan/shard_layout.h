// Places tensors in an output shard and makes its safetensors header.
#ifndef SINQ_SERVER_PLAN_SHARD_LAYOUT_H_
#define SINQ_SERVER_PLAN_SHARD_LAYOUT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "server/plan/plan.h"

namespace sinq {

// Sets the offsets of one file's `ranges` and `extras` in place, without gaps. Ranges keep their
// order, in which they will mostly be written: so the file can be digested as it grows. Extras
// follow, the largest dtype first. If that would leave a tensor unaligned to its own dtype, all are
// ordered so. Returns the file's header and total size.
PlannedFile LayOutShard(std::string file_name, const std::vector<OutputRange*>& ranges,
                        const std::vector<OutputRange*>& extras = {});

}  // namespace sinq

#endif  // SINQ_SERVER_PLAN_SHARD_LAYOUT_H_
