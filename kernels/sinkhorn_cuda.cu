// Balancing on a CUDA device: README.md section 2, all tiles of a panel at once.
//
// A pass over the weights is one kernel, and a round is two: statistics, and for each tile the end
// of its sums with the decision whether to go on. The host launches all rounds at once; warps of
// frozen tiles leave at their first instruction.
//
// Launch shape. A quad of threads takes one block of 32 rows of a tile, because that is what
// section 1 adds up in fp32 from top to bottom: its column sums stay in registers (2 * g / 4 of
// them). A thread holds 4 of the 16 lanes, so a row is read in sectors of 32 bytes, each used once,
// and the four threads only meet for the tree over the lanes: they lay their lanes down in shared
// memory every four rows, and then each adds up one row. (Shuffles would take 16 instructions for
// each row and thread, this takes 4.) A warp holds eight such blocks of the same tile, so that
// tiles freeze by whole warps. Strides of 20 and 80 words keep both directions free of bank
// conflicts.
// Instructions per weight and pass: unpack 1, multiply 2, sums 4, the tree and the row's deviation
// 1, loads and addresses 0.7. The statistics of a round read 2 bytes per weight (BF16) and about a
// fifth of that again for r, row stds and partial sums; a panel of 16 to 24 MiB of weights stays in
// the L2 cache of an H100 from round to round.
#include "kernels/cuda_launch.h"
#include "kernels/cuda_panel.h"
#include "kernels/cuda_primitives.cuh"
#include "kernels/cuda_steps.h"
#include "kernels/cuda_stored.cuh"
#include "kernels/cuda_weights.cuh"

namespace sinq::kernels {
namespace {

constexpr float kStdFloor = 1e-3f, kStdCeiling = 1e3f, kTauEpsilon = 1e-6f;
constexpr float kImbalanceFloor = 1e-12f;
constexpr float kLowestStep = 0.7f, kHighestStep = 2.0f;
constexpr float kLowestScale = 0.74081822f, kHighestScale = 22026.466f;
constexpr int kMaxExponent = 126;  // 2^p stays a normal number
constexpr int kRounds = 16;        // k = 0 .. 15
constexpr int kWarpsPerBlock = 4;

struct BalanceParams {
  DeviceWeights weights;
  PanelArrays panel;
  DeviceTileOutcome* outcomes;  // of the panel's first tile
  float* column;                // of the panel's first column
  float* inverse_column;
  int64_t rows;  // of a tile
  int64_t first_tile, tiles, tiles_per_band;
  AuxStorage aux;
  int group;
  int round;
  bool scale_free;  // profile default
  bool balances;
  bool searches;  // a tile that is not balanced is brought near 1 for the search of its scales
  bool rounds_columns;
};

// ================================================================ device

// ---------------------------------------------------------------- what a quad works on

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
__device__ TileOrigin OriginOf(const BalanceParams& p, int64_t tile) {
  const int64_t index = p.first_tile + tile, band = Quotient(index, p.tiles_per_band);
  return {band * p.rows, (index - band * p.tiles_per_band) * p.group};
}

__device__ QuadBlock QuadBlockOf(int64_t warp, int64_t rows) {
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

// ---------------------------------------------------------------- the first look

// One bit for each of the 32 rows of a block.
struct RowBits {
  unsigned varied = 0;    // this thread saw a value unlike the row's first
  unsigned not_zero = 0;  // the row's first value is not 0
  unsigned bad = 0;       // this thread saw a NaN or infinity
  unsigned largest = 0;   // bits of the largest magnitude in all rows
};

template <WeightDtype kDtype, int kGroup>
__device__ void ScanRow(const WeightCursor<kDtype>& weights, int row, int member, RowBits& seen) {
  const unsigned first = __float_as_uint(weights.Values(weights.Raw(row, 0)).value[0]);
  unsigned largest = 0, unlike = 0;
  for (int col = 4 * member; col < kGroup; col += 16) {
    const Four four = weights.Values(weights.Raw(row, col));
    for (const float value : four.value) {
      const unsigned bits = __float_as_uint(value), magnitude = bits & 0x7fffffffu;
      largest = largest > magnitude ? largest : magnitude;
      unlike |= bits ^ first;
    }
  }
  seen.varied |= static_cast<unsigned>(unlike != 0) << row;
  seen.not_zero |= static_cast<unsigned>((first & 0x7fffffffu) != 0) << row;
  seen.bad |= static_cast<unsigned>(largest >= 0x7f800000u) << row;
  seen.largest = seen.largest > largest ? seen.largest : largest;
}

template <WeightDtype kDtype, int kGroup>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarpThreads) ScanKernel(BalanceParams p) {
  const int64_t warps = p.tiles * WarpsPerTile(p.rows);
  for (int64_t warp = GlobalWarp(); warp < warps; warp += GlobalWarps()) {
    const QuadBlock block = QuadBlockOf(warp, p.rows);
    RowBits seen;
    if (block.rows > 0) {
      const TileOrigin origin = OriginOf(p, block.tile);
      const WeightCursor<kDtype> weights(p.weights, origin.row + block.first_row, origin.col);
      for (int row = 0; row < block.rows; ++row)
        ScanRow<kDtype, kGroup>(weights, row, block.member, seen);
    }
    const unsigned varied = QuadOr(seen.varied), bad = QuadOr(seen.bad);
    const unsigned largest = QuadMax(seen.largest);
    if (block.rows == 0 || block.member != 0) continue;
    BlockScan& scan = p.panel.scans[block.tile * p.panel.row_blocks + block.row_block];
    scan.largest_bits = largest;
    scan.has_constant_group = ~varied & seen.not_zero;
    scan.bad_row = __ffs(static_cast<int>(bad)) - 1;
  }
}

// All row blocks of a tile, by one warp; the result is valid in all lanes.
struct TileScan {
  float largest;
  bool has_constant_group;
  int64_t bad_row;
};

__device__ TileScan CollectScans(const BlockScan* scans, int64_t row_blocks) {
  unsigned largest = 0, constant = 0;
  int64_t bad_row = INT64_MAX;
  for (int64_t b = LaneInWarp(); b < row_blocks; b += kWarpThreads) {
    largest = largest > scans[b].largest_bits ? largest : scans[b].largest_bits;
    constant |= scans[b].has_constant_group;
    const int64_t row = b * kRowsPerBlock + scans[b].bad_row;
    if (scans[b].bad_row >= 0 && row < bad_row) bad_row = row;
  }
  for (int distance = kWarpThreads / 2; distance > 0; distance /= 2) {
    const unsigned other = __shfl_xor_sync(kWholeWarp, largest, distance);
    largest = largest > other ? largest : other;
    constant |= __shfl_xor_sync(kWholeWarp, constant, distance);
    const int64_t row = __shfl_xor_sync(kWholeWarp, bad_row, distance);
    bad_row = row < bad_row ? row : bad_row;
  }
  return {__uint_as_float(largest), constant != 0, bad_row == INT64_MAX ? -1 : bad_row};
}

// Decides whether a tile is balanced at all, and with which power of two its statistics begin.
__global__ void __launch_bounds__(kWarpThreads) BeginKernel(BalanceParams p) {
  for (int64_t tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
    const TileScan scan =
        CollectScans(p.panel.scans + tile * p.panel.row_blocks, p.panel.row_blocks);
    TileState state;
    if (scan.bad_row >= 0) state.bad_row = OriginOf(p, tile).row + scan.bad_row;
    state.running = p.balances && p.rows > 1 && scan.bad_row < 0;
    if (p.scale_free && (scan.has_constant_group || scan.largest == 0)) state.running = 0;
    if ((p.scale_free && state.running) || (p.searches && scan.largest > 0))
      state.exponent = ClampInt(-FloorLog2(scan.largest), -kMaxExponent, kMaxExponent);
    if (LaneInWarp() == 0) p.panel.states[tile] = state;
    if (!p.balances) continue;
    for (int k = LaneInWarp(); k < p.group; k += kWarpThreads) {
      p.panel.t[0][tile * p.group + k] = 1.0f;
      p.panel.factor[tile * p.group + k] = PowerOfTwo(state.exponent);
    }
  }
}

// ---------------------------------------------------------------- statistics

__device__ float Updated(float scale, float std, float tau) {
  const float step =
      Clamp(Div(Clamp(std, kStdFloor, kStdCeiling), tau), kLowestStep, kHighestStep);
  return Clamp(Mul(scale, step), kLowestScale, kHighestScale);
}

constexpr int kRowsAtOnce = kQuadThreads;  // one to add up for each thread
constexpr int kRowWords = 20, kQuadWords = kRowsAtOnce * kRowWords;  // 16 lanes and padding

// Shared memory of one warp.
struct StatisticsBuffers {
  float sum[kQuadsPerWarp * kQuadWords];     // lanes of kRowsAtOnce rows
  float square[kQuadsPerWarp * kQuadWords];
  float factor[kQuadsPerWarp][kRowsPerBlock];  // 1/r
};
static_assert(kWarpsPerBlock * sizeof(StatisticsBuffers) <= kMaxSharedBytes);

// This round's r of the block's rows from the last one's, and 1/r.
__device__ void UpdateRows(const BalanceParams& p, const QuadBlock& block, const TileState& state,
                           float* factor) {
  const int64_t base = block.tile * p.panel.padded_rows + block.first_row;
  for (int row = block.member; row < block.rows; row += kQuadThreads) {
    const float before = p.round == 1 ? 1.0f : p.panel.r[(p.round - 1) % 2][base + row];
    const float correction = p.round == 1 ? state.row_correction : 1.0f;
    const float std = Mul(p.panel.row_std[base + row], correction);
    const float r = Updated(before, std, state.tau);
    p.panel.r[p.round % 2][base + row] = r;
    factor[row] = Div(1.0f, r);
  }
}

template <int kGroup>
struct ColumnSums {
  float sum[kGroup / 16][4] = {};
  float square[kGroup / 16][4] = {};
};

// Adds a row to the column sums and leaves its lanes in shared memory.
template <WeightDtype kDtype, int kGroup, bool kHasRows>
__device__ void AddRow(const WeightCursor<kDtype>& weights,
                       const RawFour<kDtype> (&raw)[kGroup / 16],
                       const float (&u)[kGroup / 16][4], float v, ColumnSums<kGroup>& columns,
                       float* lane_sum, float* lane_square) {
  float sum[4] = {}, square[4] = {};
#pragma unroll
  for (int c = 0; c < kGroup / 16; ++c) {
    const Four w = weights.Values(raw[c]);
    for (int i = 0; i < 4; ++i) {
      float x = Mul(w.value[i], u[c][i]);
      if constexpr (kHasRows) x = Mul(x, v);
      sum[i] = Add(sum[i], x);
      square[i] = Fma(x, x, square[i]);
      columns.sum[c][i] = Add(columns.sum[c][i], x);
      columns.square[c][i] = Fma(x, x, columns.square[c][i]);
    }
  }
  *reinterpret_cast<float4*>(lane_sum) = make_float4(sum[0], sum[1], sum[2], sum[3]);
  *reinterpret_cast<float4*>(lane_square) =
      make_float4(square[0], square[1], square[2], square[3]);
}

// The tree over 16 lanes in memory.
__device__ float LaneTree(const float* lanes) {
  float sum[8];
  for (int l = 0; l < 8; ++l) sum[l] = Add(lanes[l], lanes[l + 8]);
  for (int l = 0; l < 4; ++l) sum[l] = Add(sum[l], sum[l + 4]);
  return Add(Add(sum[0], sum[2]), Add(sum[1], sum[3]));
}

template <int kGroup>
__device__ float RowStd(const float* lane_sum, const float* lane_square) {
  const float sum = LaneTree(lane_sum), square = LaneTree(lane_square);
  const float mean_square = Mul(Mul(sum, sum), 1.0f / kGroup);  // a power of two: exact
  const float variance = Div(Sub(square, mean_square), static_cast<float>(kGroup - 1));
  return SquareRoot(Max(variance, 0.0f));
}

// Rows whose weights are fetched before the first is used: as many as fit 32 registers of a thread,
// beside the 2 * g / 4 of its column sums.
template <WeightDtype kDtype, int kGroup>
constexpr int RowsInFlight() {
  constexpr int kRows = 128 / static_cast<int>(kGroup / 16 * sizeof(RawFour<kDtype>));
  return kRows < kRowsAtOnce ? kRows : kRowsAtOnce;
}

template <WeightDtype kDtype, int kGroup, bool kHasRows>
__device__ void AddRows(const WeightCursor<kDtype>& weights, const QuadBlock& block, int first,
                        const float (&u)[kGroup / 16][4], const float* factor,
                        ColumnSums<kGroup>& columns, float* lane_sum, float* lane_square) {
  constexpr int kInFlight = RowsInFlight<kDtype, kGroup>();
#pragma unroll
  for (int ahead = 0; ahead < kRowsAtOnce; ahead += kInFlight) {
    RawFour<kDtype> raw[kInFlight][kGroup / 16];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (first + ahead + i >= block.rows) continue;
#pragma unroll
      for (int c = 0; c < kGroup / 16; ++c)
        raw[i][c] = weights.Raw(first + ahead + i, 16 * c + 4 * block.member);
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int row = first + ahead + i;
      if (row >= block.rows) continue;
      const int at = (ahead + i) * kRowWords + 4 * block.member;
      AddRow<kDtype, kGroup, kHasRows>(weights, raw[i], u, kHasRows ? factor[row] : 1.0f, columns,
                                       lane_sum + at, lane_square + at);
    }
  }
}

template <int kGroup>
__device__ void StoreColumns(const BalanceParams& p, const QuadBlock& block,
                             const ColumnSums<kGroup>& columns) {
  const int64_t base = (block.tile * p.panel.row_blocks + block.row_block) * kGroup;
#pragma unroll
  for (int c = 0; c < kGroup / 16; ++c) {
    const int64_t at = base + 16 * c + 4 * block.member;
    const auto& sum = columns.sum[c];
    const auto& square = columns.square[c];
    *reinterpret_cast<float4*>(p.panel.column_sum + at) =
        make_float4(sum[0], sum[1], sum[2], sum[3]);
    *reinterpret_cast<float4*>(p.panel.column_square + at) =
        make_float4(square[0], square[1], square[2], square[3]);
  }
}

// kHasRows: rounds from 1 on; else the untouched tile times a power of two.
template <WeightDtype kDtype, int kGroup, bool kHasRows>
__device__ void BlockStatistics(const BalanceParams& p, const QuadBlock& block,
                                const TileState& state, StatisticsBuffers& buffers) {
  float* factor = buffers.factor[block.quad];
  float* lane_sum = buffers.sum + block.quad * kQuadWords;
  float* lane_square = buffers.square + block.quad * kQuadWords;
  if (kHasRows) UpdateRows(p, block, state, factor);
  WarpBarrier();
  float u[kGroup / 16][4];
#pragma unroll
  for (int c = 0; c < kGroup / 16; ++c) {
    for (int i = 0; i < 4; ++i)
      u[c][i] = p.panel.factor[block.tile * kGroup + 16 * c + 4 * block.member + i];
  }
  // Quads without rows look at the tile's first ones and use none of them.
  const TileOrigin origin = OriginOf(p, block.tile);
  const WeightCursor<kDtype> weights(
      p.weights, origin.row + (block.rows > 0 ? block.first_row : 0), origin.col);
  float* row_std = p.panel.row_std + block.tile * p.panel.padded_rows + block.first_row;
  ColumnSums<kGroup> columns;
  float smallest = INFINITY, largest = 0;
#pragma unroll 1
  for (int first = 0; first < kRowsPerBlock; first += kRowsAtOnce) {
    AddRows<kDtype, kGroup, kHasRows>(weights, block, first, u, factor, columns, lane_sum,
                                      lane_square);
    WarpBarrier();
    if (first + block.member < block.rows) {
      const int at = block.member * kRowWords;
      const float std = RowStd<kGroup>(lane_sum + at, lane_square + at);
      row_std[first + block.member] = std;
      smallest = Min(smallest, std);
      largest = Max(largest, std);
    }
    WarpBarrier();
  }
  smallest = QuadMin(smallest);
  largest = QuadMax(largest);
  if (block.rows == 0) return;
  StoreColumns<kGroup>(p, block, columns);
  if (block.member == 0)
    p.panel.extremes[block.tile * p.panel.row_blocks + block.row_block] = {smallest, largest};
}

template <WeightDtype kDtype, int kGroup, bool kHasRows>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarpThreads)
    StatisticsKernel(BalanceParams p) {
  StatisticsBuffers& buffers = SharedMemory<StatisticsBuffers>()[WarpInBlock()];
  const int64_t warps = p.tiles * WarpsPerTile(p.rows);
  for (int64_t warp = GlobalWarp(); warp < warps; warp += GlobalWarps()) {
    const QuadBlock block = QuadBlockOf(warp, p.rows);
    const TileState state = p.panel.states[block.tile];
    if (!state.running) continue;
    BlockStatistics<kDtype, kGroup, kHasRows>(p, block, state, buffers);
  }
}

// ---------------------------------------------------------------- the end of a round

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
__device__ void EndRound(const BalanceParams& p, int64_t tile, RoundBuffers& buffers) {
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

__global__ void __launch_bounds__(2 * kMaxCudaGroup) EndRoundKernel(BalanceParams p) {
  RoundBuffers& buffers = *SharedMemory<RoundBuffers>();
  for (int64_t tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
    const bool running = p.panel.states[tile].running;
    BlockBarrier();  // all have read it, and nobody uses the buffers of the tile before
    if (running) EndRound(p, tile, buffers);
  }
}

// ---------------------------------------------------------------- the result

// t, the factors of the fit, the outcome.
__global__ void __launch_bounds__(kWarpThreads) FinishKernel(BalanceParams p) {
  for (int64_t tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
    const TileState state = p.panel.states[tile];
    for (int k = LaneInWarp(); k < p.group; k += kWarpThreads) {
      const int64_t at = tile * p.group + k;
      float t = state.best_round == 0 ? 1.0f : p.panel.t[state.best_round % 2][at];
      if (p.rounds_columns) t = RoundStored(t, p.aux);
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

struct Shapes {
  LaunchShape rows, statistics, round, tile;
};

Shapes ShapesOf(const BalanceParams& p) {
  const int64_t warps = p.tiles * WarpsPerTile(p.rows);
  return {WarpPerUnit(warps, kWarpsPerBlock, 0),
          WarpPerUnit(warps, kWarpsPerBlock, sizeof(StatisticsBuffers)),
          BlockPerUnit(p.tiles, 2 * p.group, sizeof(RoundBuffers)),
          BlockPerUnit(p.tiles, kWarpThreads, 0)};
}

template <WeightDtype kDtype, int kGroup>
int LaunchRounds(BalanceParams p, CudaStream stream) {
  const Shapes shapes = ShapesOf(p);
  int error = FirstError({LaunchKernel(ScanKernel<kDtype, kGroup>, shapes.rows, stream, p),
                          LaunchKernel(BeginKernel, shapes.tile, stream, p)});
  const int rounds = p.balances && p.rows > 1 ? kRounds : 0;
  for (int k = 0; k < rounds && error == 0; ++k) {
    p.round = k;
    const auto statistics = k == 0 ? StatisticsKernel<kDtype, kGroup, false>
                                   : StatisticsKernel<kDtype, kGroup, true>;
    error = FirstError({LaunchKernel(statistics, shapes.statistics, stream, p),
                        LaunchKernel(EndRoundKernel, shapes.round, stream, p)});
  }
  return FirstError({error, LaunchKernel(FinishKernel, shapes.tile, stream, p)});
}

}  // namespace

int LaunchBalance(const CudaTensor& tensor, const DeviceWeights& weights, const TilePanel& panel,
                  const DeviceArrays& arrays, void* workspace, CudaStream stream) {
  BalanceParams p{};
  p.weights = weights;
  p.panel = LayOutPanel(tensor, panel.tiles, workspace);
  p.outcomes = arrays.outcomes + panel.first_tile;
  p.column = arrays.column + panel.first_tile * tensor.group;
  p.inverse_column = arrays.inverse_column + panel.first_tile * tensor.group;
  p.rows = tensor.tile_rows;
  p.first_tile = panel.first_tile;
  p.tiles = panel.tiles;
  p.tiles_per_band = tensor.groups_per_row;
  p.aux = tensor.aux;
  p.group = tensor.group;
  p.scale_free = tensor.params.profile == Profile::kDefault;
  p.balances = tensor.balances;
  p.searches = p.scale_free && !p.balances && tensor.params.method != Method::kRtn;
  p.rounds_columns = tensor.rounds_columns;
  return ForDtype(weights.dtype, [&](auto dtype) {
    return ForGroup(tensor.group, [&](auto group) {
      return LaunchRounds<dtype.value, group.value>(p, stream);
    });
  });
}

}  // namespace sinq::kernels
