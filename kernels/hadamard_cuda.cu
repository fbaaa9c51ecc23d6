// Method hadamard on a CUDA device: README.md section 11. For comparison only, so the plainest
// shape: a thread holds a group through transform, fit and coding, and nothing meets between
// threads. The dtype is looked at when a group is loaded, so that the unrolled transform and search
// are in the program once for each group size.
#include "kernels/hadamard_cuda.h"

#include "kernels/close_rows.h"
#include "kernels/cuda_launch.h"
#include "kernels/dense_cuda.cuh"
#include "kernels/score_cuda.cuh"

namespace sinq::kernels {
namespace {

constexpr int kThreads = 128;
constexpr int kLanes = 16;  // of the sums over a row (section 1)

struct HadamardArguments {
  DeviceArrays arrays;
  DeviceWeights weights;
  void* values;  // of group `first` on
  int64_t first, last, groups_per_row;
  float top;
  DenseRule dense;
};

// ================================================================ device

// The orthonormal Walsh-Hadamard transform; its own inverse.
template <int kGroup>
__device__ void Transform(float (&y)[kGroup]) {
#pragma unroll
  for (int half = 1; half < kGroup; half *= 2) {
#pragma unroll
    for (int n = 0; n < kGroup / 2; ++n) {
      const int low = n / half * 2 * half + n % half, high = low + half;
      const float a = y[low], b = y[high];
      y[low] = Add(a, b);
      y[high] = Sub(a, b);
    }
  }
  MultiplyGroup(Div(1.0f, SquareRoot(static_cast<float>(kGroup))), y);
}

template <WeightDtype kDtype, int kGroup>
__device__ void LoadWeightsOf(const DeviceWeights& from, int64_t row, int64_t col,
                              float (&w)[kGroup]) {
  const WeightCursor<kDtype> weights(from, row, col);
#pragma unroll
  for (int k = 0; k < kGroup; k += 4) {
    const Four four = weights.Values(weights.Raw(0, k));
    for (int i = 0; i < 4; ++i) w[k + i] = four.value[i];
  }
}

template <int kGroup>
__device__ void LoadWeights(const DeviceWeights& from, int64_t row, int64_t col,
                            float (&w)[kGroup]) {
  switch (from.dtype) {
    case WeightDtype::kBf16:
      return LoadWeightsOf<WeightDtype::kBf16>(from, row, col, w);
    case WeightDtype::kF16:
      return LoadWeightsOf<WeightDtype::kF16>(from, row, col, w);
    case WeightDtype::kF32:
      return LoadWeightsOf<WeightDtype::kF32>(from, row, col, w);
    default:
      return LoadWeightsOf<WeightDtype::kF8E4M3>(from, row, col, w);
  }
}

// The transform of y = w * u.
template <int kGroup>
__device__ void LoadTransformed(const FitArguments& p, const GroupPlace& place,
                                float (&y)[kGroup]) {
  LoadWeights(p.weights, place.i, place.j * kGroup, y);
  const float* u = p.panel.factor + place.tile * kGroup;
#pragma unroll
  for (int k = 0; k < kGroup; ++k) y[k] = Mul(y[k], u[k]);
  Transform(y);
}

template <int kGroup>
__global__ void __launch_bounds__(kThreads) HadamardFitKernel(FitArguments p) {
  for (int64_t n = GlobalThread(); n < p.rows * p.tiles; n += GlobalThreads()) {
    const GroupPlace place = PlaceOf(p, n);
    float y[kGroup];
    LoadTransformed(p, place, y);
    const GroupFit fit = FitDefault<0>(y, p.rules);
    const float unscale = PowerOfTwo(-p.panel.states[place.tile].exponent);
    // Adding 0 turns -0 into 0.
    p.arrays.scale[place.e] = Mul(Add(fit.scale, 0.0f), unscale);
    p.arrays.zero[place.e] = Add(fit.zero, 0.0f);
  }
}

template <int kGroup>
__global__ void __launch_bounds__(kThreads) HadamardScoreKernel(FitArguments p) {
  for (int64_t n = GlobalThread(); n < p.rows * p.tiles; n += GlobalThreads()) {
    const GroupPlace place = PlaceOf(p, n);
    float y[kGroup];
    LoadTransformed(p, place, y);
    StoreScore<0>(p, place, y);
  }
}

// Error figures of one group; those of the space in which it was coded are the same.
template <int kGroup>
__device__ void StoreErrors(const HadamardArguments& p, const float (&w)[kGroup],
                            const float (&value)[kGroup], int64_t e) {
  float error[kLanes] = {}, power[kLanes] = {}, overlap[kLanes] = {}, largest = 0;
#pragma unroll
  for (int k = 0; k < kGroup; ++k) {
    const int lane = k % kLanes;
    const float miss = Sub(value[k], w[k]);
    error[lane] = Fma(miss, miss, error[lane]);
    power[lane] = Fma(w[k], w[k], power[lane]);
    overlap[lane] = Fma(miss, w[k], overlap[lane]);
    largest = Max(largest, Magnitude(miss));
  }
  p.arrays.error[e] = LaneTree(error);
  p.arrays.power[e] = LaneTree(power);
  p.arrays.largest[e] = largest;
  if (Quotient(e, p.groups_per_row) % kCloseRowStep != 0) return;
  const int64_t n = CloseGroupsBefore(e, p.groups_per_row);
  p.arrays.overlap[n] = LaneTree(overlap);
  p.arrays.balanced_error[n] = p.arrays.error[e];
  p.arrays.balanced_power[n] = p.arrays.power[e];
}

template <int kGroup>
__global__ void __launch_bounds__(kThreads) HadamardEncodeKernel(HadamardArguments p) {
  for (int64_t e = p.first + GlobalThread(); e < p.last; e += GlobalThreads()) {
    const int64_t row = Quotient(e, p.groups_per_row);
    const int64_t col = (e - row * p.groups_per_row) * kGroup;
    float y[kGroup], w[kGroup];
    LoadWeights(p.weights, row, col, y);
    Transform(y);
    const float scale = p.arrays.scale[e], zero = p.arrays.zero[e];
    const float inverse = Reciprocal(scale);
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      const float q = RoundSmall(Clamp(Fma(y[k], inverse, zero), 0.0f, p.top));
      y[k] = Mul(Sub(q, zero), scale);
    }
    Transform(y);
    LoadWeights(p.weights, row, col, w);
    StoreErrors(p, w, y, e);
    const int64_t at = (e - p.first) * kGroup;
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      const unsigned bits = DenseBits(p.dense, y[k]);
      if (p.dense.dtype == WeightDtype::kF32) {
        static_cast<unsigned*>(p.values)[at + k] = bits;
      } else {
        static_cast<uint16_t*>(p.values)[at + k] = static_cast<uint16_t>(bits);
      }
    }
  }
}

}  // namespace

// ================================================================ host

int LaunchHadamardFit(const CudaTensor& tensor, const DeviceWeights& weights,
                      const TilePanel& panel, const DeviceArrays& arrays, void* workspace,
                      CudaStream stream) {
  const FitArguments p = FitArgumentsOf(tensor, weights, panel, arrays, workspace);
  const LaunchShape shape = ThreadPerUnit(p.rows * p.tiles, kThreads);
  return ForGroup(tensor.group, [&](auto group) {
    return LaunchKernel(HadamardFitKernel<group.value>, shape, stream, p);
  });
}

int LaunchHadamardScore(const CudaTensor& tensor, const DeviceWeights& weights,
                        const TilePanel& panel, const DeviceArrays& arrays, void* workspace,
                        CudaStream stream) {
  const FitArguments p = FitArgumentsOf(tensor, weights, panel, arrays, workspace);
  const LaunchShape shape = ThreadPerUnit(p.rows * p.tiles, kThreads);
  return ForGroup(tensor.group, [&](auto group) {
    return LaunchKernel(HadamardScoreKernel<group.value>, shape, stream, p);
  });
}

// The only layout of the method is kDense, whose packed rows are the groups.
int LaunchHadamardEncode(const CudaTensor& tensor, const EncodeRange& range,
                         const DeviceArrays& arrays, CudaStream stream) {
  const HadamardArguments p{arrays,
                            range.strands[0],
                            range.codes,
                            range.first,
                            range.last,
                            tensor.groups_per_row,
                            static_cast<float>((1 << tensor.params.bits) - 1),
                            DenseRuleOf(tensor.dense)};
  const LaunchShape shape = ThreadPerUnit(range.last - range.first, kThreads);
  return ForGroup(tensor.group, [&](auto group) {
    return LaunchKernel(HadamardEncodeKernel<group.value>, shape, stream, p);
  });
}

}  // namespace sinq::kernels
