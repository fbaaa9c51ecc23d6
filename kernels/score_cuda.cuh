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
  const GroupFit fit = FitDefault<kBook>(y, p.rules);
  const CodeSums sums = CodeGroup<kBook>(y, p.rules, fit.scale, fit.zero);
  const int64_t at = place.tile * p.panel.padded_rows + place.row;
  p.panel.score_error[at] = ErrorOf(sums, fit.scale);
  p.panel.score_power[at] = TotalsOf(y).squares;
}

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_SCORE_CUDA_CUH_
