#include "server/worker/quantize_unit.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/folding.h"
#include "kernels/half.h"
#include "server/base/error.h"
#include "server/base/sha256.h"
#include "server/worker/weight_dtype.h"

namespace sinq {
namespace {

constexpr uint64_t kDigestBytes =
    1 << 20;  // read and digested together: still in the second-level cache
constexpr uint64_t kCopyBytes = 4 << 20;

uint64_t Aligned(uint64_t bytes) {
  constexpr uint64_t kAlignment = AlignedBuffer::kAlignmentBytes;
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

const PlannedFile& FileOf(const UnitContext& context, const OutputRange& range) {
  return context.plan.files[static_cast<size_t>(range.file_index)];
}

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

absl::Status ReadWeights(const UnitContext& context, const SourceTensor& tensor,
                         absl::Span<std::byte> out, Sha256* digest,
                         absl::FunctionRef<bool()> cancelled) {
  for (uint64_t at = 0; at < out.size(); at += kDigestBytes) {
    if (cancelled()) return absl::CancelledError("stopped while reading");
    const absl::Span<std::byte> piece = out.subspan(at, kDigestBytes);
    if (absl::Status status = context.source.Read(tensor.file_index, tensor.offset + at, piece);
        !status.ok())
      return status;
    if (digest != nullptr) digest->Update(absl::Span<const std::byte>(piece));
  }
  return absl::OkStatus();
}

// Factors of an FP8 weight's blocks as fp32; they count as part of the unit's source bytes.
absl::Status ReadBlockScales(const UnitContext& context, const PlannedTensor& tensor,
                             UnitMemory& memory) {
  if (tensor.scale_tensor < 0) return absl::OkStatus();
  const SourceTensor& scale = context.plan.tensors[static_cast<size_t>(tensor.scale_tensor)].source;
  std::vector<std::byte> raw(scale.size_bytes);
  if (absl::Status status =
          context.source.Read(scale.file_index, scale.offset, absl::MakeSpan(raw));
      !status.ok())
    return status;
  const bool bf16 = scale.dtype == "BF16";
  memory.block_scales.resize(raw.size() / (bf16 ? 2 : 4));
  for (size_t i = 0; i < memory.block_scales.size(); ++i) {
    if (bf16) {
      uint16_t bits;
      std::memcpy(&bits, raw.data() + 2 * i, sizeof bits);
      memory.block_scales[i] = kernels::Bf16ToFloat(bits);
    } else {
      std::memcpy(&memory.block_scales[i], raw.data() + 4 * i, 4);
    }
  }
  return absl::OkStatus();
}

kernels::MatrixView ViewOf(const PlannedTensor& tensor, const UnitMemory& memory) {
  kernels::MatrixView view{memory.buffer.buffer.data(), tensor.source.shape[0],
                           tensor.source.shape[1], WeightDtypeOf(tensor.source.dtype),
                           memory.block_scales};
  view.row_factor = memory.row_factors;
  view.column_factor = memory.column_factors;
  return view;
}

// The unit's outputs; what follows them is scratch.
std::vector<absl::Span<std::byte>> PlanesOfUnit(const PlannedTensor& tensor, UnitMemory& memory,
                                                absl::Span<std::byte>* scratch) {
  absl::Span<std::byte> rest = memory.buffer.buffer.span();
  rest.remove_prefix(Aligned(memory.weights_bytes));
  std::vector<absl::Span<std::byte>> planes;
  for (const OutputRange& range : tensor.outputs) {
    planes.push_back(rest.subspan(0, range.tensor.size_bytes));
    rest.remove_prefix(Aligned(range.tensor.size_bytes));
  }
  *scratch = rest;
  return planes;
}

absl::Status WritePlanes(const UnitContext& context, const PlannedTensor& tensor,
                         absl::Span<const absl::Span<std::byte>> planes, UnitRecord& record) {
  for (size_t i = 0; i < planes.size(); ++i) {
    Sha256 digest;
    digest.Update(absl::Span<const std::byte>(planes[i]));
    record.output_sha256.push_back(digest.HexDigest());
    const OutputRange& range = tensor.outputs[i];
    absl::Status status =
        context.sink.WriteAt(FileOf(context, range).name, range.offset, planes[i]);
    if (!status.ok()) return WithTensor(status, tensor);
  }
  return absl::OkStatus();
}

}  // namespace

uint64_t UnitMemoryBytes(Phase phase, const PlannedTensor& tensor,
                         const kernels::Backend& backend) {
  uint64_t bytes = Aligned(tensor.source.size_bytes);
  if (phase == Phase::kMeasure) {
    bytes += Aligned(sizeof(float) * static_cast<uint64_t>(tensor.source.shape[1]));
  } else {
    for (const OutputRange& range : tensor.outputs) bytes += Aligned(range.tensor.size_bytes);
    if (tensor.action == TensorAction::kFold) return bytes;
  }
  return bytes +
         backend.ScratchBytes(tensor.params, tensor.source.shape[0], tensor.source.shape[1]);
}

absl::StatusOr<UnitMemory> ReadUnit(const UnitContext& context, const PlannedTensor& tensor,
                                    absl::FunctionRef<bool()> cancelled) {
  absl::StatusOr<PooledBuffer> buffer =
      context.pool.Acquire(UnitMemoryBytes(context.phase, tensor, context.backend), cancelled);
  if (!buffer.ok()) return buffer.status();
  UnitMemory memory{*std::move(buffer), tensor.source.size_bytes, {}, {}, {}, {}};
  Sha256 digest;
  const absl::Span<std::byte> weights =
      memory.buffer.buffer.span().subspan(0, memory.weights_bytes);
  // What is only measured is read, and digested, again.
  Sha256* const used = context.phase == Phase::kMeasure ? nullptr : &digest;
  if (absl::Status status = ReadWeights(context, tensor.source, weights, used, cancelled);
      !status.ok()) {
    return WithTensor(status, tensor);
  }
  memory.source_sha256 = digest.HexDigest();
  if (absl::Status status = ReadBlockScales(context, tensor, memory); !status.ok())
    return WithTensor(status, tensor);
  if (context.scales != nullptr && tensor.source.shape.size() == 2) {
    memory.row_factors = context.scales->RowFactors(tensor);
    memory.column_factors = context.scales->ColumnFactors(tensor);
  }
  return memory;
}

absl::StatusOr<UnitRecord> QuantizeUnit(const UnitContext& context, const PlannedTensor& tensor,
                                        UnitMemory& memory, absl::FunctionRef<bool()> cancelled,
                                        kernels::TensorStats* stats) {
  absl::Span<std::byte> scratch;
  const std::vector<absl::Span<std::byte>> planes = PlanesOfUnit(tensor, memory, &scratch);
  absl::Status status = context.backend.Quantize(ViewOf(tensor, memory), tensor.params, scratch,
                                                 planes, kernels::RunSerially, cancelled, stats);
  if (!status.ok()) return WithTensor(status, tensor);
  UnitRecord record{memory.source_sha256,
                    {},
                    true,
                    stats->relative_error,
                    stats->imbalance_before,
                    stats->imbalance_after,
                    stats->mean_rounds,
                    {}};
  record.balanced_error = stats->balanced_error;
  record.cosine = stats->cosine;
  record.max_abs_error = stats->max_abs_error;
  // Only profile upstream asks for it; no tensor has a kurtosis of 0.
  if (stats->kurtosis != 0) record.kurtosis = stats->kurtosis;
  status = WritePlanes(context, tensor, planes, record);
  if (!status.ok()) return status;
  return record;
}

absl::StatusOr<UnitRecord> MeasureUnit(const UnitContext& context, const PlannedTensor& tensor,
                                       UnitMemory& memory, absl::FunctionRef<bool()> cancelled) {
  const size_t columns = static_cast<size_t>(tensor.source.shape[1]);
  absl::Span<std::byte> rest = memory.buffer.buffer.span();
  rest.remove_prefix(Aligned(memory.weights_bytes));
  const absl::Span<float> t(reinterpret_cast<float*>(rest.data()), columns);
  rest.remove_prefix(Aligned(sizeof(float) * columns));
  const absl::Status status = context.backend.MeasureColumns(
      ViewOf(tensor, memory), tensor.params, rest, t, kernels::RunSerially, cancelled);
  if (!status.ok()) return WithTensor(status, tensor);
  UnitRecord record;
  record.column_codes.resize(columns);
  kernels::ColumnCodes(t, tensor.params.group_size, absl::MakeSpan(record.column_codes));
  return record;
}

absl::StatusOr<UnitRecord> FoldUnit(const UnitContext& context, const PlannedTensor& tensor,
                                    UnitMemory& memory) {
  absl::Span<std::byte> scratch;
  const std::vector<absl::Span<std::byte>> planes = PlanesOfUnit(tensor, memory, &scratch);
  absl::Status status;
  if (tensor.source.shape.size() == 1) {
    std::memcpy(planes[0].data(), memory.buffer.buffer.data(), planes[0].size());
    context.scales->FoldVector(tensor, planes[0]);
  } else {
    status = kernels::FoldMatrix(ViewOf(tensor, memory),
                                 WeightDtypeOf(tensor.outputs[0].tensor.dtype), planes[0]);
  }
  if (!status.ok()) return WithTensor(status, tensor);
  UnitRecord record{memory.source_sha256, {}, false, 0, 0, 0, 0, {}};
  status = WritePlanes(context, tensor, planes, record);
  if (!status.ok()) return status;
  return record;
}

absl::StatusOr<UnitRecord> CopyUnit(const UnitContext& context, const PlannedTensor& tensor,
                                    absl::FunctionRef<bool()> cancelled) {
  const OutputRange& range = tensor.outputs.front();
  absl::StatusOr<PooledBuffer> buffer = context.pool.Acquire(
      std::min(kCopyBytes, std::max<uint64_t>(tensor.source.size_bytes, 1)), cancelled);
  if (!buffer.ok()) return buffer.status();
  Sha256 digest;
  absl::Status status;
  for (uint64_t at = 0; at < tensor.source.size_bytes && status.ok(); at += kCopyBytes) {
    const absl::Span<std::byte> piece =
        buffer->buffer.span().subspan(0, std::min(kCopyBytes, tensor.source.size_bytes - at));
    SourceTensor part = tensor.source;
    part.offset += at;
    status = ReadWeights(context, part, piece, &digest, cancelled);
    if (status.ok())
      status = context.sink.WriteAt(FileOf(context, range).name, range.offset + at, piece);
  }
  context.pool.Release(*std::move(buffer));
  if (!status.ok()) return WithTensor(status, tensor);
  const std::string hex = digest.HexDigest();
  return UnitRecord{hex, {hex}, false, 0, 0, 0, 0, {}};
}

}  // namespace sinq
