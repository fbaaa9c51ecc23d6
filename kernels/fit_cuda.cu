// Scale and zero of every group of a panel on a CUDA device: README.md sections 3 and 4.
//
// Launch shape. One thread takes one group, since section 4.1 sums a group's columns in order with
// one accumulator each: nothing is shared between threads. Its g balanced values stay in registers
// for all five codings, which makes the search pure arithmetic: nine instructions per value and
// coding. Neighbouring threads take neighbouring rows of a tile and share its column factors;
// each fetches whole 128-byte lines of its own piece by piece, and the rest of a line waits in L1.
// nvcc 13.0 for sm_90, BF16, even levels: 117 registers at g = 64 and 187 at g = 128; nothing is
// spilled.
#include "kernels/balance_cuda.cuh"
#include "kernels/cuda_launch.h"
#include "kernels/cuda_primitives.cuh"
#include "kernels/cuda_steps.h"
#include "kernels/fit_cuda.cuh"
#include "kernels/group_cuda.cuh"
#include "kernels/hadamard_cuda.h"
#include "kernels/hqq_cuda.h"

namespace sinq::kernels {
namespace {

constexpr int kThreads = 128;

// Which rule a kernel follows: a codebook's in profile default by its size.
enum class Fitting : uint8_t { kEven, kNf4, kNf3, kUpstream };

// ================================================================ device

__device__ void StoreDefault(const FitArguments& p, int64_t e, const GroupFit& fit, int exponent) {
  // Adding 0 turns -0 into 0.
  p.arrays.scale[e] = Mul(Add(fit.scale, 0.0f), PowerOfTwo(-exponent));
  p.arrays.zero[e] = Add(fit.zero, 0.0f);
}

__device__ void StoreUpstream(const FitArguments& p, int64_t e, const GroupFit& fit, float r,
                              float inverse_r) {
  const float zero = Add(fit.zero, 0.0f);
  p.arrays.scale[e] = Mul(fit.scale, r);
  p.arrays.zero[e] = zero;
  p.arrays.exact_scale[e] = fit.scale;
  // Symmetric codes are rounded around 0 and moved up afterwards.
  p.arrays.exact_zero[e] = p.rules.symmetric ? 0.0f : zero;
  p.arrays.row_factor[e] = inverse_r;
}

// Multiplies the group by its own 2^p; p. Not of a group with a NaN or infinity, whose tensor ends
// in an error.
template <int kGroup>
__device__ int ScaleGroup(float (&y)[kGroup]) {
  const GroupRange range = RangeOf(y);
  const float largest = Max(-range.low, range.high);
  if (!(largest > 0)) return 0;
  const int exponent = ClampInt(-FloorLog2(largest), -kMaxExponent, kMaxExponent);
  MultiplyGroup(PowerOfTwo(exponent), y);
  return exponent;
}

constexpr int BookOf(Fitting fitting) {
  return fitting == Fitting::kNf4 ? 16 : fitting == Fitting::kNf3 ? 8 : 0;
}

template <WeightDtype kDtype, int kGroup, Fitting kFitting>
__global__ void __launch_bounds__(kThreads) FitKernel(FitArguments p) {
  const int64_t groups = p.rows * p.tiles;
  for (int64_t n = GlobalThread(); n < groups; n += GlobalThreads()) {
    const GroupPlace place = PlaceOf(p, n);
    float y[kGroup];
    LoadGroup<kDtype, kGroup>(p, place, y);
    if constexpr (kFitting == Fitting::kUpstream) {
      const float r = RowScale(p.panel, place), inverse_r = Div(1.0f, r);
      MultiplyGroup(inverse_r, y);
      StoreUpstream(p, place.e, FitUpstream(y, p.rules), r, inverse_r);
    } else {
      const int exponent =
          p.rules.scales_groups ? ScaleGroup(y) : p.panel.states[place.tile].exponent;
      StoreDefault(p, place.e, FitDefault<BookOf(kFitting)>(y, p.rules), exponent);
    }
  }
}

// ================================================================ host

Fitting FittingOf(const CudaTensor& tensor) {
  if (tensor.params.profile == Profile::kUpstream) return Fitting::kUpstream;
  const Rounding rounding = RoundingOf(tensor.params.method);
  if (rounding == Rounding::kNf4) return Fitting::kNf4;
  return rounding == Rounding::kNf3 ? Fitting::kNf3 : Fitting::kEven;
}

// Calls `run` with the rule as a compile-time constant.
template <class Run>
int ForFitting(Fitting fitting, const Run& run) {
  switch (fitting) {
    case Fitting::kEven:
      return run(Constant<Fitting::kEven>());
    case Fitting::kNf4:
      return run(Constant<Fitting::kNf4>());
    case Fitting::kNf3:
      return run(Constant<Fitting::kNf3>());
    default:
      return run(Constant<Fitting::kUpstream>());
  }
}

}  // namespace

int LaunchFit(const CudaTensor& tensor, const DeviceWeights& weights, const TilePanel& panel,
              const DeviceArrays& arrays, void* workspace, CudaStream stream) {
  if (RoundingOf(tensor.params.method) == Rounding::kHqq)
    return LaunchHqq(tensor, weights, panel, arrays, workspace, stream);
  if (RoundingOf(tensor.params.method) == Rounding::kHadamard)
    return LaunchHadamardFit(tensor, weights, panel, arrays, workspace, stream);
  const FitArguments p = FitArgumentsOf(tensor, weights, panel, arrays, workspace);
  const LaunchShape shape = ThreadPerUnit(tensor.tile_rows * panel.tiles, kThreads);
  return ForDtype(weights.dtype, [&](auto dtype) {
    return ForGroup(tensor.group, [&](auto group) {
      return ForFitting(FittingOf(tensor), [&](auto fitting) {
        return LaunchKernel(FitKernel<dtype.value, group.value, fitting.value>, shape, stream, p);
      });
    });
  });
}

}  // namespace sinq::kernels
