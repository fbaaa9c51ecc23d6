#include "kernels/cuda_steps.h"

#include <algorithm>

#include "kernels/activation_rules.h"
#include "kernels/close_rows.h"
#include "kernels/codebook.h"
#include "kernels/cuda_panel.h"
#include "kernels/launch_config.h"
#include "kernels/layout.h"
#include "kernels/tile_ops.h"  // kHqqRounds

namespace sinq::kernels {
namespace {

constexpr size_t kPieceBytes = 256;  // what device allocations are aligned to

// Hands out aligned pieces; without memory it only counts.
class Pieces {
 public:
  explicit Pieces(void* memory) : memory_(static_cast<std::byte*>(memory)) {}
  template <class T>
  void Take(T*& array, int64_t count) {
    array = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + used_);
    const size_t bytes = sizeof(T) * static_cast<size_t>(count);
    used_ += (bytes + kPieceBytes - 1) / kPieceBytes * kPieceBytes;
  }
  size_t used() const { return used_; }

 private:
  std::byte* const memory_;
  size_t used_ = 0;
};

DeviceArrays TakeArrays(const CudaTensor& tensor, Pieces& pieces) {
  DeviceArrays arrays;
  pieces.Take(arrays.column, tensor.columns);
  pieces.Take(arrays.inverse_column, tensor.columns);
  pieces.Take(arrays.outcomes, tensor.tiles);
  pieces.Take(arrays.summary, 1);
  if (tensor.measures_errors) {
    for (double** array : {&arrays.tile_error, &arrays.tile_power})
      pieces.Take(*array, tensor.tiles);
  }
  if (!tensor.quantizes) return arrays;
  for (float** array :
       {&arrays.scale, &arrays.zero, &arrays.error, &arrays.power, &arrays.largest})
    pieces.Take(*array, tensor.groups);
  for (float** array : {&arrays.overlap, &arrays.balanced_error, &arrays.balanced_power})
    pieces.Take(*array, CloseGroupsBefore(tensor.groups, tensor.groups_per_row));
  if (tensor.params.profile == Profile::kUpstream) {
    for (float** array : {&arrays.exact_scale, &arrays.exact_zero, &arrays.row_factor})
      pieces.Take(*array, tensor.groups);
  }
  if (tensor.params.layout == Layout::kGgufQ4_1) pieces.Take(arrays.minimum, tensor.groups);
  if (tensor.has_candidates) {
    for (float** array : {&arrays.input_magnitude, &arrays.weight_magnitude})
      pieces.Take(*array, tensor.cols);
    pieces.Take(arrays.candidates, kAlphaSteps * tensor.cols);
    pieces.Take(arrays.search_error, kAlphaSteps * RowBlocks(tensor.rows));
  }
  std::byte* partials;
  pieces.Take(partials, static_cast<int64_t>(TensorPartialsBytes(tensor.rows)));
  arrays.partials = partials;
  return arrays;
}

constexpr int64_t kGgufValues = 32;  // of a block

int64_t GgufBlockBytes(const CudaTensor& tensor) {
  if (tensor.params.layout == Layout::kGgufQ8_0) return 2 + kGgufValues;
  return (tensor.params.layout == Layout::kGgufQ4_1 ? 4 : 2) + kGgufValues / 2;
}

// A plane that holds the tensor row by row.
PackedPiece WholeRows(const RowRange& rows, size_t row_bytes) {
  return {rows.last - rows.first, row_bytes, row_bytes,
          static_cast<size_t>(rows.first) * row_bytes};
}

PanelArrays TakePanel(const CudaTensor& tensor, int64_t tiles, Pieces& pieces) {
  PanelArrays panel;
  panel.row_blocks = RowBlocks(tensor.tile_rows);
  panel.padded_rows = panel.row_blocks * kRowsPerBlock;
  const int64_t columns = tiles * tensor.group;
  pieces.Take(panel.states, tiles);
  pieces.Take(panel.scans, tiles * panel.row_blocks);
  pieces.Take(panel.factor, columns);
  if (RoundingOf(tensor.params.method) == Rounding::kHqq && tensor.quantizes) {
    for (float** array : {&panel.hqq_zero, &panel.hqq_error})
      pieces.Take(*array, kHqqRounds * tiles * panel.padded_rows);
    pieces.Take(panel.hqq_best, tiles);
  }
  if (tensor.measures_errors) {
    for (float** array : {&panel.score_error, &panel.score_power})
      pieces.Take(*array, tiles * panel.padded_rows);
  }
  if (tensor.notes_magnitudes) pieces.Take(panel.magnitude, columns * panel.row_blocks);
  if (!tensor.balances) return panel;
  for (float** array : {&panel.t[0], &panel.t[1]}) pieces.Take(*array, columns);
  for (float** array : {&panel.r[0], &panel.r[1], &panel.row_std})
    pieces.Take(*array, tiles * panel.padded_rows);
  for (float** array : {&panel.column_sum, &panel.column_square})
    pieces.Take(*array, columns * panel.row_blocks);
  pieces.Take(panel.extremes, tiles * panel.row_blocks);
  return panel;
}

}  // namespace

CudaTensor PlanTensor(const QuantParams& params, int64_t rows, int64_t cols, WeightDtype input) {
  CudaTensor tensor;
  tensor.params = params;
  tensor.params.aux = tensor.aux = EffectiveAux(params, rows, cols);
  tensor.rows = rows;
  tensor.cols = cols;
  tensor.group = EffectiveGroupSize(cols, params.group_size);
  tensor.groups_per_row = cols / tensor.group;
  tensor.groups = rows * tensor.groups_per_row;
  tensor.tile_rows = params.tiling == Tiling::k2D ? tensor.group : rows;
  tensor.tiles = rows / tensor.tile_rows * tensor.groups_per_row;
  tensor.columns = tensor.tiles * tensor.group;
  tensor.balances = Balances(params.method) && MakesColumnScale(params);
  tensor.scales_groups = ScalesGroups(params);
  if (input != WeightDtype::kF8E4M3) tensor.dense = input;
  tensor.has_candidates = NeedsActivations(params.method);
  // F32: as it is. What is still to be divided is rounded afterwards.
  const bool rounds = params.profile == Profile::kDefault && !tensor.has_candidates;
  tensor.column_storage = rounds ? tensor.aux : AuxStorage::kF32;
  return tensor;
}

CudaTensor SearchTensorOf(const CudaTensor& tensor) {
  CudaTensor search = tensor;
  search.params.tiling = Tiling::k1D;
  search.tile_rows = tensor.rows;
  search.tiles = tensor.groups_per_row;
  search.columns = tensor.cols;
  search.notes_magnitudes = true;
  return search;
}

CudaTensor PlanColumnMeasure(const QuantParams& params, int64_t rows, int64_t cols) {
  QuantParams columns = params;
  columns.tiling = Tiling::k1D;
  CudaTensor tensor = PlanTensor(columns, rows, cols);
  tensor.balances = true;
  tensor.column_storage = AuxStorage::kF32;
  tensor.quantizes = tensor.has_candidates = false;
  return tensor;
}

CudaTensor PlanErrorMeasure(const QuantParams& params, int64_t rows, int64_t cols) {
  QuantParams tiles = params;
  tiles.tiling = Tiling::k1D;
  CudaTensor tensor = PlanTensor(tiles, rows, cols);
  tensor.balances = Balances(params.method);
  tensor.scales_groups = false;
  tensor.column_storage = AuxStorage::kF16;
  tensor.quantizes = tensor.has_candidates = false;
  tensor.measures_errors = true;
  return tensor;
}

bool HasKurtosisGate(const QuantParams& params) {
  return params.profile == Profile::kUpstream && Balances(params.method) &&
         !HasCodebook(RoundingOf(params.method));
}

PanelExtent ExtentOf(const CudaTensor& tensor, const TilePanel& panel) {
  const int64_t per_band = tensor.groups_per_row;
  const int64_t first_band = panel.first_tile / per_band;
  const int64_t last_band = (panel.first_tile + panel.tiles - 1) / per_band;
  const RowRange rows{first_band * tensor.tile_rows, (last_band + 1) * tensor.tile_rows};
  if (first_band != last_band) return {rows, 0, tensor.cols};
  return {rows, panel.first_tile % per_band * tensor.group, panel.tiles * tensor.group};
}

size_t FoldedBytes(const DeviceWeights& weights) {
  return sizeof(float) * static_cast<size_t>(weights.rows) * static_cast<size_t>(weights.cols);
}

DeviceWeights FoldedView(const DeviceWeights& weights, const void* folded) {
  DeviceWeights view = weights;
  view.data = folded;
  view.stride = weights.cols;
  view.dtype = WeightDtype::kF32;
  view.block_scales = view.row_factor = view.column_factor = nullptr;
  return view;
}

size_t TensorPartialsBytes(int64_t rows) {
  return std::max(kMaxStorePartials * sizeof(StorePartial),
                  kSumPartials * sizeof(double) * static_cast<size_t>(RowBlocks(rows)));
}

size_t DeviceArraysBytes(const CudaTensor& tensor) {
  Pieces pieces(nullptr);
  TakeArrays(tensor, pieces);
  return pieces.used();
}

DeviceArrays LayOutDeviceArrays(const CudaTensor& tensor, void* memory) {
  Pieces pieces(memory);
  return TakeArrays(tensor, pieces);
}

size_t PanelBytes(const CudaTensor& tensor, int64_t tiles) {
  Pieces pieces(nullptr);
  TakePanel(tensor, tiles, pieces);
  return pieces.used();
}

PanelArrays LayOutPanel(const CudaTensor& tensor, int64_t tiles, void* workspace) {
  Pieces pieces(workspace);
  return TakePanel(tensor, tiles, pieces);
}

size_t MomentsBytes(int64_t rows) { return 4 * sizeof(double) * static_cast<size_t>(rows); }

bool IsPackedApart(const CudaTensor& tensor) {
  const Layout layout = tensor.params.layout;
  return layout != Layout::kSinq && layout != Layout::kHqq && layout != Layout::kDense;
}

PackedRows PackedRowsOf(const CudaTensor& tensor) {
  if (IsPackedApart(tensor)) return {tensor.groups, static_cast<size_t>(tensor.group), 1};
  if (tensor.params.layout == Layout::kDense)
    return {tensor.groups, static_cast<size_t>(tensor.group) * BytesPerElement(tensor.dense), 1};
  const CodePacking& packing = PackingFor(tensor.params.bits);
  const int64_t strands = packing.codes_per_word;
  return {(tensor.groups + strands - 1) / strands,
          static_cast<size_t>(tensor.group) * static_cast<size_t>(packing.word_bytes),
          packing.codes_per_word};
}

RowRange RowsOfStrand(const CudaTensor& tensor, int64_t first, int64_t last, int strand) {
  const int64_t base = strand * PackedRowsOf(tensor).rows;
  const int64_t begin = std::min(base + first, tensor.groups);
  const int64_t end = std::min(base + last, tensor.groups);
  if (begin == end) return {};
  return {begin / tensor.groups_per_row, (end - 1) / tensor.groups_per_row + 1};
}

PackedPiece PieceOf(const CudaTensor& tensor, const RowRange& rows) {
  const size_t count = static_cast<size_t>(rows.last - rows.first);
  const size_t first = static_cast<size_t>(rows.first), all = static_cast<size_t>(tensor.rows);
  const int64_t words = (tensor.cols * tensor.params.bits + 31) / 32;
  switch (tensor.params.layout) {
    case Layout::kAwq:
      return {tensor.cols, count / 8 * 4, all / 8 * 4, first / 8 * 4};
    case Layout::kGptq:
    case Layout::kGptqV2:
      return {words, count * 4, all * 4, first * 4};
    case Layout::kCompressedTensors:
      break;
    default:
      return WholeRows(rows,
                       static_cast<size_t>(tensor.cols / kGgufValues * GgufBlockBytes(tensor)));
  }
  return WholeRows(rows, static_cast<size_t>(words) * 4);
}

}  // namespace sinq::kernels
