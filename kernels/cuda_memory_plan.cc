#include "kernels/cuda_memory_plan.h"

#include <algorithm>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "kernels/cuda_arena.h"

namespace sinq::kernels {
namespace {

// The largest count in [1, most] whose bytes are at most `limit`; 0 if not even 1 fits. Bytes grow
// with the count.
int64_t LargestFitting(int64_t most, size_t limit_bytes, absl::FunctionRef<size_t(int64_t)> bytes) {
  if (bytes(1) > limit_bytes) return 0;
  int64_t fits = 1, past = most + 1;
  while (past - fits > 1) {
    const int64_t middle = fits + (past - fits) / 2;
    (bytes(middle) <= limit_bytes ? fits : past) = middle;
  }
  return fits;
}

CudaTensor AfterGate(const CudaTensor& tensor) {
  QuantParams params = tensor.params;
  params.method = Method::kRtn;
  return PlanTensor(params, tensor.rows, tensor.cols, tensor.dense);
}

// Codes of `rows` rows as LaunchPack leaves them.
size_t PackedApartBytes(const CudaTensor& tensor, int64_t rows) {
  if (!IsPackedApart(tensor)) return 0;
  const PackedPiece piece = PieceOf(tensor, {0, rows});
  return ArenaBytes(static_cast<size_t>(piece.lines) * piece.line_bytes);
}

class Planner {
 public:
  Planner(const MatrixView& in, const QuantParams& params) : in_(in) {
    plan_.tensor = PlanTensor(params, in.rows, in.cols, in.dtype);
    packed_rows_ = PackedRowsOf(plan_.tensor).rows;
    asks_kurtosis_ = HasKurtosisGate(params);
  }

  absl::StatusOr<CudaMemoryPlan> Plan(size_t arena_bytes, size_t moving_limit_bytes) {
    if (absl::Status status = PlanFixed(); !status.ok()) return status;
    const size_t left = arena_bytes - std::min(arena_bytes, plan_.fixed_bytes());
    const size_t limit = std::min(left, moving_limit_bytes);
    if (PlanResident(limit) || PlanPieces(limit)) return plan_;
    const size_t needed_bytes = plan_.fixed_bytes() + SmallestPieceBytes();
    return absl::ResourceExhaustedError(absl::StrCat(
        "a [", in_.rows, ", ", in_.cols, "] tensor takes at least ", needed_bytes,
        " bytes of device memory, ", plan_.fixed_bytes(), " of them for its scales, and there are ",
        std::min(arena_bytes, plan_.fixed_bytes() + limit),
        " for each stream; give the device more memory or fewer streams, or use the CPU"));
  }

 private:
  absl::Status PlanFixed() {
    const absl::StatusOr<std::vector<PlaneSpec>> specs =
        PlanesOf(plan_.tensor.params, in_.rows, in_.cols, DenseDtype(in_.dtype));
    if (!specs.ok()) return specs.status();
    for (size_t p = 1; p < specs->size(); ++p)
      plan_.planes_bytes += ArenaBytes((*specs)[p].size_bytes);
    plan_.arrays_bytes = ArenaBytes(DeviceArraysBytes(plan_.tensor));
    if (asks_kurtosis_) {
      plan_.arrays_bytes =
          std::max(plan_.arrays_bytes, ArenaBytes(DeviceArraysBytes(AfterGate(plan_.tensor))));
    }
    for (const absl::Span<const float> factors :
         {in_.block_scales, in_.row_factor, in_.column_factor})
      plan_.factors_bytes += ArenaBytes(factors.size() * sizeof(float));
    return absl::OkStatus();
  }

  size_t MomentsWorkspace(int64_t rows) const {
    return asks_kurtosis_ ? ArenaBytes(MomentsBytes(rows)) : 0;
  }

  size_t ResidentBytes(int64_t panel_tiles) const {
    return WeightsBytes(in_, in_.rows, in_.cols) + CodesBytes(plan_.tensor, packed_rows_) +
           PackedApartBytes(plan_.tensor, in_.rows) +
           std::max(PanelWorkspaceBytes(plan_.tensor, panel_tiles), MomentsWorkspace(in_.rows));
  }

  bool PlanResident(size_t limit) {
    const auto bytes = [this](int64_t tiles) { return ResidentBytes(tiles); };
    plan_.panel_tiles = LargestFitting(plan_.tensor.tiles, limit, bytes);
    plan_.resident = plan_.panel_tiles > 0;
    if (!plan_.resident) return false;
    plan_.moment_rows = asks_kurtosis_ ? in_.rows : 0;
    plan_.encode_rows = packed_rows_;
    plan_.moving_bytes = ResidentBytes(plan_.panel_tiles);
    return true;
  }

  size_t PanelPieceBytes(int64_t tiles) const {
    const CudaTensor& tensor = plan_.tensor;
    // Tiles of several bands, or of two because the panel begins inside one, are a rectangle of all
    // columns (ExtentOf).
    const int64_t bands =
        tensor.groups_per_row % tiles == 0
            ? 1
            : std::min((tiles - 2) / tensor.groups_per_row + 2, tensor.rows / tensor.tile_rows);
    const int64_t cols = bands == 1 ? tiles * tensor.group : tensor.cols;
    return WeightsBytes(in_, bands * tensor.tile_rows, std::min(cols, tensor.cols)) +
           PanelWorkspaceBytes(tensor, tiles);
  }
  size_t MomentPieceBytes(int64_t rows) const {
    return WeightsBytes(in_, rows, in_.cols) + MomentsWorkspace(rows);
  }
  // Packed rows [first, first + count) read at most count / groups_per_row rows of each strand,
  // rounded up, and one more where they begin and end inside a row.
  size_t EncodePieceBytes(int64_t count) const {
    const int64_t per_row = plan_.tensor.groups_per_row;
    const int64_t rows = std::min(in_.rows, (count + per_row - 1) / per_row + 1);
    const size_t strands = static_cast<size_t>(PackedRowsOf(plan_.tensor).strands);
    return strands * WeightsBytes(in_, rows, in_.cols) + CodesBytes(plan_.tensor, count) +
           PackedApartBytes(plan_.tensor, count / per_row);
  }
  // The smallest number of packed rows that can be made at once, and how many such there are.
  int64_t EncodeUnit() const {
    if (!IsPackedApart(plan_.tensor)) return 1;
    return std::min(kRowsApart, in_.rows) * plan_.tensor.groups_per_row;
  }

  bool PlanPieces(size_t limit) {
    plan_.panel_tiles = LargestFitting(plan_.tensor.tiles, limit,
                                       [this](int64_t tiles) { return PanelPieceBytes(tiles); });
    const int64_t unit = EncodeUnit();
    plan_.encode_rows =
        unit * LargestFitting((packed_rows_ + unit - 1) / unit, limit, [&](int64_t units) {
          return EncodePieceBytes(std::min(units * unit, packed_rows_));
        });
    plan_.encode_rows = std::min(plan_.encode_rows, packed_rows_);
    plan_.moment_rows =
        LargestFitting(in_.rows, limit, [this](int64_t rows) { return MomentPieceBytes(rows); });
    if (plan_.panel_tiles == 0 || plan_.encode_rows == 0) return false;
    if (!asks_kurtosis_) {
      plan_.moment_rows = 0;
    } else if (plan_.moment_rows == 0) {
      return false;
    }
    plan_.moving_bytes =
        std::max(PanelPieceBytes(plan_.panel_tiles), EncodePieceBytes(plan_.encode_rows));
    if (asks_kurtosis_)
      plan_.moving_bytes = std::max(plan_.moving_bytes, MomentPieceBytes(plan_.moment_rows));
    return true;
  }

  size_t SmallestPieceBytes() const {
    const size_t smallest = std::max(PanelPieceBytes(1), EncodePieceBytes(EncodeUnit()));
    return asks_kurtosis_ ? std::max(smallest, MomentPieceBytes(1)) : smallest;
  }

  const MatrixView& in_;
  CudaMemoryPlan plan_;
  int64_t packed_rows_ = 0;
  bool asks_kurtosis_ = false;
};

}  // namespace

size_t CodesBytes(const CudaTensor& tensor, int64_t packed_rows) {
  return ArenaBytes(static_cast<size_t>(packed_rows) * PackedRowsOf(tensor).row_bytes);
}

size_t RawBytes(const MatrixView& in, int64_t rows, int64_t cols) {
  return ArenaBytes(static_cast<size_t>(rows) * static_cast<size_t>(cols) *
                    BytesPerElement(in.dtype));
}

size_t WeightsBytes(const MatrixView& in, int64_t rows, int64_t cols) {
  if (!in.is_folded()) return RawBytes(in, rows, cols);
  DeviceWeights weights;
  weights.rows = rows;
  weights.cols = cols;
  return RawBytes(in, rows, cols) + ArenaBytes(FoldedBytes(weights));
}

PlaneDtype DenseDtype(WeightDtype dtype) {
  switch (dtype) {
    case WeightDtype::kF16:
      return PlaneDtype::kF16;
    case WeightDtype::kF32:
      return PlaneDtype::kF32;
    default:
      return PlaneDtype::kBf16;
  }
}

size_t PanelWorkspaceBytes(const CudaTensor& tensor, int64_t tiles) {
  const size_t bytes = ArenaBytes(PanelBytes(tensor, tiles));
  if (!HasKurtosisGate(tensor.params)) return bytes;
  return std::max(bytes, ArenaBytes(PanelBytes(AfterGate(tensor), tiles)));
}

absl::StatusOr<CudaMemoryPlan> PlanCudaMemory(const MatrixView& in, const QuantParams& params,
                                              size_t arena_bytes, size_t moving_limit_bytes) {
  return Planner(in, params).Plan(arena_bytes, moving_limit_bytes);
}

}  // namespace sinq::kernels
