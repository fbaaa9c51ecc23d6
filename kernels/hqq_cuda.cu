// HQQ's rounds on the zeros of a panel on a CUDA device: README.md section 9.2.
//
// Launch shape. As in fit_cuda.cu a thread holds a group in registers, for all twenty rounds: they
// only need each other. Which round wins is decided by tile, so every round leaves its zero and its
// error behind (160 bytes for each group); a block of twenty warps then adds up the errors of a
// tile, a round each, in the order of the rows, and a last kernel takes the zeros of the best.
#include "kernels/cuda_chain.cuh"
#include "kernels/cuda_launch.h"
#include "kernels/cuda_steps.h"
#include "kernels/deterministic_math.h"
#include "kernels/fit_cuda.cuh"
#include "kernels/group_cuda.cuh"
#include "kernels/hqq_cuda.h"

namespace sinq::kernels {
namespace {

constexpr int kThreads = 128;
constexpr int kChoosingThreads = kHqqRounds * kWarpThreads;

// ================================================================ device

// sign(miss) * max(|miss| - 0.1 * |miss|^-0.3, 0), |miss| within 1e-5 .. 1e5. Under kShrinkFrom
// that is 0 for sure, so the power is seldom needed.
__device__ float Shrink(float miss) {
  constexpr float kShrinkFrom = 0.17f;
  const float size = Clamp(Magnitude(miss), 1e-5f, 1e5f);
  if (size < kShrinkFrom) return 0.0f;
  const float left = Max(Sub(size, Mul(0.1f, Power(size, -0.3))), 0.0f);
  return miss < 0 ? -left : left;
}

// The multiplier of y, with the authors' floors or without.
__device__ float HqqInverse(const GroupRange& range, float top, bool upstream) {
  const float width = Sub(range.high, range.low);
  // A group without a range has zeros of 0 and codes of 0 whatever the multiplier.
  if (!upstream) return IfPositive(Mul(top, Reciprocal(width)), 1.0f);
  return Clamp(width <= 1e-4f ? 1.0f : Div(top, width), 1e-5f, 2e4f);
}

// The zero after a round, and the error with the zero before it.
struct HqqRound {
  float zero, error;
};
template <int kGroup>
__device__ HqqRound RoundOfHqq(const float (&y)[kGroup], float inverse, float zero, float top) {
  float error = 0, total = 0;
#pragma unroll 8
  for (int k = 0; k < kGroup; ++k) {
    const float q = RoundSmall(Clamp(Add(Mul(y[k], inverse), zero), 0.0f, top));
    const float miss = Sub(y[k], Div(Sub(q, zero), inverse));
    error = Add(error, Magnitude(miss));
    total = Add(total, Sub(q, Mul(Sub(y[k], Shrink(miss)), inverse)));
  }
  return {Mul(total, 1.0f / kGroup), error};
}

// What is the same for all rounds of a group.
struct HqqStart {
  float inverse, zero, scale;
  bool is_constant;  // profile default: `single` is its zero, whatever the rounds say
  float single;
};
template <int kGroup>
__device__ HqqStart StartOf(const float (&y)[kGroup], const FitRules& rules, bool upstream) {
  const GroupRange seen = RangeOf(y), range = upstream ? seen : StorableRange(seen, rules);
  HqqStart start;
  start.inverse = HqqInverse(range, rules.top, upstream);
  start.zero = -Mul(range.low, start.inverse);
  GroupFit fit;
  fit.scale = Div(1.0f, start.inverse);
  start.is_constant = !upstream && seen.low == seen.high;
  if (!upstream) FitConstant<0>(seen, rules, fit);
  start.scale = start.is_constant && seen.low == 0 ? 0.0f : fit.scale;
  start.single = fit.zero;
  return start;
}

__device__ int64_t PlaceInTile(const PanelArrays& panel, const GroupPlace& place) {
  return place.tile * panel.padded_rows + place.row;
}

template <int kGroup, bool kUpstream>
__device__ void RunRounds(const FitArguments& p, const GroupPlace& place, const HqqStart& start,
                          const float (&y)[kGroup]) {
  const int64_t stride = p.tiles * p.panel.padded_rows;
  float zero = start.zero;
#pragma unroll 1
  for (int round = 0; round < kHqqRounds; ++round) {
    const HqqRound next = RoundOfHqq(y, start.inverse, zero, p.rules.top);
    zero = next.zero;
    float kept = zero;
    if (!kUpstream) kept = start.is_constant ? start.single : StorableZero(zero, p.rules);
    const int64_t at = round * stride + PlaceInTile(p.panel, place);
    p.panel.hqq_zero[at] = Add(kept, 0.0f);
    p.panel.hqq_error[at] = next.error;
  }
}

template <WeightDtype kDtype, int kGroup, bool kUpstream>
__global__ void __launch_bounds__(kThreads) RoundsKernel(FitArguments p) {
  const int64_t groups = p.rows * p.tiles;
  for (int64_t n = GlobalThread(); n < groups; n += GlobalThreads()) {
    const GroupPlace place = PlaceOf(p, n);
    float y[kGroup];
    LoadGroup<kDtype, kGroup>(p, place, y);
    const float r = kUpstream ? RowScale(p.panel, place) : 1.0f, inverse_r = Div(1.0f, r);
    if (kUpstream) MultiplyGroup(inverse_r, y);
    const HqqStart start = StartOf(y, p.rules, kUpstream);
    RunRounds<kGroup, kUpstream>(p, place, start, y);
    const float unscale = PowerOfTwo(-p.panel.states[place.tile].exponent);
    p.arrays.scale[place.e] = Mul(start.scale, kUpstream ? r : unscale);
    if (!kUpstream) continue;
    p.arrays.exact_scale[place.e] = start.inverse;
    p.arrays.row_factor[place.e] = inverse_r;
  }
}

// Shared memory of the block that chooses for a tile.
struct ChoosingBuffers {
  float piece[kHqqRounds][kChainPiece];
  double error[kHqqRounds];
};

__global__ void __launch_bounds__(kChoosingThreads) ChooseKernel(FitArguments p) {
  ChoosingBuffers& buffers = *SharedMemory<ChoosingBuffers>();
  const int round = WarpInBlock();
  for (int64_t tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
    const float* errors = p.panel.hqq_error + (round * p.tiles + tile) * p.panel.padded_rows;
    const double error = WarpRowChain(errors, p.rows, buffers.piece[round]);
    if (LaneInWarp() == 0) buffers.error[round] = error;
    BlockBarrier();
    if (ThreadInBlock() == 0) {
      int best = 0;
      for (int k = 1; k < kHqqRounds; ++k) {
        if (buffers.error[k] < buffers.error[best]) best = k;
      }
      p.panel.hqq_best[tile] = best;
    }
    BlockBarrier();
  }
}

template <bool kUpstream>
__global__ void __launch_bounds__(kThreads) TakeKernel(FitArguments p) {
  const int64_t groups = p.rows * p.tiles, stride = p.tiles * p.panel.padded_rows;
  for (int64_t n = GlobalThread(); n < groups; n += GlobalThreads()) {
    const GroupPlace place = PlaceOf(p, n);
    const float* zeros = p.panel.hqq_zero + PlaceInTile(p.panel, place);
    p.arrays.zero[place.e] = zeros[p.panel.hqq_best[place.tile] * stride];
    // The authors' codes come from the zero before the last round.
    if (kUpstream) p.arrays.exact_zero[place.e] = zeros[(kHqqRounds - 2) * stride];
  }
}

// ================================================================ host

template <bool kUpstream>
int LaunchVariant(const CudaTensor& tensor, const FitArguments& p, CudaStream stream) {
  const LaunchShape groups = ThreadPerUnit(p.rows * p.tiles, kThreads);
  const int error = ForDtype(p.weights.dtype, [&](auto dtype) {
    return ForGroup(tensor.group, [&](auto group) {
      return LaunchKernel(RoundsKernel<dtype.value, group.value, kUpstream>, groups, stream, p);
    });
  });
  return FirstError(
      {error,
       LaunchKernel(ChooseKernel,
                    BlockPerUnit(p.tiles, kChoosingThreads, sizeof(ChoosingBuffers)), stream, p),
       LaunchKernel(TakeKernel<kUpstream>, groups, stream, p)});
}

}  // namespace

int LaunchHqq(const CudaTensor& tensor, const DeviceWeights& weights, const TilePanel& panel,
              const DeviceArrays& arrays, void* workspace, CudaStream stream) {
  const FitArguments p = FitArgumentsOf(tensor, weights, panel, arrays, workspace);
  return tensor.params.profile == Profile::kUpstream ? LaunchVariant<true>(tensor, p, stream)
                                                     : LaunchVariant<false>(tensor, p, stream);
}

}  // namespace sinq::kernels
