// Sums of w, w^2, w^3, w^4 of a tensor on a CUDA device: README.md section 3.
//
// Launch shape. A quad of threads takes a row, 4 of its 16 lanes each, and reads it in sectors of
// 32 bytes from one end to the other; four chains of fp64 additions for each lane. The rows' totals
// are then added in order by four warps of one block, one power each. Rows may come in several
// ranges: each goes on from where the one before ended.
#include "kernels/cuda_chain.cuh"
#include "kernels/cuda_launch.h"
#include "kernels/cuda_steps.h"
#include "kernels/cuda_weights.cuh"

namespace sinq::kernels {
namespace {

constexpr int kWarpsPerBlock = 4;
constexpr int kPowers = 4;

struct MomentParams {
  DeviceWeights weights;
  DeviceSummary* summary;
  double* totals;  // [kPowers][rows]
};

// ================================================================ device

template <WeightDtype kDtype>
__device__ void AddRowMoments(const DeviceWeights& in, int64_t row, int member,
                              double (&sums)[kPowers][4]) {
  for (int64_t first = 0; first < in.cols; first += kMaxCudaGroup) {
    const WeightCursor<kDtype> weights(in, row, first);
    const int64_t left = in.cols - first;
    const int count = static_cast<int>(left < kMaxCudaGroup ? left : kMaxCudaGroup);
    for (int col = 4 * member; col < count; col += 16) {
      const Four four = weights.Values(weights.Raw(0, col));
      for (int i = 0; i < 4; ++i) {
        const double w = static_cast<double>(four.value[i]), w2 = Mul(w, w);
        sums[0][i] = Add(sums[0][i], w);
        sums[1][i] = Add(sums[1][i], w2);
        sums[2][i] = Add(sums[2][i], Mul(w2, w));
        sums[3][i] = Add(sums[3][i], Mul(w2, w2));
      }
    }
  }
}

template <WeightDtype kDtype>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarpThreads) RowMomentsKernel(MomentParams p) {
  const int64_t warps = (p.weights.rows + kQuadsPerWarp - 1) / kQuadsPerWarp;
  const int member = LaneInWarp() % kQuadThreads;
  for (int64_t warp = GlobalWarp(); warp < warps; warp += GlobalWarps()) {
    const int64_t row = warp * kQuadsPerWarp + LaneInWarp() / kQuadThreads;
    double sums[kPowers][4] = {};
    if (row < p.weights.rows)
      AddRowMoments<kDtype>(p.weights, p.weights.first_row + row, member, sums);
    for (int power = 0; power < kPowers; ++power) {
      const double total = QuadLaneTree(sums[power]);
      if (row < p.weights.rows && member == 0) p.totals[power * p.weights.rows + row] = total;
    }
  }
}

__global__ void __launch_bounds__(kPowers* kWarpThreads) SumMomentsKernel(MomentParams p) {
  const int power = WarpInBlock();
  double* piece = SharedMemory<double>() + power * kChainPiece;
  const double sum = WarpChain(p.summary->moments[power], p.totals + power * p.weights.rows,
                               p.weights.rows, piece);
  if (LaneInWarp() == 0) p.summary->moments[power] = sum;
}

}  // namespace

// ================================================================ host

int LaunchMoments(const CudaTensor&, const DeviceWeights& weights, const DeviceArrays& arrays,
                  void* workspace, CudaStream stream) {
  const MomentParams p{weights, arrays.summary, static_cast<double*>(workspace)};
  const LaunchShape rows =
      WarpPerUnit((weights.rows + kQuadsPerWarp - 1) / kQuadsPerWarp, kWarpsPerBlock, 0);
  const LaunchShape sum =
      BlockPerUnit(1, kPowers * kWarpThreads, kPowers * kChainPiece * sizeof(double));
  return ForDtype(weights.dtype, [&](auto dtype) {
    const int error = LaunchKernel(RowMomentsKernel<dtype.value>, rows, stream, p);
    return error != 0 ? error : LaunchKernel(SumMomentsKernel, sum, stream, p);
  });
}

}  // namespace sinq::kernels
