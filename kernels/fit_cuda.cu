// Scale and zero of every group of a panel on a CUDA device: README.md sections 3 and 4.
//
// Launch shape. One thread takes one group, since section 4.1 sums a group's columns in order with
// one accumulator each: nothing is shared between threads. Its g balanced values stay in registers
// for all seven (nine) codings, which makes the search pure arithmetic: ten instructions per value
// and coding. Neighbouring threads take neighbouring tiles of a row, so that scales and zeros are
// written side by side and a warp reads one stretch of a row; each thread fetches whole 128-byte
// lines of its own piece by piece, and the rest of a line waits in L1.
#include "kernels/cuda_launch.h"
#include "kernels/cuda_panel.h"
#include "kernels/cuda_primitives.cuh"
#include "kernels/cuda_steps.h"
#include "kernels/cuda_weights.cuh"
#include "kernels/fit_cuda.cuh"

namespace sinq::kernels {
namespace {

constexpr int kThreads = 128;

struct FitParams {
  DeviceWeights weights;
  PanelArrays panel;
  DeviceArrays arrays;
  FitRules rules;
  int64_t rows, first_tile, tiles, tensor_tiles;
};

// ================================================================ device

template <WeightDtype kDtype, int kGroup>
__device__ void LoadGroup(const WeightCursor<kDtype>& weights, const float* u,
                          float (&y)[kGroup]) {
#pragma unroll
  for (int k = 0; k < kGroup; k += 4) {
    const Four w = weights.Values(weights.Raw(0, k));
    for (int i = 0; i < 4; ++i) y[k + i] = Mul(w.value[i], u[k + i]);
  }
}

__device__ void StoreDefault(const FitParams& p, int64_t e, const GroupFit& fit, int exponent) {
  // Adding 0 turns -0 into 0.
  p.arrays.scale[e] = Mul(Add(fit.scale, 0.0f), PowerOfTwo(-exponent));
  p.arrays.zero[e] = Add(fit.zero, 0.0f);
}

__device__ void StoreUpstream(const FitParams& p, int64_t e, const GroupFit& fit, float r,
                              float inverse_r) {
  const float zero = Add(fit.zero, 0.0f);
  p.arrays.scale[e] = Mul(fit.scale, r);
  p.arrays.zero[e] = zero;
  p.arrays.exact_scale[e] = fit.scale;
  // Symmetric codes are rounded around 0 and moved up afterwards.
  p.arrays.exact_zero[e] = p.rules.symmetric ? 0.0f : zero;
  p.arrays.row_factor[e] = inverse_r;
}

// The row scale that balancing gave.
__device__ float RowScale(const PanelArrays& panel, const TileState& state, int64_t tile,
                          int64_t row) {
  if (state.best_round == 0) return 1.0f;
  return panel.r[state.best_round % 2][tile * panel.padded_rows + row];
}

template <WeightDtype kDtype, int kGroup, bool kUpstream>
__global__ void __launch_bounds__(kThreads) FitKernel(FitParams p) {
  const int64_t groups = p.rows * p.tiles;
  for (int64_t n = GlobalThread(); n < groups; n += GlobalThreads()) {
    const int64_t row = Quotient(n, p.tiles), tile = n - row * p.tiles;
    const int64_t e = row * p.tensor_tiles + p.first_tile + tile;
    const WeightCursor<kDtype> weights(p.weights, row, (p.first_tile + tile) * kGroup);
    float y[kGroup];
    LoadGroup<kDtype, kGroup>(weights, p.panel.factor + tile * kGroup, y);
    const TileState& state = p.panel.states[tile];
    if constexpr (kUpstream) {
      const float r = RowScale(p.panel, state, tile, row), inverse_r = Div(1.0f, r);
      StoreUpstream(p, e, FitUpstream(y, inverse_r, p.rules), r, inverse_r);
    } else {
      StoreDefault(p, e, p.rules.symmetric ? FitSymmetric(y, p.rules) : FitAsymmetric(y, p.rules),
                   state.exponent);
    }
  }
}

// ================================================================ host

FitRules RulesOf(const CudaTensor& tensor) {
  FitRules rules;
  rules.top = static_cast<float>((1 << tensor.params.bits) - 1);
  rules.inverse_top = 1.0f / rules.top;
  rules.half = static_cast<float>(1 << (tensor.params.bits - 1));
  rules.symmetric = tensor.params.symmetric;
  rules.refine = tensor.params.method != Method::kRtn;
  rules.zero_in_range = tensor.aux == AuxStorage::kU8;
  return rules;
}

}  // namespace

int LaunchFit(const CudaTensor& tensor, const DeviceWeights& weights, const TilePanel& panel,
              const DeviceArrays& arrays, void* workspace, CudaStream stream) {
  const FitParams p{weights,
                    LayOutPanel(tensor, panel.tiles, workspace),
                    arrays,
                    RulesOf(tensor),
                    tensor.rows,
                    panel.first_tile,
                    panel.tiles,
                    tensor.tiles};
  const LaunchShape shape = ThreadPerUnit(tensor.rows * panel.tiles, kThreads);
  const bool upstream = tensor.params.profile == Profile::kUpstream;
  return ForDtype(weights.dtype, [&](auto dtype) {
    return ForGroup(tensor.group, [&](auto group) {
      const auto kernel = upstream ? FitKernel<dtype.value, group.value, true>
                                   : FitKernel<dtype.value, group.value, false>;
      return LaunchKernel(kernel, shape, stream, p);
    });
  });
}

}  // namespace sinq::kernels
