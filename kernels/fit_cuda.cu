// Scale and zero of every group of a panel on a CUDA device: README.md sections 3 and 4.
//
// Launch shape. One thread takes one group, since section 4.1 sums a group's columns in order with
// one accumulator each: nothing is shared between threads. Its g balanced values stay in registers
// for all seven (nine) codings, which makes the search pure arithmetic: ten instructions per value
// and coding. Neighbouring threads take neighbouring tiles of a row, so that scales and zeros are
// written side by side and a warp reads one stretch of a row; each thread fetches whole 128-byte
// lines of its own piece by piece, and the rest of a line waits in L1.
#include <algorithm>

#include "kernels/codebook.h"
#include "kernels/cuda_launch.h"
#include "kernels/cuda_panel.h"
#include "kernels/cuda_primitives.cuh"
#include "kernels/cuda_steps.h"
#include "kernels/cuda_weights.cuh"
#include "kernels/fit_cuda.cuh"
#include "kernels/group_store.h"  // ZeroGridOf

namespace sinq::kernels {
namespace {

constexpr int kThreads = 128;

struct FitArguments {
  DeviceWeights weights;
  PanelArrays panel;
  DeviceArrays arrays;
  FitRules rules;
  int64_t rows;  // of a tile
  int64_t first_tile, tiles, groups_per_row;
};

// Which rule a kernel follows: a codebook's in profile default by its size.
enum class Fitting : uint8_t { kEven, kNf4, kNf3, kUpstream };

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

// The row scale that balancing gave.
__device__ float RowScale(const PanelArrays& panel, const TileState& state, int64_t tile,
                          int64_t row) {
  if (state.best_round == 0) return 1.0f;
  return panel.r[state.best_round % 2][tile * panel.padded_rows + row];
}

template <Fitting kFitting, int kGroup>
__device__ GroupFit FitDefault(const float (&y)[kGroup], const FitRules& rules) {
  if constexpr (kFitting == Fitting::kNf4) return FitToBook<16>(y, rules);
  if constexpr (kFitting == Fitting::kNf3) return FitToBook<8>(y, rules);
  return rules.symmetric ? FitSymmetric(y, rules) : FitAsymmetric(y, rules);
}

template <WeightDtype kDtype, int kGroup, Fitting kFitting>
__global__ void __launch_bounds__(kThreads) FitKernel(FitArguments p) {
  const int64_t groups = p.rows * p.tiles;
  for (int64_t n = GlobalThread(); n < groups; n += GlobalThreads()) {
    const int64_t row = Quotient(n, p.tiles), tile = n - row * p.tiles;  // row of the tile
    const int64_t band = Quotient(p.first_tile + tile, p.groups_per_row);
    const int64_t j = p.first_tile + tile - band * p.groups_per_row;
    const int64_t i = band * p.rows + row, e = i * p.groups_per_row + j;
    const WeightCursor<kDtype> weights(p.weights, i, j * kGroup);
    float y[kGroup];
    LoadGroup<kDtype, kGroup>(weights, p.panel.factor + tile * kGroup, y);
    const TileState& state = p.panel.states[tile];
    if constexpr (kFitting == Fitting::kUpstream) {
      const float r = RowScale(p.panel, state, tile, row), inverse_r = Div(1.0f, r);
#pragma unroll
      for (int k = 0; k < kGroup; ++k) y[k] = Mul(y[k], inverse_r);
      StoreUpstream(p, e, FitUpstream(y, p.rules), r, inverse_r);
    } else {
      StoreDefault(p, e, FitDefault<kFitting>(y, p.rules), state.exponent);
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
  rules.low_share = 1.0f / static_cast<float>((1 << tensor.params.bits) - 2);
  rules.refine = tensor.params.method != Method::kRtn;
  rules.zero_grid = ZeroGridOf(tensor.params);
  const Codebook book = CodebookOf(RoundingOf(tensor.params.method));
  rules.book_size = book.size;
  std::copy_n(book.levels, book.size, rules.levels);
  std::copy_n(book.bounds, book.size == 0 ? 0 : book.size - 1, rules.bounds);
  return rules;
}

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
  const FitArguments p{weights,
                    LayOutPanel(tensor, panel.tiles, workspace),
                    arrays,
                    RulesOf(tensor),
                    tensor.tile_rows,
                    panel.first_tile,
                    panel.tiles,
                    tensor.groups_per_row};
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
