// Balancing on a CUDA device: README.md section 2, all tiles of a panel at once.
//
// A pass over the weights is one kernel (statistics_cuda.cu), and a round is two: the statistics,
// and the one here that ends the sums of each tile and decides whether it goes on. The host
// launches all rounds at once; warps of frozen tiles leave at their first instruction.
//
// Launch shape. One block ends the round of a tile, with a thread for the sum and one for the sum
// of squares of each column: fp64 additions in the order of the row blocks, sixteen loads ahead.
// They are a latency, not work (a tile of 5120 rows has chains of 160), which is why a caller
// should keep several tensors in flight.
#include "kernels/balance_cuda.cuh"
#include "kernels/cuda_launch.h"
#include "kernels/cuda_stored.cuh"

namespace sinq::kernels {
namespace {

constexpr float kTauEpsilon = 1e-6f;
constexpr float kImbalanceFloor = 1e-12f;
constexpr int kRounds = 16;  // k = 0 .. 15

// ================================================================ device

// Shared memory of the block that ends a round of one tile: 2 * group threads.
struct RoundBuffers {
  double sum[2][kMaxCudaGroup];  // column sums, sums of squares
  float smallest[kWarpThreads], largest[kWarpThreads];  // by warp
  TileState state;
};

// One column's sums over the row blocks, in order.
__device__ double ColumnSum(const float* partials, int64_t row_blocks, int group, int column) {
  double sum = 0;
#pragma unroll 16
  for (int64_t b = 0; b < row_blocks; ++b)
    sum = Add(sum, static_cast<double>(partials[b * group + column]));
  return sum;
}

__device__ float ColumnStd(double sum, double square, int64_t rows) {
  const double n = static_cast<double>(rows);
  const double variance = Div(Sub(square, Div(Mul(sum, sum), n)), Sub(n, 1.0));
  return __double2float_rn(SquareRoot(variance < 0 ? 0.0 : variance));
}

// Extremes over the block's threads; valid in all of them. `buffers` is free to be used again after
// the next barrier.
struct Extremes {
  float smallest, largest;
};
__device__ Extremes BlockExtremesOf(Extremes mine, RoundBuffers& buffers) {
  mine = {WarpMin(mine.smallest), WarpMax(mine.largest)};
  if (LaneInWarp() == 0) {
    buffers.smallest[WarpInBlock()] = mine.smallest;
    buffers.largest[WarpInBlock()] = mine.largest;
  }
  BlockBarrier();
  for (int warp = 0; warp < static_cast<int>(blockDim.x) / kWarpThreads; ++warp) {
    mine.smallest = Min(mine.smallest, buffers.smallest[warp]);
    mine.largest = Max(mine.largest, buffers.largest[warp]);
  }
  return mine;
}

// By one thread: the power of two nearest to 1/RMS (section 2, step 1). Returns 2^(p-p0).
__device__ float ChooseExponent(const double* squares, int group, int64_t rows, TileState& state) {
  double q = 0;
  for (int k = 0; k < group; ++k) q = Add(q, squares[k]);
  q = Div(q, Mul(static_cast<double>(rows), static_cast<double>(group)));
  const int first = state.exponent;
  state.exponent =
      ClampInt(first - FloorHalf(FloorLog2(q) + 1), -kMaxExponent, kMaxExponent);
  state.row_correction = PowerOfTwo(state.exponent - first);
  return state.row_correction;
}

// By one thread: what this round's imbalance means for the tile.
__device__ void Decide(const Extremes& extremes, int round, TileState& state) {
  const float imbalance =
      Div(extremes.largest, Max(extremes.smallest, kImbalanceFloor));
  if (round == 0) {
    state.tau = Add(Clamp(extremes.smallest, kStdFloor, kStdCeiling), kTauEpsilon);
    state.imbalance_before = state.imbalance_after = imbalance;
    return;
  }
  ++state.rounds;
  state.running = imbalance <= state.imbalance_after;
  if (!state.running) return;
  state.imbalance_after = imbalance;
  state.best_round = round;
}

// Extremes of the row stds, each thread some row blocks.
__device__ Extremes RowExtremes(const BlockExtremes* blocks, int64_t row_blocks) {
  Extremes mine{INFINITY, 0};
  for (int64_t b = ThreadInBlock(); b < row_blocks; b += blockDim.x) {
    mine.smallest = Min(mine.smallest, blocks[b].smallest);
    mine.largest = Max(mine.largest, blocks[b].largest);
  }
  return mine;
}

// The round of one running tile, by one block.
__device__ void EndRound(const BalanceArguments& p, int64_t tile, RoundBuffers& buffers) {
  const int thread = ThreadInBlock(), group = p.group;
  const int64_t row_blocks = p.panel.row_blocks, base = tile * row_blocks;
  const int column = thread % group, which = thread / group;
  const float* partials = which == 0 ? p.panel.column_sum : p.panel.column_square;
  buffers.sum[which][column] = ColumnSum(partials + base * group, row_blocks, group, column);
  if (thread == 0) buffers.state = p.panel.states[tile];
  BlockBarrier();
  if (p.round == 0 && p.scale_free && thread == 0)
    ChooseExponent(buffers.sum[1], group, p.rows, buffers.state);
  BlockBarrier();
  const float correction = p.round == 0 ? buffers.state.row_correction : 1.0f;
  Extremes mine = RowExtremes(p.panel.extremes + base, row_blocks);
  mine = {Mul(mine.smallest, correction), Mul(mine.largest, correction)};
  const float std =
      Mul(ColumnStd(buffers.sum[0][column], buffers.sum[1][column], p.rows), correction);
  const Extremes all =
      BlockExtremesOf({Min(mine.smallest, std), Max(mine.largest, std)}, buffers);
  if (thread == 0) {
    Decide(all, p.round, buffers.state);
    p.panel.states[tile] = buffers.state;
  }
  BlockBarrier();
  if (which != 0 || !buffers.state.running || p.round + 1 == kRounds) return;
  const int64_t at = tile * group + column;
  const float t = Updated(p.panel.t[p.round % 2][at], std, buffers.state.tau);
  p.panel.t[(p.round + 1) % 2][at] = t;
  p.panel.factor[at] = Mul(Div(1.0f, t), PowerOfTwo(buffers.state.exponent));
}

__global__ void __launch_bounds__(2 * kMaxCudaGroup) EndRoundKernel(BalanceArguments p) {
  RoundBuffers& buffers = *SharedMemory<RoundBuffers>();
  for (int64_t tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
    const bool running = p.panel.states[tile].running;
    BlockBarrier();  // all have read it, and nobody uses the buffers of the tile before
    if (running) EndRound(p, tile, buffers);
  }
}

// ---------------------------------------------------------------- the result

// t, the factors of the fit, the outcome.
__global__ void __launch_bounds__(kWarpThreads) FinishKernel(BalanceArguments p) {
  for (int64_t tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
    const TileState state = p.panel.states[tile];
    for (int k = LaneInWarp(); k < p.group; k += kWarpThreads) {
      const int64_t at = tile * p.group + k;
      float t = state.best_round == 0 ? 1.0f : p.panel.t[state.best_round % 2][at];
      t = RoundStored(t, p.column_storage);
      const float inverse = Div(1.0f, t);
      p.column[at] = t;
      if (!p.scale_free) p.inverse_column[at] = inverse;
      p.panel.factor[at] = Mul(inverse, PowerOfTwo(state.exponent));
    }
    if (LaneInWarp() != 0) continue;
    p.outcomes[tile] = {state.bad_row, state.exponent, state.rounds, state.imbalance_before,
                        state.imbalance_after};
  }
}

// ================================================================ host

int LaunchRounds(BalanceArguments p, CudaStream stream) {
  const LaunchShape end = BlockPerUnit(p.tiles, 2 * p.group, sizeof(RoundBuffers));
  int error = LaunchScan(p, stream);
  const int rounds = p.balances && p.rows > 1 ? kRounds : 0;
  for (int k = 0; k < rounds && error == 0; ++k) {
    p.round = k;
    error =
        FirstError({LaunchStatistics(p, stream), LaunchKernel(EndRoundKernel, end, stream, p)});
  }
  const LaunchShape tiles = BlockPerUnit(p.tiles, kWarpThreads, 0);
  return FirstError({error, LaunchKernel(FinishKernel, tiles, stream, p)});
}

}  // namespace

int LaunchBalance(const CudaTensor& tensor, const DeviceWeights& weights, const TilePanel& panel,
                  const DeviceArrays& arrays, void* workspace, CudaStream stream) {
  BalanceArguments p{};
  p.weights = weights;
  p.panel = LayOutPanel(tensor, panel.tiles, workspace);
  p.outcomes = arrays.outcomes + panel.first_tile;
  p.column = arrays.column + panel.first_tile * tensor.group;
  p.inverse_column = arrays.inverse_column + panel.first_tile * tensor.group;
  p.rows = tensor.tile_rows;
  p.first_tile = panel.first_tile;
  p.tiles = panel.tiles;
  p.tiles_per_band = tensor.groups_per_row;
  p.column_storage = tensor.column_storage;
  p.group = tensor.group;
  p.scale_free = tensor.params.profile == Profile::kDefault;
  p.balances = tensor.balances;
  p.searches = p.scale_free && !p.balances && !tensor.scales_groups &&
               tensor.params.method != Method::kRtn;
  return LaunchRounds(p, stream);
}

}  // namespace sinq::kernels
