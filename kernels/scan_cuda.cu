// The first look at a panel's tiles on a CUDA device: README.md section 2, what is skipped and p0.
//
// Launch shape. As in statistics_cuda.cu a quad of threads takes a block of 32 rows of a tile: that
// makes one bit of each thread's word for each row. Then a warp for each tile puts the blocks
// together.
#include "kernels/balance_cuda.cuh"
#include "kernels/cuda_launch.h"
#include "kernels/cuda_weights.cuh"

namespace sinq::kernels {
namespace {

// ================================================================ device

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
__global__ void __launch_bounds__(kBalanceWarps* kWarpThreads) ScanKernel(BalanceArguments p) {
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
__global__ void __launch_bounds__(kWarpThreads) BeginKernel(BalanceArguments p) {
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

// ================================================================ host

}  // namespace

int LaunchScan(const BalanceArguments& p, CudaStream stream) {
  const LaunchShape rows = WarpPerUnit(p.tiles * WarpsPerTile(p.rows), kBalanceWarps, 0);
  const int error = ForDtype(p.weights.dtype, [&](auto dtype) {
    return ForGroup(p.group, [&](auto group) {
      return LaunchKernel(ScanKernel<dtype.value, group.value>, rows, stream, p);
    });
  });
  return FirstError(
      {error, LaunchKernel(BeginKernel, BlockPerUnit(p.tiles, kWarpThreads, 0), stream, p)});
}

}  // namespace sinq::kernels
