// One tensor through the service: read, quantize, fold or copy, write. The functions to read first.
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
#include "server/worker/fold_scales.h"
#include "server/worker/unit_record.h"

namespace sinq {

// Everything that the units of one job share. All members are safe to use from several threads.
struct UnitContext {
  const Plan& plan;
  const ModelSource& source;
  const kernels::Backend& backend;
  Sink& sink;
  BufferPool& pool;
  Phase phase = Phase::kQuantize;
  const FoldScales* scales = nullptr;  // of Phase::kQuantize, if the plan folds
};

// A unit's memory: [weights | planes or, measuring, t | scratch] in one buffer, so that one
// reservation covers it.
struct UnitMemory {
  PooledBuffer buffer;
  uint64_t weights_bytes = 0;
  std::vector<float> block_scales;
  std::vector<float> row_factors, column_factors;  // folded scales
  std::string source_sha256;
};

// `status` with the tensor's name; what kernels refuse becomes kNonFiniteWeight.
absl::Status WithTensor(const absl::Status& status, const PlannedTensor& tensor);
// Factors of an FP8 weight's blocks as fp32, empty for others; they count as part of the unit's
// source bytes.
absl::StatusOr<std::vector<float>> ReadBlockScales(const Plan& plan, const ModelSource& source,
                                                   const PlannedTensor& tensor);
uint64_t UnitMemoryBytes(Phase phase, const PlannedTensor& tensor,
                         const kernels::Backend& backend);
// Reads a unit's weights (not those of a copy), each byte once, digesting on the way.
absl::StatusOr<UnitMemory> ReadUnit(const UnitContext& context, const PlannedTensor& tensor,
                                    absl::FunctionRef<bool()> cancelled);
// Quantizes what ReadUnit read and writes the planes at their planned places.
absl::StatusOr<UnitRecord> QuantizeUnit(const UnitContext& context, const PlannedTensor& tensor,
                                        UnitMemory& memory, absl::FunctionRef<bool()> cancelled,
                                        kernels::TensorStats* stats);
// The column scale of what ReadUnit read, as codes.
absl::StatusOr<UnitRecord> MeasureUnit(const UnitContext& context, const PlannedTensor& tensor,
                                       UnitMemory& memory, absl::FunctionRef<bool()> cancelled);
// Multiplies what ReadUnit read by folded scales and writes it, in the output's dtype.
absl::StatusOr<UnitRecord> FoldUnit(const UnitContext& context, const PlannedTensor& tensor,
                                    UnitMemory& memory);
// Moves a tensor as it is, in pieces.
absl::StatusOr<UnitRecord> CopyUnit(const UnitContext& context, const PlannedTensor& tensor,
                                    absl::FunctionRef<bool()> cancelled);

}  // namespace sinq

#endif  // SINQ_SERVER_WORKER_QUANTIZE_UNIT_H_
