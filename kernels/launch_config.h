// How many blocks and threads each CUDA step takes: plain host code, tested without a device.
// Every kernel walks its units with the grid as stride, so a grid that is capped stays correct.
#ifndef SINQ_KERNELS_LAUNCH_CONFIG_H_
#define SINQ_KERNELS_LAUNCH_CONFIG_H_

#include <cstddef>
#include <cstdint>

namespace sinq::kernels {

struct LaunchShape {
  unsigned grid = 0;  // blocks, in x
  unsigned block = 0;
  unsigned shared_bytes = 0;
};

inline constexpr int64_t kMaxGrid = 0x7fffffff;     // of x, compute capability 3.0 on
inline constexpr size_t kMaxSharedBytes = 48 << 10;  // without opting in, on every architecture
inline constexpr int kWarpThreads = 32;
inline constexpr int kMaxCudaGroup = 128;  // values in a group
// Four neighbouring threads work on one group of weights: thread q of them takes the lanes 4q ..
// 4q + 3 of the 16 that README.md section 1 adds up, which are neighbouring columns.
inline constexpr int kQuadThreads = 4;
inline constexpr int kQuadsPerWarp = kWarpThreads / kQuadThreads;

// Blocks of rows that README.md section 1 sums in fp32.
inline constexpr int64_t kRowsPerBlock = 32;
constexpr int64_t RowBlocks(int64_t rows) { return (rows + kRowsPerBlock - 1) / kRowsPerBlock; }

// One warp for each of `warps` units, in blocks of `warps_per_block`.
LaunchShape WarpPerUnit(int64_t warps, int warps_per_block, size_t shared_bytes_per_warp);
// One thread for each of `threads` units, in blocks of `threads_per_block`.
LaunchShape ThreadPerUnit(int64_t threads, int threads_per_block);
// One block for each of `blocks` units.
LaunchShape BlockPerUnit(int64_t blocks, int threads_per_block, size_t shared_bytes);

// Statistics and scan: a quad for each block of rows of a tile, eight of them a warp. The warps of
// a tile are neighbours, so that a frozen tile costs whole warps that leave at once.
constexpr int64_t WarpsPerTile(int64_t rows) {
  return (RowBlocks(rows) + kQuadsPerWarp - 1) / kQuadsPerWarp;
}

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_LAUNCH_CONFIG_H_
