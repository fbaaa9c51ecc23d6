// model.safetensors.index.json: which shard holds which tensor.
#ifndef SINQ_SERVER_SOURCE_SHARD_INDEX_H_
#define SINQ_SERVER_SOURCE_SHARD_INDEX_H_

#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sinq {

struct ShardIndex {
  std::vector<std::string> shards;                         // distinct, sorted
  absl::flat_hash_map<std::string, std::string> shard_of;  // by tensor name
};

// Strict: weight_map is required, not empty, and maps strings to plain file names ending in
// ".safetensors" (no slash, not hidden). "metadata" may be anything within the depth limit; other
// keys are ignored. At most kMaxTensorsPerSource tensors and kMaxSourceFiles shards.
absl::StatusOr<ShardIndex> ParseShardIndex(absl::string_view json, absl::string_view label);

}  // namespace sinq

#endif  // SINQ_SERVER_SOURCE_SHARD_INDEX_H_
