// The sums of a tensor's error figures on a CUDA device: README.md section 7.
//
// Launch shape. Two warps, one for the errors and one for the powers, add up the groups of 32 rows
// in order; each block of rows is independent. Then one block adds up their results in order. Both
// are chains of fp64 additions, a latency and hardly any work: other streams use the device.
#include "kernels/cuda_chain.cuh"
#include "kernels/cuda_launch.h"
#include "kernels/cuda_steps.h"
#include "kernels/figures_cuda.h"

namespace sinq::kernels {
namespace {

constexpr int kThreads = 2 * kWarpThreads;

struct ErrorParams {
  DeviceArrays arrays;
  double* partials;  // [2][row blocks]
  int64_t rows, groups_per_row, row_blocks;
};

// ================================================================ device

__global__ void __launch_bounds__(kThreads) SumRowBlocksKernel(ErrorParams p) {
  const float* values = WarpInBlock() == 0 ? p.arrays.error : p.arrays.power;
  float* piece = SharedMemory<float>() + WarpInBlock() * kChainPiece;
  for (int64_t b = blockIdx.x; b < p.row_blocks; b += gridDim.x) {
    const int64_t first = b * kRowsPerBlock;
    const int64_t rows = p.rows - first < kRowsPerBlock ? p.rows - first : kRowsPerBlock;
    const double sum = WarpChain(0, values + first * p.groups_per_row,
                                 rows * p.groups_per_row, piece);
    if (LaneInWarp() == 0) p.partials[WarpInBlock() * p.row_blocks + b] = sum;
  }
}

__global__ void __launch_bounds__(kThreads) SumTensorKernel(ErrorParams p) {
  double* piece = SharedMemory<double>() + WarpInBlock() * kChainPiece;
  const double sum =
      WarpChain(0, p.partials + WarpInBlock() * p.row_blocks, p.row_blocks, piece);
  if (LaneInWarp() != 0) return;
  (WarpInBlock() == 0 ? p.arrays.summary->error : p.arrays.summary->power) = sum;
}

}  // namespace

// ================================================================ host

int LaunchSumErrors(const CudaTensor& tensor, const DeviceArrays& arrays, CudaStream stream) {
  const ErrorParams p{arrays, static_cast<double*>(arrays.partials), tensor.rows,
                      tensor.groups_per_row, RowBlocks(tensor.rows)};
  const int error =
      LaunchKernel(SumRowBlocksKernel,
                   BlockPerUnit(p.row_blocks, kThreads, 2 * kChainPiece * sizeof(float)), stream,
                   p);
  if (error != 0) return error;
  const LaunchShape totals = BlockPerUnit(1, kThreads, 2 * kChainPiece * sizeof(double));
  return FirstError({LaunchKernel(SumTensorKernel, totals, stream, p),
                     LaunchSumFigures(tensor, arrays, stream)});
}

}  // namespace sinq::kernels
