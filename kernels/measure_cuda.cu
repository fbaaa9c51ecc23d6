// What a way of quantizing would cost, on a CUDA device: README.md section 11, MeasureErrors.
//
// Launch shape. A thread fits a group as in fit_cuda.cu and scores the result; a block of two warps
// then adds up the errors and powers of a tile in the order of its rows, and one block those of the
// tiles.
#include "kernels/cuda_chain.cuh"
#include "kernels/cuda_launch.h"
#include "kernels/cuda_steps.h"
#include "kernels/hadamard_cuda.h"
#include "kernels/score_cuda.cuh"

namespace sinq::kernels {
namespace {

constexpr int kThreads = 128;
constexpr int kSumThreads = 2 * kWarpThreads;

// ================================================================ device

template <WeightDtype kDtype, int kGroup, int kBook>
__global__ void __launch_bounds__(kThreads) ScoreKernel(FitArguments p) {
  const int64_t groups = p.rows * p.tiles;
  for (int64_t n = GlobalThread(); n < groups; n += GlobalThreads()) {
    const GroupPlace place = PlaceOf(p, n);
    float y[kGroup];
    LoadGroup<kDtype, kGroup>(p, place, y);
    StoreScore<kBook>(p, place, y);
  }
}

// 2^(-2p): back in the units of w.
__device__ double Unscale(int exponent) {
  const double factor = static_cast<double>(PowerOfTwo(-exponent));
  return Mul(factor, factor);
}

__global__ void __launch_bounds__(kSumThreads) SumTilesKernel(FitArguments p) {
  const bool is_error = WarpInBlock() == 0;
  const float* values = is_error ? p.panel.score_error : p.panel.score_power;
  double* sums = is_error ? p.arrays.tile_error : p.arrays.tile_power;
  float* piece = SharedMemory<float>() + WarpInBlock() * kChainPiece;
  for (int64_t tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
    const double sum = WarpRowChain(values + tile * p.panel.padded_rows, p.rows, piece);
    if (LaneInWarp() == 0)
      sums[p.first_tile + tile] = Mul(sum, Unscale(p.panel.states[tile].exponent));
  }
}

struct SumParams {
  DeviceArrays arrays;
  int64_t tiles;
};
__global__ void __launch_bounds__(kSumThreads) SumScoresKernel(SumParams p) {
  const bool is_error = WarpInBlock() == 0;
  double* piece = SharedMemory<double>() + WarpInBlock() * kChainPiece;
  const double sum =
      WarpChain(0, is_error ? p.arrays.tile_error : p.arrays.tile_power, p.tiles, piece);
  if (LaneInWarp() == 0)
    (is_error ? p.arrays.summary->error : p.arrays.summary->power) = sum;
}

// ================================================================ host

template <WeightDtype kDtype, int kGroup>
int LaunchBook(const FitArguments& p, const LaunchShape& shape, CudaStream stream) {
  if (p.rules.book_size == 16)
    return LaunchKernel(ScoreKernel<kDtype, kGroup, 16>, shape, stream, p);
  if (p.rules.book_size == 8)
    return LaunchKernel(ScoreKernel<kDtype, kGroup, 8>, shape, stream, p);
  return LaunchKernel(ScoreKernel<kDtype, kGroup, 0>, shape, stream, p);
}

int LaunchScores(const CudaTensor& tensor, const FitArguments& p, CudaStream stream) {
  const LaunchShape shape = ThreadPerUnit(p.rows * p.tiles, kThreads);
  return ForDtype(p.weights.dtype, [&](auto dtype) {
    return ForGroup(tensor.group, [&](auto group) {
      return LaunchBook<dtype.value, group.value>(p, shape, stream);
    });
  });
}

}  // namespace

int LaunchScore(const CudaTensor& tensor, const DeviceWeights& weights, const TilePanel& panel,
                const DeviceArrays& arrays, void* workspace, CudaStream stream) {
  const FitArguments p = FitArgumentsOf(tensor, weights, panel, arrays, workspace);
  const bool transforms = RoundingOf(tensor.params.method) == Rounding::kHadamard;
  const int error =
      transforms ? LaunchHadamardScore(tensor, weights, panel, arrays, workspace, stream)
                 : LaunchScores(tensor, p, stream);
  const LaunchShape sums =
      BlockPerUnit(p.tiles, kSumThreads, 2 * kChainPiece * sizeof(float));
  return FirstError({error, LaunchKernel(SumTilesKernel, sums, stream, p)});
}

int LaunchSumScores(const CudaTensor& tensor, const DeviceArrays& arrays, CudaStream stream) {
  const LaunchShape shape = BlockPerUnit(1, kSumThreads, 2 * kChainPiece * sizeof(double));
  return LaunchKernel(SumScoresKernel, shape, stream, SumParams{arrays, tensor.tiles});
}

}  // namespace sinq::kernels
