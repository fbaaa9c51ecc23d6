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
#include "server/worker/worker_pool.h"

namespace sinq {

// Everything that the units of one job share. All members are safe to use from several threads.
struct UnitContext {
  const Plan& plan;
  const ModelSource& source;
  WorkerPool& workers;
  Sink& sink;
  BufferPool& pool;
};

// A unit's memory. To quantize: [weights | planes | scratch] in one buffer, so that one reservation
// covers it. To copy: room for one piece.
struct UnitMemory {
  PooledBuffer buffer;
  uint64_t weights_bytes = 0;
  std::vector<float> block_scales;
  std::string source_sha256;
};

uint64_t UnitMemoryBytes(const PlannedTensor& tensor, const WorkerPool& workers);
// Takes a unit's memory; for one to quantize reads its weights too, each byte once, digesting on
// the way. Waits for the budget: nobody who holds up other units may call it.
absl::StatusOr<UnitMemory> ReadUnit(const UnitContext& context, const PlannedTensor& tensor,
                                    absl::FunctionRef<bool()> cancelled);
// Quantizes what ReadUnit read, within the unit's memory; the weights stay as they are. The code of
// an error is the backend's.
absl::Status QuantizeUnit(const PlannedTensor& tensor, const kernels::Backend& backend,
                          UnitMemory& memory, absl::FunctionRef<bool()> cancelled,
                          kernels::TensorStats* stats);
// Writes the planes that QuantizeUnit made at their planned places.
absl::StatusOr<UnitRecord> WriteUnit(const UnitContext& context, const PlannedTensor& tensor,
                                     UnitMemory& memory, const kernels::TensorStats& stats);
// Moves a tensor as it is, in pieces.
absl::StatusOr<UnitRecord> CopyUnit(const UnitContext& context, const PlannedTensor& tensor,
                                    UnitMemory& memory, absl::FunctionRef<bool()> cancelled);

}  // namespace sinq

#endif  // SINQ_SERVER_WORKER_QUANTIZE_UNIT_H_
