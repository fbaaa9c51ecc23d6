#include "kernels/launch_config.h"

#include <algorithm>

namespace sinq::kernels {
namespace {

LaunchShape Shape(int64_t units, int64_t units_per_block, int threads, size_t shared_bytes) {
  if (units <= 0) return {};
  const int64_t blocks = (units - 1) / units_per_block + 1;  // units + units_per_block may overflow
  return {static_cast<unsigned>(std::min(blocks, kMaxGrid)), static_cast<unsigned>(threads),
          static_cast<unsigned>(shared_bytes)};
}

}  // namespace

LaunchShape WarpPerUnit(int64_t warps, int warps_per_block, size_t shared_bytes_per_warp) {
  return Shape(warps, warps_per_block, warps_per_block * kWarpThreads,
               static_cast<size_t>(warps_per_block) * shared_bytes_per_warp);
}

LaunchShape ThreadPerUnit(int64_t threads, int threads_per_block) {
  return Shape(threads, threads_per_block, threads_per_block, 0);
}

LaunchShape BlockPerUnit(int64_t blocks, int threads_per_block, size_t shared_bytes) {
  return Shape(blocks, 1, threads_per_block, shared_bytes);
}

}  // namespace sinq::kernels
