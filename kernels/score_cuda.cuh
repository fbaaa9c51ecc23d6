// What a fitted group costs, by one thread that holds its balanced values: README.md section 11,
// MeasureErrors.
#ifndef SINQ_KERNELS_SCORE_CUDA_CUH_
#define SINQ_KERNELS_SCORE_CUDA_CUH_

#include "kernels/fit_cuda.cuh"
#include "kernels/group_cuda.cuh"

namespace sinq::kernels {

template <int kBook, int kGroup>
__device__ void StoreScore(const FitArguments& p, const GroupPlace& place,
                           const float (&y)[kGroup]) {
  GroupFit fit = FitDefault<kBook>(y, p.rules);
  // The scale and zero of a constant group were not scored.
  Score<kBook>(y, p.rules, fit);
  float power = 0;
#pragma unroll
  for (int k = 0; k < kGroup; ++k) power = Fma(y[k], y[k], power);
  const int64_t at = place.tile * p.panel.padded_rows + place.row;
  p.panel.score_error[at] = fit.error;
  p.panel.score_power[at] = power;
}

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_SCORE_CUDA_CUH_
