// Dense weights as they are stored: README.md section 8.3.
#ifndef SINQ_KERNELS_DENSE_CUDA_CUH_
#define SINQ_KERNELS_DENSE_CUDA_CUH_

#include <limits>

#include "kernels/cuda_primitives.cuh"
#include "kernels/half.h"
#include "kernels/matrix_view.h"

namespace sinq::kernels {

struct DenseRule {
  WeightDtype dtype;  // what they are stored as
  float largest;      // finite value of it
};

// Rounded to the nearest, never -0 and never beyond the largest finite value.
__device__ inline unsigned DenseBits(const DenseRule& rule, float weight) {
  const float bounded = Clamp(weight, -rule.largest, rule.largest);
  const float value = Add(bounded, 0.0f);
  if (rule.dtype == WeightDtype::kF32) return __float_as_uint(value);
  if (rule.dtype == WeightDtype::kF16) return FloatToF16(Add(RoundToF16(value), 0.0f));
  return __float_as_uint(RoundToBf16(value)) >> 16;
}

// Host.
inline DenseRule DenseRuleOf(WeightDtype dtype) {
  if (dtype == WeightDtype::kF32) return {dtype, std::numeric_limits<float>::max()};
  return {dtype, dtype == WeightDtype::kF16 ? 65504.0f : 0x1.fep127f};
}

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_DENSE_CUDA_CUH_
