// One group of a panel by one thread: where it lies, and its balanced values in registers.
#ifndef SINQ_KERNELS_GROUP_CUDA_CUH_
#define SINQ_KERNELS_GROUP_CUDA_CUH_

#include "kernels/cuda_panel.h"
#include "kernels/cuda_primitives.cuh"
#include "kernels/cuda_steps.h"
#include "kernels/cuda_weights.cuh"
#include "kernels/fit_rules.h"

namespace sinq::kernels {

// Arguments of the kernels that look for scales and zeros.
struct FitArguments {
  DeviceWeights weights;
  PanelArrays panel;
  DeviceArrays arrays;
  FitRules rules;
  int64_t rows;  // of a tile
  int64_t first_tile, tiles, groups_per_row;
};

struct GroupPlace {
  int64_t row, tile;  // of the tile, of the panel
  int64_t i, j;       // row of the tensor, group in the row
  int64_t e;          // in the group arrays
};

// The n-th group of the panel. Neighbouring numbers are neighbouring rows of a tile, so that the
// threads of a warp share the tile's factors: a load of them is one access for all.
__device__ inline GroupPlace PlaceOf(const FitArguments& p, int64_t n) {
  GroupPlace place;
  place.tile = Quotient(n, p.rows);
  place.row = n - place.tile * p.rows;
  const int64_t band = Quotient(p.first_tile + place.tile, p.groups_per_row);
  place.j = p.first_tile + place.tile - band * p.groups_per_row;
  place.i = band * p.rows + place.row;
  place.e = place.i * p.groups_per_row + place.j;
  return place;
}

// y = w * u.
template <WeightDtype kDtype, int kGroup>
__device__ void LoadGroup(const FitArguments& p, const GroupPlace& place, float (&y)[kGroup]) {
  const WeightCursor<kDtype> weights(p.weights, place.i, place.j * kGroup);
  const float* u = p.panel.factor + place.tile * kGroup;
#pragma unroll
  for (int k = 0; k < kGroup; k += 4) {
    const Four w = weights.Values(weights.Raw(0, k)), factor = LoadFour(u + k);
    for (int i = 0; i < 4; ++i) y[k + i] = Mul(w.value[i], factor.value[i]);
  }
}

template <int kGroup>
__device__ void MultiplyGroup(float factor, float (&y)[kGroup]) {
#pragma unroll
  for (int k = 0; k < kGroup; ++k) y[k] = Mul(y[k], factor);
}

// The row scale that balancing gave.
__device__ inline float RowScale(const PanelArrays& panel, const GroupPlace& place) {
  const TileState& state = panel.states[place.tile];
  if (state.best_round == 0) return 1.0f;
  return panel.r[state.best_round % 2][place.tile * panel.padded_rows + place.row];
}

// Host.
inline FitArguments FitArgumentsOf(const CudaTensor& tensor, const DeviceWeights& weights,
                                   const TilePanel& panel, const DeviceArrays& arrays,
                                   void* workspace) {
  return {weights,
          LayOutPanel(tensor, panel.tiles, workspace),
          arrays,
          FitRulesOf(tensor),
          tensor.tile_rows,
          panel.first_tile,
          panel.tiles,
          tensor.groups_per_row};
}

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_GROUP_CUDA_CUH_
