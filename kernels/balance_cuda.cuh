// What the kernels that balance a panel share: their arguments, which rows a quad of threads works
// on, and the damped step of README.md section 2.
#ifndef SINQ_KERNELS_BALANCE_CUDA_CUH_
#define SINQ_KERNELS_BALANCE_CUDA_CUH_

#include "kernels/cuda_panel.h"
#include "kernels/cuda_primitives.cuh"
#include "kernels/cuda_steps.h"

namespace sinq::kernels {

inline constexpr float kStdFloor = 1e-3f, kStdCeiling = 1e3f;
inline constexpr float kLowestStep = 0.7f, kHighestStep = 2.0f;
inline constexpr float kLowestScale = 0.74081822f, kHighestScale = 22026.466f;
inline constexpr int kMaxExponent = 126;  // 2^p stays a normal number
inline constexpr int kBalanceWarps = 4;   // of a block that reads weights

struct BalanceArguments {
  DeviceWeights weights;
  PanelArrays panel;
  DeviceTileOutcome* outcomes;  // of the panel's first tile
  float* column;                // of the panel's first column
  float* inverse_column;
  int64_t rows;  // of a tile
  int64_t first_tile, tiles, tiles_per_band;
  AuxStorage column_storage;
  int group;
  int round;
  bool scale_free;  // profile default
  bool balances;
  bool searches;  // a tile that is not balanced is brought near 1 for the search of its scales
};

// The quad's block of rows of a tile. `rows` is 0 where the last warp of a tile has quads to spare.
struct QuadBlock {
  int64_t tile, row_block;
  int64_t first_row;  // within the tile
  int rows;
  int quad, member;  // within the warp, within the quad
};

// The first element of a tile of the panel.
struct TileOrigin {
  int64_t row, col;
};
__device__ inline TileOrigin OriginOf(const BalanceArguments& p, int64_t tile) {
  const int64_t index = p.first_tile + tile, band = Quotient(index, p.tiles_per_band);
  return {band * p.rows, (index - band * p.tiles_per_band) * p.group};
}

__device__ inline QuadBlock QuadBlockOf(int64_t warp, int64_t rows) {
  const int64_t warps_per_tile = WarpsPerTile(rows);
  QuadBlock block;
  block.tile = Quotient(warp, warps_per_tile);
  block.quad = LaneInWarp() / kQuadThreads;
  block.member = LaneInWarp() % kQuadThreads;
  block.row_block = (warp - block.tile * warps_per_tile) * kQuadsPerWarp + block.quad;
  block.first_row = block.row_block * kRowsPerBlock;
  const int64_t left = rows - block.first_row;
  block.rows = static_cast<int>(left < 0 ? 0 : left < kRowsPerBlock ? left : kRowsPerBlock);
  return block;
}

// A scale after a round with deviation `std`.
__device__ inline float Updated(float scale, float std, float tau) {
  const float step =
      Clamp(Div(Clamp(std, kStdFloor, kStdCeiling), tau), kLowestStep, kHighestStep);
  return Clamp(Mul(scale, step), kLowestScale, kHighestScale);
}

// The first look at the tiles (scan_cuda.cu): non-finite weights, which tiles are balanced, and the
// power of two that their statistics begin with.
[[nodiscard]] int LaunchScan(const BalanceArguments& arguments, CudaStream stream);
// Row stds and partial column sums of the running tiles in round `arguments.round`
// (statistics_cuda.cu).
[[nodiscard]] int LaunchStatistics(const BalanceArguments& arguments, CudaStream stream);

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_BALANCE_CUDA_CUH_
