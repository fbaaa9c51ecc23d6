// One tensor through the service: read, quantize, fold or copy, write. The functions to read first.
#ifndef SINQ_SERVER_WORKER_QUANTIZE_UNIT_H_
#define SINQ_SERVER_WORKER_QUANTIZE_UNIT_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "server/base/sha256.h"
#include "server/plan/plan.h"
#include "server/sink/sink.h"
#include "server/source/model_source.h"
#include "server/worker/buffer_pool.h"
#include "server/worker/file_digester.h"
#include "server/worker/fold_scales.h"
#include "server/worker/prefetcher.h"
#include "server/worker/unit_record.h"
#include "server/worker/worker_pool.h"
#include "server/worker/workspaces.h"

namespace sinq {

// Everything that the units of one job share. All members are safe to use from several threads.
struct UnitContext {
  const Plan& plan;
  const ModelSource& source;
  WorkerPool& workers;
  Sink& sink;
  std::deque<FileDigester>& digesters;  // by file of the plan
  MemoryBudget& budget;
  BufferPool& pool;  // for weights, and for what needs no workspace
  Workspaces& workspaces;
  Prefetcher& prefetcher;
  const ActivationFile* activations = nullptr;  // if the plan has them
  const FoldScales* scales = nullptr;           // if the plan folds
  const GgufTemplate* gguf_template = nullptr;  // if the plan has one
};

// A unit's memory. What a backend computes has its weights in one buffer and a workspace for the
// rest: [activations | planes or, measuring, t | scratch]. What it does not has one buffer for all:
// [weights | planes | staging] or, to copy, room for one piece.
struct UnitMemory {
  PooledBuffer weights;
  PooledBuffer workspace;
  uint64_t weights_bytes = 0;
  std::vector<float> block_scales;
  std::vector<float> row_factors, column_factors;  // folded scales
  uint64_t activation_bytes = 0;                   // before the planes
  kernels::ActivationView activations;             // of them
  std::string source_sha256;
  uint64_t kept_bytes = 0;  // what KeptUnits counts it as; 0: it is not to be kept
};

// A unit whose weights are on their way from the source to memory.
struct UnitRead {
  Phase phase = Phase::kQuantize;
  const PlannedTensor* tensor = nullptr;
  UnitMemory memory;
  uint64_t bytes_left = 0;  // of the weights: not digested yet
  bool was_kept = false;    // its weights were there already
  Sha256 digest;            // of the bytes that are there
  Workspaces::Claim claim;  // null: it needs no workspace, or has one
  std::unique_ptr<Prefetcher::Fetch> fetch;  // goes before its memory

  // What is only measured, and not kept, will be read again and digested then.
  bool IsDigested() const { return phase == Phase::kQuantize || memory.kept_bytes > 0; }
};

// `status` with the tensor's name; what kernels refuse becomes kNonFiniteWeight.
absl::Status WithTensor(const absl::Status& status, const PlannedTensor& tensor);
// Factors of an FP8 weight's blocks as fp32, empty for others; they count as part of the unit's
// source bytes.
absl::StatusOr<std::vector<float>> ReadBlockScales(const Plan& plan, const ModelSource& source,
                                                   const PlannedTensor& tensor);
// Whether a unit has arithmetic for a backend; else it goes from its read to its output at once.
bool NeedsBackend(Phase phase, const PlannedTensor& tensor);
// What a unit takes of BufferPool and, for a backend, of a workspace.
uint64_t WeightsMemoryBytes(Phase phase, const PlannedTensor& tensor);
uint64_t WorkspaceBytes(Phase phase, const PlannedTensor& tensor, const WorkerPool& workers);
// The most of each that a unit of the plan takes in any phase.
uint64_t LargestWeightsBytes(const Plan& plan);
uint64_t LargestWorkspaceBytes(const Plan& plan, const WorkerPool& workers);
// Reading a unit: BeginRead takes its memory, ReadPieces until no bytes are left, FinishRead what
// else the unit needs, its workspace being there. Each byte is read once, and digested on the way.
// A copy has nothing to read. BeginRead waits for the budget: nobody who holds up other units, or
// another read, may call it.
// `kept_bytes`: KeptMemoryBytes of a unit that is measured now and quantized in the same memory
// later; else 0.
absl::StatusOr<UnitRead> BeginRead(const UnitContext& context, Phase phase,
                                   const PlannedTensor& tensor, uint64_t kept_bytes,
                                   absl::FunctionRef<bool()> cancelled);
// The same without waiting: nothing if there is no memory now.
absl::StatusOr<std::optional<UnitRead>> TryBeginRead(const UnitContext& context, Phase phase,
                                                     const PlannedTensor& tensor,
                                                     uint64_t kept_bytes);
// The same for Phase::kQuantize of a unit that was kept: nothing is left to read.
UnitRead ReadOfKept(const PlannedTensor& tensor, UnitMemory memory,
                    Workspaces::Claim claim);
uint64_t KeptMemoryBytes(const PlannedTensor& tensor);
// The next piece of `first` and, if it is not null, of `second`: digesting both together takes
// little more than one.
absl::Status ReadPieces(UnitRead& first, UnitRead* second);
absl::StatusOr<UnitMemory> FinishRead(const UnitContext& context, UnitRead read,
                                      absl::FunctionRef<bool()> cancelled);
// Quantizes what was read, or measures its column scale, within the unit's memory; the weights
// stay as they are. The code of an error is the backend's.
absl::Status ComputeUnit(Phase phase, const PlannedTensor& tensor, const Computing& computing,
                         UnitMemory& memory, absl::FunctionRef<bool()> cancelled,
                         kernels::TensorStats* stats);
// Digests the planes that ComputeUnit made, and says all that is to be said of them. Units that
// come here in the order of their files need not be read back.
UnitRecord DigestUnit(const UnitContext& context, const PlannedTensor& tensor, UnitMemory& memory,
                      const kernels::TensorStats& stats);
// Writes them at their planned places.
absl::Status WriteUnit(const UnitContext& context, const PlannedTensor& tensor,
                       UnitMemory& memory);
// The column scale that ComputeUnit measured, as codes.
UnitRecord MeasuredUnit(const PlannedTensor& tensor, UnitMemory& memory);
// Multiplies what was read by folded scales and writes it, in the output's dtype.
absl::StatusOr<UnitRecord> FoldUnit(const UnitContext& context, const PlannedTensor& tensor,
                                    UnitMemory& memory);
// Moves a tensor as it is, in pieces.
absl::StatusOr<UnitRecord> CopyUnit(const UnitContext& context, const PlannedTensor& tensor,
                                    UnitMemory& memory, absl::FunctionRef<bool()> cancelled);

}  // namespace sinq

#endif  // SINQ_SERVER_WORKER_QUANTIZE_UNIT_H_
