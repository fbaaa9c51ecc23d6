// Standard deviations of a panel's tiles in one round of balancing on a CUDA device: README.md
// sections 1 and 2.
//
// Launch shape. A quad of threads takes one block of 32 rows of a tile, because that is what
// section 1 adds up in fp32 from top to bottom: its column sums stay in registers (2 * g / 4 of
// them). A thread holds 4 of the 16 lanes, so a row is read in sectors of 32 bytes, each used once,
// and the four threads only meet for the tree over the lanes: they lay their lanes down in shared
// memory every four rows, and then each adds up one row. (Shuffles would take 16 instructions for
// each row and thread, this takes 4.) A warp holds eight such blocks of the same tile, so that
// tiles freeze by whole warps. Strides of 20 and 80 words keep both directions free of bank
// conflicts, and so do those of 33 words for the eight factors that a warp reads at once.
// Instructions per weight and pass: unpack 1, multiply 2, sums 4, the tree and the row's deviation
// 1, loads and addresses 0.7. The statistics of a round read 2 bytes per weight (BF16) and about a
// fifth of that again for r, row stds and partial sums; a panel of 16 to 24 MiB of weights stays in
// the L2 cache of an H100 from round to round.
// nvcc 13.0 for sm_90, BF16: 128 registers at g = 64, so that 16 warps share a multiprocessor, and
// 168 at g = 128; nothing is spilled.
#include "kernels/balance_cuda.cuh"
#include "kernels/cuda_launch.h"
#include "kernels/cuda_weights.cuh"

namespace sinq::kernels {
namespace {

// ================================================================ device

constexpr int kRowsAtOnce = kQuadThreads;  // one to add up for each thread
constexpr int kRowWords = 20, kQuadWords = kRowsAtOnce * kRowWords;  // 16 lanes and padding

// Shared memory of one warp.
struct StatisticsBuffers {
  float sum[kQuadsPerWarp * kQuadWords];     // lanes of kRowsAtOnce rows
  float square[kQuadsPerWarp * kQuadWords];
  float factor[kQuadsPerWarp][kRowsPerBlock + 1];  // 1/r, and padding
};
static_assert(kBalanceWarps * sizeof(StatisticsBuffers) <= kMaxSharedBytes);

// This round's r of the block's rows from the last one's, and 1/r.
__device__ void UpdateRows(const BalanceArguments& p, const QuadBlock& block,
                           const TileState& state, float* factor) {
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
__device__ void StoreColumns(const BalanceArguments& p, const QuadBlock& block,
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
__device__ void BlockStatistics(const BalanceArguments& p, const QuadBlock& block,
                                const TileState& state, StatisticsBuffers& buffers) {
  float* factor = buffers.factor[block.quad];
  float* lane_sum = buffers.sum + block.quad * kQuadWords;
  float* lane_square = buffers.square + block.quad * kQuadWords;
  if (kHasRows) UpdateRows(p, block, state, factor);
  WarpBarrier();
  float u[kGroup / 16][4];
#pragma unroll
  for (int c = 0; c < kGroup / 16; ++c) {
    const Four four =
        LoadFour(p.panel.factor + block.tile * kGroup + 16 * c + 4 * block.member);
    for (int i = 0; i < 4; ++i) u[c][i] = four.value[i];
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
__global__ void __launch_bounds__(kBalanceWarps* kWarpThreads)
    StatisticsKernel(BalanceArguments p) {
  StatisticsBuffers& buffers = SharedMemory<StatisticsBuffers>()[WarpInBlock()];
  const int64_t warps = p.tiles * WarpsPerTile(p.rows);
  for (int64_t warp = GlobalWarp(); warp < warps; warp += GlobalWarps()) {
    const QuadBlock block = QuadBlockOf(warp, p.rows);
    const TileState state = p.panel.states[block.tile];
    if (!state.running) continue;
    BlockStatistics<kDtype, kGroup, kHasRows>(p, block, state, buffers);
  }
}

// ================================================================ host

}  // namespace

int LaunchStatistics(const BalanceArguments& p, CudaStream stream) {
  const LaunchShape shape =
      WarpPerUnit(p.tiles * WarpsPerTile(p.rows), kBalanceWarps, sizeof(StatisticsBuffers));
  return ForDtype(p.weights.dtype, [&](auto dtype) {
    return ForGroup(p.group, [&](auto group) {
      const auto kernel = p.round == 0 ? StatisticsKernel<dtype.value, group.value, false>
                                       : StatisticsKernel<dtype.value, group.value, true>;
      return LaunchKernel(kernel, shape, stream, p);
    });
  });
}

}  // namespace sinq::kernels
