#include "kernels/cuda_steps.h"

#include <algorithm>

#include "kernels/cuda_panel.h"
#include "kernels/launch_config.h"
#include "kernels/layout.h"

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
  pieces.Take(arrays.column, tensor.cols);
  pieces.Take(arrays.inverse_column, tensor.cols);
  for (float** array : {&arrays.scale, &arrays.zero, &arrays.error, &arrays.power})
    pieces.Take(*array, tensor.groups);
  if (tensor.params.profile == Profile::kUpstream) {
    for (float** array : {&arrays.exact_scale, &arrays.exact_zero, &arrays.row_factor})
      pieces.Take(*array, tensor.groups);
  }
  pieces.Take(arrays.outcomes, tensor.tiles);
  pieces.Take(arrays.summary, 1);
  std::byte* partials;
  pieces.Take(partials, static_cast<int64_t>(TensorPartialsBytes(tensor.rows)));
  arrays.partials = partials;
  return arrays;
}

PanelArrays TakePanel(const CudaTensor& tensor, int64_t tiles, Pieces& pieces) {
  PanelArrays panel;
  panel.row_blocks = RowBlocks(tensor.rows);
  panel.padded_rows = panel.row_blocks * kRowsPerBlock;
  const int64_t columns = tiles * tensor.group;
  pieces.Take(panel.states, tiles);
  pieces.Take(panel.scans, tiles * panel.row_blocks);
  pieces.Take(panel.factor, columns);
  if (!Balances(tensor.params.method)) return panel;
  for (float** array : {&panel.t[0], &panel.t[1]}) pieces.Take(*array, columns);
  for (float** array : {&panel.r[0], &panel.r[1], &panel.row_std})
    pieces.Take(*array, tiles * panel.padded_rows);
  for (float** array : {&panel.column_sum, &panel.column_square})
    pieces.Take(*array, columns * panel.row_blocks);
  pieces.Take(panel.extremes, tiles * panel.row_blocks);
  return panel;
}

}  // namespace

CudaTensor PlanTensor(const QuantParams& params, int64_t rows, int64_t cols) {
  CudaTensor tensor;
  tensor.params = params;
  tensor.rows = rows;
  tensor.cols = cols;
  tensor.group = EffectiveGroupSize(cols, params.group_size);
  tensor.tiles = cols / tensor.group;
  tensor.groups = rows * tensor.tiles;
  tensor.aux = EffectiveAux(params, rows, cols);
  return tensor;
}

size_t TensorPartialsBytes(int64_t rows) {
  return std::max(kMaxStorePartials * sizeof(StorePartial),
                  2 * sizeof(double) * static_cast<size_t>(RowBlocks(rows)));
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

PackedRows PackedRowsOf(const CudaTensor& tensor) {
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
  return {begin / tensor.tiles, (end - 1) / tensor.tiles + 1};
}

}  // namespace sinq::kernels
