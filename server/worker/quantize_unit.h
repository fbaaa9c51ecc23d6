// One tensor through the service: read, quantize or copy, write. The function to read first.
#ifndef SINQ_SERVER_WORKER_QUANTIZE_UNIT_H_
#define SINQ_SERVER_WORKER_QUANTIZE_UNIT_H_

#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "server/plan/plan.h"
#include "server/sink/sink.h"
#include "server/source/model_source.h"
#include "server/worker/buffer_pool.h"
#include "server/worker/unit_record.h"

namespace sinq {

// Everything that the units of one job share. All members are safe to use from several threads.
struct UnitContext {
  const Plan& plan;
  const ModelSource& source;
  const kernels::Backend& backend;
  Sink& sink;
  BufferPool& pool;
};

// A quantize unit's memory: [weights | planes | scratch] in one buffer, so that one reservation
// covers it.
struct UnitMemory {
  PooledBuffer buffer;
  uint64_t weights_bytes = 0;
  std::vector<float> block_scales;
  std::string source_sha256;
};

uint64_t UnitMemoryBytes(const PlannedTensor& tensor, const kernels::Backend& backend);
// Reads a quantize unit's weights, each byte once, digesting on the way.
absl::StatusOr<UnitMemory> ReadUnit(const UnitContext& context, const PlannedTensor& tensor,
                                    absl::FunctionRef<bool()> cancelled);
// Quantizes what ReadUnit read and writes the planes at their planned places.
absl::StatusOr<UnitRecord> QuantizeUnit(const UnitContext& context, const PlannedTensor& tensor,
                                        UnitMemory& memory, absl::FunctionRef<bool()> cancelled,
                                        kernels::TensorStats* stats);
// Moves a tensor as it is, in pieces.
absl::StatusOr<UnitRecord> CopyUnit(const UnitContext& context, const PlannedTensor& tensor,
                                    absl::FunctionRef<bool()> cancelled);

}  // namespace sinq

#endif  // SINQ_SERVER_WORKER_QUANTIZE_UNIT_H_
