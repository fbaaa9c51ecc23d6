// A sum in fp64 whose order is fixed: one value after the other. It cannot be split, so a warp
// fetches and one of its threads adds.
#ifndef SINQ_KERNELS_CUDA_CHAIN_CUH_
#define SINQ_KERNELS_CUDA_CHAIN_CUH_

#include "kernels/cuda_primitives.cuh"

namespace sinq::kernels {

inline constexpr int kChainPiece = 8 * kWarpThreads;

// start + values[0] + values[1] + ..., by a whole warp; valid in lane 0. `piece` is shared
// memory of this warp, kChainPiece values.
template <class T>
__device__ double WarpChain(double start, const T* values, int64_t count, T* piece) {
  double sum = start;
  for (int64_t first = 0; first < count; first += kChainPiece) {
    const int64_t left = count - first;
    const int here = static_cast<int>(left < kChainPiece ? left : kChainPiece);
    for (int i = LaneInWarp(); i < here; i += kWarpThreads) piece[i] = values[first + i];
    WarpBarrier();
    if (LaneInWarp() == 0) {
#pragma unroll 8
      for (int i = 0; i < here; ++i) sum = Add(sum, static_cast<double>(piece[i]));
    }
    WarpBarrier();
  }
  return sum;
}

// The same in blocks of 32 rows, whose sums are added in order; valid in lane 0.
__device__ inline double WarpRowChain(const float* values, int64_t rows, float* piece) {
  double total = 0;
  for (int64_t first = 0; first < rows; first += kRowsPerBlock) {
    const int64_t left = rows - first;
    total = Add(total, WarpChain(0, values + first, left < kRowsPerBlock ? left : kRowsPerBlock,
                                 piece));
  }
  return total;
}

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_CUDA_CHAIN_CUH_
