#include "server/worker/quantize_unit.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/folding.h"
#include "server/base/aligned_buffer.h"
#include "server/base/direct_blocks.h"
#include "server/base/error.h"
#include "server/source/float_element.h"
#include "server/worker/output_check.h"
#include "server/worker/range_digest.h"
#include "server/worker/range_writer.h"
#include "server/worker/weight_dtype.h"

namespace sinq {
namespace {

// Digested at once: two such pieces are still in the second-level cache.
constexpr uint64_t kPieceBytes = 1 << 18;
// Copied at once: each read may wait for the disk, and then for a core.
constexpr size_t kCopyBytes = 1 << 20;

RangeWriter WriterOf(const UnitContext& context, const OutputRange& range,
                     absl::Span<std::byte> staging) {
  const PlannedFile& file = context.plan.files[static_cast<size_t>(range.file_index)];
  return RangeWriter(context.sink, file.name, range.offset, range.tensor.size_bytes, staging);
}

RangeDigest DigestOf(const UnitContext& context, const OutputRange& range) {
  return RangeDigest(context.digesters[static_cast<size_t>(range.file_index)], range.offset,
                     range.tensor.size_bytes);
}

// Of writing the largest output.
uint64_t StagingBytes(const PlannedTensor& tensor) {
  uint64_t largest = 0;
  for (const OutputRange& range : tensor.outputs)
    largest = std::max(largest, range.tensor.size_bytes);
  return RangeWriter::StagingBytes(largest);
}

bool IsCopy(Phase phase, const PlannedTensor& tensor) {
  return phase == Phase::kQuantize && tensor.action == TensorAction::kCopy;
}

// Bytes [begin, begin + out.size()) of the tensor.
absl::Status ReadTensor(const UnitContext& context, const PlannedTensor& tensor, uint64_t begin,
                        absl::Span<std::byte> out) {
  const SourceTensor& source = tensor.source;
  if (tensor.from_template) return context.gguf_template->Read(source.offset + begin, out);
  return context.source.Read(source.file_index, source.offset + begin, out);
}

// What of a unit's memory is not for weights.
absl::Span<std::byte> RestOf(UnitMemory& memory) {
  if (memory.workspace.buffer.SizeBytes() > 0) return memory.workspace.buffer.span();
  return memory.weights.buffer.span().subspan(AlignedBytes(memory.weights_bytes));
}

uint64_t ReadMemoryBytes(Phase phase, const PlannedTensor& tensor, uint64_t kept_bytes) {
  return kept_bytes > 0 ? kept_bytes : WeightsMemoryBytes(phase, tensor);
}

UnitRead ReadInto(const UnitContext& context, Phase phase, const PlannedTensor& tensor,
                  uint64_t kept_bytes, PooledBuffer buffer,
                  Workspaces::Claim claim) {
  const SourceTensor& source = tensor.source;
  if (tensor.from_template) {
    context.gguf_template->WillRead(source.offset, source.size_bytes);
  } else {
    context.source.WillRead(source.file_index, source.offset, source.size_bytes);
  }
  UnitRead read;
  read.phase = phase;
  read.tensor = &tensor;
  read.memory.weights = std::move(buffer);
  read.memory.weights_bytes = tensor.source.size_bytes;
  read.memory.kept_bytes = kept_bytes;
  read.claim = std::move(claim);
  if (IsCopy(phase, tensor)) return read;
  read.bytes_left = source.size_bytes;
  read.fetch = context.prefetcher.Begin(
      source.offset, source.size_bytes, read.memory.weights.buffer.data(),
      [&context, &tensor](uint64_t at, absl::Span<std::byte> piece) {
        return ReadTensor(context, tensor, at, piece);
      });
  return read;
}

// The next bytes of the unit. Nothing if none are left.
absl::StatusOr<absl::Span<const std::byte>> ReadPiece(UnitRead& read) {
  if (read.bytes_left == 0) return absl::Span<const std::byte>();
  const uint64_t at = read.tensor->source.size_bytes - read.bytes_left;
  const absl::StatusOr<uint64_t> ready_bytes = read.fetch->AwaitBeyond(at);
  if (!ready_bytes.ok()) return WithTensor(ready_bytes.status(), *read.tensor);
  const size_t size = static_cast<size_t>(std::min(*ready_bytes - at, kPieceBytes));
  read.bytes_left -= size;
  return absl::Span<const std::byte>(read.memory.weights.buffer.data() + at, size);
}

kernels::MatrixView ViewOf(const PlannedTensor& tensor, const UnitMemory& memory) {
  kernels::MatrixView view{memory.weights.buffer.data(), tensor.source.shape[0],
                           tensor.source.shape[1], WeightDtypeOf(tensor.source.dtype),
                           memory.block_scales};
  view.row_factor = memory.row_factors;
  view.column_factor = memory.column_factors;
  if (memory.activation_bytes > 0) view.activations = &memory.activations;
  return view;
}

uint64_t ActivationBytes(Phase phase, const PlannedTensor& tensor) {
  const bool has_any = phase == Phase::kQuantize && tensor.activations.has_value();
  return has_any ? AlignedBytes(tensor.activations->FloatBytes()) : 0;
}

absl::Status ReadActivations(const UnitContext& context, const PlannedTensor& tensor,
                             UnitMemory& memory, absl::FunctionRef<bool()> cancelled) {
  memory.activation_bytes = ActivationBytes(Phase::kQuantize, tensor);
  if (memory.activation_bytes == 0) return absl::OkStatus();
  const ActivationTensor& from = *tensor.activations;
  const absl::Span<float> values(reinterpret_cast<float*>(memory.workspace.buffer.data()),
                                 from.FloatBytes() / sizeof(float));
  if (from.is_second_moments) {
    memory.activations.second_moments = values;
  } else {
    memory.activations.samples = values;
    memory.activations.tokens = from.rows;
  }
  return context.activations->Read(from, values, cancelled);
}

bool HasOutputCheckFor(const PlannedTensor& tensor) {
  return HasOutputCheck(tensor.params,
                        tensor.activations.has_value() && !tensor.activations->is_second_moments);
}

// Of checking the outputs, beside what quantizing needs.
uint64_t OutputCheckMemoryBytes(const PlannedTensor& tensor, const WorkerPool& workers) {
  if (!HasOutputCheckFor(tensor)) return 0;
  const int64_t rows = tensor.source.shape[0], cols = tensor.source.shape[1];
  return OutputCheckBytes(WeightDtypeOf(tensor.source.dtype), rows, cols) +
         workers.ScratchBytes(OutputCheckParams(tensor.params), rows, cols);
}

// The unit's outputs; what follows them is scratch.
std::vector<absl::Span<std::byte>> PlanesOfUnit(const PlannedTensor& tensor, UnitMemory& memory,
                                                absl::Span<std::byte>* scratch) {
  absl::Span<std::byte> rest = RestOf(memory).subspan(memory.activation_bytes);
  std::vector<absl::Span<std::byte>> planes;
  for (const OutputRange& range : tensor.outputs) {
    planes.push_back(rest.subspan(0, range.tensor.size_bytes));
    rest.remove_prefix(AlignedBytes(range.tensor.size_bytes));
  }
  *scratch = rest;
  return planes;
}

// Where a measured column scale lies; what follows it is scratch.
absl::Span<float> ColumnsOfUnit(const PlannedTensor& tensor, UnitMemory& memory,
                                absl::Span<std::byte>* scratch) {
  const size_t columns = static_cast<size_t>(tensor.source.shape[1]);
  const absl::Span<std::byte> rest = RestOf(memory);
  *scratch = rest.subspan(AlignedBytes(sizeof(float) * columns));
  return {reinterpret_cast<float*>(rest.data()), columns};
}

uint64_t PlaneBytes(const PlannedTensor& tensor) {
  uint64_t size_bytes = 0;
  for (const OutputRange& range : tensor.outputs)
    size_bytes += AlignedBytes(range.tensor.size_bytes);
  return size_bytes;
}

uint64_t LargestOfUnits(const Plan& plan,
                        absl::FunctionRef<uint64_t(Phase, const PlannedTensor&)> bytes) {
  uint64_t largest = 0;
  for (const PlannedTensor& tensor : plan.tensors) {
    for (const Phase phase : {Phase::kMeasure, Phase::kQuantize}) {
      if (HasUnit(phase, tensor)) largest = std::max(largest, bytes(phase, tensor));
    }
  }
  return largest;
}

absl::Status CheckUnitOutput(const PlannedTensor& tensor, const Computing& computing,
                             const UnitMemory& memory, absl::Span<std::byte> scratch,
                             absl::FunctionRef<bool()> cancelled, kernels::TensorStats* stats) {
  if (!HasOutputCheckFor(tensor)) return absl::OkStatus();
  const kernels::MatrixView in = ViewOf(tensor, memory);
  const size_t dense_bytes = static_cast<size_t>(OutputCheckBytes(in.dtype, in.rows, in.cols));
  const absl::StatusOr<double> error =
      CheckOutput(in, tensor.params, computing, scratch.subspan(0, dense_bytes),
                  scratch.subspan(dense_bytes), cancelled);
  if (error.ok()) stats->output_error = *error;
  return error.status();
}

// The plane in the order of the file: whole, or the rows of alternating heads.
std::vector<absl::Span<const std::byte>> PartsOf(const PlannedTensor& tensor,
                                                 absl::Span<const std::byte> plane) {
  if (tensor.alternating_heads == 0) return {plane};
  std::vector<absl::Span<const std::byte>> parts;
  const uint64_t row_bytes = plane.size() / static_cast<uint64_t>(tensor.source.shape[0]);
  for (int64_t i = 0; i < tensor.source.shape[0]; ++i) {
    const uint64_t row = static_cast<uint64_t>(tensor.SourceRow(i));
    parts.push_back(plane.subspan(row * row_bytes, row_bytes));
  }
  return parts;
}

std::vector<std::string> DigestPlanes(const UnitContext& context, const PlannedTensor& tensor,
                                      absl::Span<const absl::Span<std::byte>> planes) {
  std::vector<std::string> digests;
  for (size_t i = 0; i < planes.size(); ++i) {
    RangeDigest digest = DigestOf(context, tensor.outputs[i]);
    for (const absl::Span<const std::byte> part : PartsOf(tensor, planes[i])) digest.Update(part);
    digests.push_back(digest.Finish());
  }
  return digests;
}

absl::Status WritePlanes(const UnitContext& context, const PlannedTensor& tensor,
                         absl::Span<const absl::Span<std::byte>> planes,
                         absl::Span<std::byte> staging) {
  for (size_t i = 0; i < planes.size(); ++i) {
    RangeWriter writer = WriterOf(context, tensor.outputs[i], staging);
    for (const absl::Span<const std::byte> part : PartsOf(tensor, planes[i])) {
      if (absl::Status status = writer.Append(part); !status.ok())
        return WithTensor(status, tensor);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status WithTensor(const absl::Status& status, const PlannedTensor& tensor) {
  if (status.code() != absl::StatusCode::kInvalidArgument ||
      GetErrorDetails(status).reason != Reason::kUnspecified) {
    return Annotate(status, tensor.source.name);
  }
  // What the kernels refuse is in the weights themselves.
  return MakeError(status.code(), Reason::kNonFiniteWeight,
                   absl::StrCat(tensor.source.name, ": ", status.message(), "."),
                   {{"tensor", tensor.source.name}});
}

absl::StatusOr<std::vector<float>> ReadBlockScales(const Plan& plan, const ModelSource& source,
                                                   const PlannedTensor& tensor) {
  std::vector<float> factors;
  if (tensor.scale_tensor < 0) return factors;
  const SourceTensor& scale = plan.tensors[static_cast<size_t>(tensor.scale_tensor)].source;
  std::vector<std::byte> raw(scale.size_bytes);
  if (absl::Status status = source.Read(scale.file_index, scale.offset, absl::MakeSpan(raw));
      !status.ok())
    return status;
  factors.resize(raw.size() / FloatElementBytes(scale.dtype));
  for (size_t i = 0; i < factors.size(); ++i)
    factors[i] = FloatElementAt(raw.data(), scale.dtype, i);
  return factors;
}

bool NeedsBackend(Phase phase, const PlannedTensor& tensor) {
  return phase == Phase::kMeasure || tensor.action == TensorAction::kQuantize;
}

uint64_t WeightsMemoryBytes(Phase phase, const PlannedTensor& tensor) {
  const uint64_t read_bytes =
      Prefetcher::MemoryBytes(tensor.source.offset, tensor.source.size_bytes);
  if (NeedsBackend(phase, tensor)) return read_bytes;
  if (IsCopy(phase, tensor))
    return AlignedBytes(std::min<uint64_t>(read_bytes, kCopyBytes)) + StagingBytes(tensor);
  return std::max(
      AlignedBytes(tensor.source.size_bytes) + PlaneBytes(tensor) + StagingBytes(tensor),
      read_bytes);
}

uint64_t WorkspaceBytes(Phase phase, const PlannedTensor& tensor, const WorkerPool& workers) {
  if (!NeedsBackend(phase, tensor)) return 0;
  const int64_t rows = tensor.source.shape[0], cols = tensor.source.shape[1];
  const uint64_t scratch_bytes = workers.ScratchBytes(tensor.params, rows, cols);
  if (phase == Phase::kMeasure)
    return AlignedBytes(sizeof(float) * static_cast<uint64_t>(cols)) + scratch_bytes;
  return ActivationBytes(phase, tensor) + PlaneBytes(tensor) +
         std::max(scratch_bytes + OutputCheckMemoryBytes(tensor, workers),
                  StagingBytes(tensor));  // one after the other
}

uint64_t LargestWeightsBytes(const Plan& plan) {
  return LargestOfUnits(plan, [](Phase phase, const PlannedTensor& tensor) {
    return WeightsMemoryBytes(phase, tensor);
  });
}

uint64_t LargestWorkspaceBytes(const Plan& plan, const WorkerPool& workers) {
  return LargestOfUnits(plan, [&workers](Phase phase, const PlannedTensor& tensor) {
    return WorkspaceBytes(phase, tensor, workers);
  });
}

uint64_t KeptMemoryBytes(const PlannedTensor& tensor) {
  return std::max(WeightsMemoryBytes(Phase::kMeasure, tensor),
                  WeightsMemoryBytes(Phase::kQuantize, tensor));
}

absl::StatusOr<UnitRead> BeginRead(const UnitContext& context, Phase phase,
                                   const PlannedTensor& tensor, uint64_t kept_bytes,
                                   absl::FunctionRef<bool()> cancelled) {
  absl::StatusOr<std::optional<UnitRead>> at_once =
      TryBeginRead(context, phase, tensor, kept_bytes);
  if (!at_once.ok()) return at_once.status();
  if (at_once->has_value()) return **std::move(at_once);
  const uint64_t bytes = context.pool.SizeOfBuffer(ReadMemoryBytes(phase, tensor, kept_bytes));
  const uint64_t workspace_bytes =
      NeedsBackend(phase, tensor) ? context.workspaces.size_bytes() : 0;
  absl::StatusOr<MemoryBudget::Reservation> granted =
      context.budget.Reserve(bytes + workspace_bytes, cancelled);
  if (!granted.ok()) return granted.status();
  Workspaces::Claim claim;
  if (workspace_bytes > 0) {
    absl::StatusOr<Workspaces::Claim> made =
        context.workspaces.ClaimWith(granted->Split(workspace_bytes));
    if (!made.ok()) return made.status();
    claim = *std::move(made);
  }
  absl::StatusOr<PooledBuffer> buffer = context.pool.Allocate(*std::move(granted));
  if (!buffer.ok()) return buffer.status();
  return ReadInto(context, phase, tensor, kept_bytes, *std::move(buffer), std::move(claim));
}

absl::StatusOr<std::optional<UnitRead>> TryBeginRead(const UnitContext& context, Phase phase,
                                                     const PlannedTensor& tensor,
                                                     uint64_t kept_bytes) {
  Workspaces::Claim claim;
  if (NeedsBackend(phase, tensor)) {
    claim = context.workspaces.TryClaim();
    if (claim == nullptr) return std::nullopt;
  }
  const uint64_t bytes = ReadMemoryBytes(phase, tensor, kept_bytes);
  const BufferPool::Fit fit = kept_bytes > 0 ? BufferPool::Fit::kClose : BufferPool::Fit::kAny;
  absl::StatusOr<std::optional<PooledBuffer>> buffer = context.pool.TryAcquire(bytes, fit);
  if (!buffer.ok()) return buffer.status();
  if (!buffer->has_value()) return std::nullopt;
  return ReadInto(context, phase, tensor, kept_bytes, **std::move(buffer), std::move(claim));
}

UnitRead ReadOfKept(const PlannedTensor& tensor, UnitMemory memory,
                    Workspaces::Claim claim) {
  UnitRead read;
  read.tensor = &tensor;
  read.memory = std::move(memory);
  read.claim = std::move(claim);
  read.was_kept = true;
  return read;
}

absl::Status ReadPieces(UnitRead& first, UnitRead* second) {
  const auto of_first = ReadPiece(first);
  if (!of_first.ok()) return of_first.status();
  if (second == nullptr) {
    if (first.IsDigested()) first.digest.Update(*of_first);
    return absl::OkStatus();
  }
  const auto of_second = ReadPiece(*second);
  if (!of_second.ok()) return of_second.status();
  if (first.IsDigested() && second->IsDigested()) {
    Sha256::UpdateBoth(first.digest, *of_first, second->digest, *of_second);
  } else if (first.IsDigested()) {
    first.digest.Update(*of_first);
  } else if (second->IsDigested()) {
    second->digest.Update(*of_second);
  }
  return absl::OkStatus();
}

absl::StatusOr<UnitMemory> FinishRead(const UnitContext& context, UnitRead read,
                                      absl::FunctionRef<bool()> cancelled) {
  const PlannedTensor& tensor = *read.tensor;
  const bool digested = read.IsDigested();
  UnitMemory memory = std::move(read.memory);
  if (IsCopy(read.phase, tensor)) return memory;
  if (!read.was_kept) {
    if (digested) memory.source_sha256 = read.digest.HexDigest();
    absl::StatusOr<std::vector<float>> block_scales =
        ReadBlockScales(context.plan, context.source, tensor);
    if (!block_scales.ok()) return WithTensor(block_scales.status(), tensor);
    memory.block_scales = *std::move(block_scales);
  }
  if (read.phase == Phase::kMeasure) return memory;
  if (absl::Status status = ReadActivations(context, tensor, memory, cancelled); !status.ok())
    return WithTensor(status, tensor);
  if (context.scales != nullptr && tensor.source.shape.size() == 2) {
    memory.row_factors = context.scales->RowFactors(tensor);
    memory.column_factors = context.scales->ColumnFactors(tensor);
  }
  return memory;
}

absl::Status ComputeUnit(Phase phase, const PlannedTensor& tensor, const Computing& computing,
                         UnitMemory& memory, absl::FunctionRef<bool()> cancelled,
                         kernels::TensorStats* stats) {
  absl::Span<std::byte> scratch;
  absl::Status status;
  if (phase == Phase::kMeasure) {
    const absl::Span<float> t = ColumnsOfUnit(tensor, memory, &scratch);
    status = computing.backend.MeasureColumns(ViewOf(tensor, memory), tensor.params, scratch, t,
                                              computing.parallel_for, cancelled);
  } else {
    const std::vector<absl::Span<std::byte>> planes = PlanesOfUnit(tensor, memory, &scratch);
    status = computing.backend.Quantize(ViewOf(tensor, memory), tensor.params, scratch, planes,
                                        computing.parallel_for, cancelled, stats);
    if (status.ok())
      status = CheckUnitOutput(tensor, computing, memory, scratch, cancelled, stats);
  }
  return status.ok() ? status : WithTensor(status, tensor);
}

UnitRecord DigestUnit(const UnitContext& context, const PlannedTensor& tensor, UnitMemory& memory,
                      const kernels::TensorStats& stats) {
  absl::Span<std::byte> scratch;
  UnitRecord record{memory.source_sha256,
                    DigestPlanes(context, tensor, PlanesOfUnit(tensor, memory, &scratch)),
                    true,
                    stats.relative_error,
                    stats.imbalance_before,
                    stats.imbalance_after,
                    stats.mean_rounds};
  record.balanced_error = stats.balanced_error;
  record.cosine = stats.cosine;
  record.max_abs_error = stats.max_abs_error;
  record.output_error = stats.output_error;
  // Only profile upstream asks for it; no tensor has a kurtosis of 0.
  if (stats.kurtosis != 0) record.kurtosis = stats.kurtosis;
  return record;
}

absl::Status WriteUnit(const UnitContext& context, const PlannedTensor& tensor,
                       UnitMemory& memory) {
  absl::Span<std::byte> scratch;
  const std::vector<absl::Span<std::byte>> planes = PlanesOfUnit(tensor, memory, &scratch);
  return WritePlanes(context, tensor, planes, scratch);
}

UnitRecord MeasuredUnit(const PlannedTensor& tensor, UnitMemory& memory) {
  absl::Span<std::byte> scratch;
  const absl::Span<float> t = ColumnsOfUnit(tensor, memory, &scratch);
  UnitRecord record;
  record.column_codes.resize(t.size());
  kernels::ColumnCodes(t, tensor.params.group_size, absl::MakeSpan(record.column_codes));
  return record;
}

absl::StatusOr<UnitRecord> FoldUnit(const UnitContext& context, const PlannedTensor& tensor,
                                    UnitMemory& memory) {
  absl::Span<std::byte> scratch;
  const std::vector<absl::Span<std::byte>> planes = PlanesOfUnit(tensor, memory, &scratch);
  absl::Status status;
  if (tensor.source.shape.size() == 1) {
    context.scales->FoldVector(
        tensor, memory.weights.buffer.span().subspan(0, memory.weights_bytes), planes[0]);
  } else {
    status = kernels::FoldMatrix(ViewOf(tensor, memory),
                                 WeightDtypeOf(tensor.outputs[0].tensor.dtype), planes[0]);
  }
  if (!status.ok()) return WithTensor(status, tensor);
  status = WritePlanes(context, tensor, planes, scratch);
  if (!status.ok()) return status;
  return UnitRecord{
      memory.source_sha256, DigestPlanes(context, tensor, planes), false, 0, 0, 0, 0};
}

absl::StatusOr<UnitRecord> CopyUnit(const UnitContext& context, const PlannedTensor& tensor,
                                    UnitMemory& memory, absl::FunctionRef<bool()> cancelled) {
  const SourceTensor& source = tensor.source;
  const absl::Span<std::byte> buffer = memory.weights.buffer.span();
  const uint64_t staging_bytes = StagingBytes(tensor);
  RangeDigest digest = DigestOf(context, tensor.outputs.front());
  RangeWriter writer = WriterOf(context, tensor.outputs.front(),
                                buffer.subspan(buffer.size() - staging_bytes, staging_bytes));
  absl::Status status;
  for (uint64_t at = 0; at < source.size_bytes && status.ok();) {
    if (cancelled()) return absl::CancelledError("stopped while copying");
    const uint64_t offset = source.offset + at;
    const absl::Span<std::byte> piece = buffer.subspan(
        BytesIntoBlock(offset), BytesOfPiece(offset, source.size_bytes - at, kCopyBytes));
    status = ReadTensor(context, tensor, at, piece);
    if (status.ok()) digest.Update(piece);
    if (status.ok()) status = writer.Append(piece);
    at += piece.size();
  }
  if (!status.ok()) return WithTensor(status, tensor);
  UnitRecord record;
  record.source_sha256 = digest.Finish();
  record.output_sha256 = {record.source_sha256};
  return record;
}

}  // namespace sinq
