#include "kernels/cuda_memory_plan.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "kernels/cuda_arena.h"
#include "kernels/launch_config.h"  // RowBlocks

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

size_t FactorsBytes(const MatrixView& in) {
  size_t size_bytes = 0;
  for (const absl::Span<const float> factors : {in.block_scales, in.row_factor, in.column_factor})
    size_bytes += ArenaBytes(factors.size() * sizeof(float));
  return size_bytes;
}

// The weights around a panel of `tiles` tiles, wherever it begins.
size_t RectangleBytes(const MatrixView& in, const CudaTensor& tensor, int64_t tiles) {
  // Tiles of several bands, or of two because the panel begins inside one, are a rectangle of all
  // columns (ExtentOf).
  const int64_t bands =
      tensor.groups_per_row % tiles == 0
          ? 1
          : std::min((tiles - 2) / tensor.groups_per_row + 2, tensor.rows / tensor.tile_rows);
  const int64_t cols = bands == 1 ? tiles * tensor.group : tensor.cols;
  return WeightsBytes(in, bands * tensor.tile_rows, std::min(cols, tensor.cols));
}

// What the methods that need activations look at.
size_t InputsBytes(const MatrixView& in) {
  if (in.activations == nullptr) return 0;
  const ActivationView& given = *in.activations;
  return ArenaBytes(sizeof(float) * (given.samples.size() + given.second_moments.size()));
}

absl::Status TooLittle(const MatrixView& in, size_t needed_bytes, size_t fixed_bytes,
                       size_t inputs_bytes, size_t given_bytes) {
  const std::string inputs =
      inputs_bytes == 0 ? "" : absl::StrCat(", ", inputs_bytes, " for its activations");
  return absl::ResourceExhaustedError(absl::StrCat(
      "a [", in.rows, ", ", in.cols, "] tensor takes at least ", needed_bytes,
      " bytes of device memory, ", fixed_bytes - inputs_bytes, " of them for its scales", inputs,
      ", and there are ", given_bytes,
      " for each stream; give the device more memory or fewer streams, or use the CPU"));
}

class Planner {
 public:
  Planner(const MatrixView& in, const QuantParams& params) : in_(in) {
    plan_.tensor = PlanTensor(params, in.rows, in.cols, in.dtype);
    packed_rows_ = PackedRowsOf(plan_.tensor).rows;
    asks_kurtosis_ = HasKurtosisGate(params);
    searches_ = plan_.tensor.has_candidates;
    search_ = SearchTensorOf(plan_.tensor);
  }

  absl::StatusOr<CudaMemoryPlan> Plan(size_t arena_bytes, size_t moving_limit_bytes) {
    if (absl::Status status = PlanFixed(); !status.ok()) return status;
    const size_t left = arena_bytes - std::min(arena_bytes, plan_.fixed_bytes());
    const size_t limit = std::min(left, moving_limit_bytes);
    if (PlanResident(limit) || PlanPieces(limit)) return plan_;
    return TooLittle(in_, plan_.fixed_bytes() + SmallestPieceBytes(), plan_.fixed_bytes(),
                     plan_.inputs_bytes, std::min(arena_bytes, plan_.fixed_bytes() + limit));
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
    plan_.factors_bytes = FactorsBytes(in_);
    plan_.inputs_bytes = searches_ ? InputsBytes(in_) : 0;
    return absl::OkStatus();
  }

  size_t MomentsWorkspace(int64_t rows) const {
    return asks_kurtosis_ ? ArenaBytes(MomentsBytes(rows)) : 0;
  }

  size_t SearchWorkspace(int64_t tiles) const {
    return searches_ ? ArenaBytes(PanelBytes(search_, tiles)) : 0;
  }

  size_t ResidentBytes(int64_t panel_tiles) const {
    return WeightsBytes(in_, in_.rows, in_.cols) + CodesBytes(plan_.tensor, packed_rows_) +
           PackedApartBytes(plan_.tensor, in_.rows) +
           std::max({PanelWorkspaceBytes(plan_.tensor, panel_tiles), MomentsWorkspace(in_.rows),
                     SearchWorkspace(std::min(panel_tiles, search_.tiles))});
  }

  bool PlanResident(size_t limit) {
    const auto bytes = [this](int64_t tiles) { return ResidentBytes(tiles); };
    plan_.panel_tiles = LargestFitting(plan_.tensor.tiles, limit, bytes);
    plan_.resident = plan_.panel_tiles > 0;
    if (!plan_.resident) return false;
    plan_.moment_rows = asks_kurtosis_ ? in_.rows : 0;
    if (searches_) {
      plan_.search_tiles = std::min(plan_.panel_tiles, search_.tiles);
      plan_.search_rows = in_.rows;
    }
    plan_.encode_rows = packed_rows_;
    plan_.moving_bytes = ResidentBytes(plan_.panel_tiles);
    return true;
  }

  size_t PanelPieceBytes(int64_t tiles) const {
    return RectangleBytes(in_, plan_.tensor, tiles) + PanelWorkspaceBytes(plan_.tensor, tiles);
  }
  size_t MomentPieceBytes(int64_t rows) const {
    return WeightsBytes(in_, rows, in_.cols) + MomentsWorkspace(rows);
  }
  size_t SearchPanelBytes(int64_t tiles) const {
    return RectangleBytes(in_, search_, tiles) + SearchWorkspace(tiles);
  }
  size_t SearchRowsBytes(int64_t blocks) const {
    return WeightsBytes(in_, std::min(blocks * kRowsPerBlock, in_.rows), in_.cols);
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
    return !searches_ || PlanSearch(limit);
  }

  bool PlanSearch(size_t limit) {
    plan_.search_tiles = LargestFitting(
        search_.tiles, limit, [this](int64_t tiles) { return SearchPanelBytes(tiles); });
    const int64_t blocks =
        LargestFitting(RowBlocks(in_.rows), limit,
                       [this](int64_t count) { return SearchRowsBytes(count); });
    if (plan_.search_tiles == 0 || blocks == 0) return false;
    plan_.search_rows = std::min(blocks * kRowsPerBlock, in_.rows);
    plan_.moving_bytes = std::max(
        {plan_.moving_bytes, SearchPanelBytes(plan_.search_tiles), SearchRowsBytes(blocks)});
    return true;
  }

  size_t SmallestPieceBytes() const {
    size_t smallest = std::max(PanelPieceBytes(1), EncodePieceBytes(EncodeUnit()));
    if (searches_) smallest = std::max({smallest, SearchPanelBytes(1), SearchRowsBytes(1)});
    return asks_kurtosis_ ? std::max(smallest, MomentPieceBytes(1)) : smallest;
  }

  const MatrixView& in_;
  CudaMemoryPlan plan_;
  CudaTensor search_;  // only if searches_
  int64_t packed_rows_ = 0;
  bool asks_kurtosis_ = false;
  bool searches_ = false;
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

absl::StatusOr<CudaMeasurePlan> PlanCudaMeasure(const MatrixView& in,
                                                std::vector<CudaTensor> tensors,
                                                size_t arena_bytes, size_t moving_limit_bytes) {
  CudaMeasurePlan plan;
  for (const CudaTensor& tensor : tensors)
    plan.arrays_bytes += ArenaBytes(DeviceArraysBytes(tensor));
  plan.factors_bytes = FactorsBytes(in);
  const CudaTensor& first = tensors.front();
  const auto piece_bytes = [&](int64_t tiles) {
    return RectangleBytes(in, first, tiles) + ArenaBytes(PanelBytes(first, tiles));
  };
  const size_t left = arena_bytes - std::min(arena_bytes, plan.fixed_bytes());
  const size_t limit = std::min(left, moving_limit_bytes);
  plan.panel_tiles = LargestFitting(first.tiles, limit, piece_bytes);
  if (plan.panel_tiles == 0) {
    return TooLittle(in, plan.fixed_bytes() + piece_bytes(1), plan.fixed_bytes(), 0,
                     std::min(arena_bytes, plan.fixed_bytes() + limit));
  }
  plan.moving_bytes = piece_bytes(plan.panel_tiles);
  plan.tensors = std::move(tensors);
  return plan;
}

}  // namespace sinq::kernels
