// Values as scales, zeros and column scales are stored: F16, BF16 or F32 (aux u8: F16).
#ifndef SINQ_KERNELS_CUDA_STORED_CUH_
#define SINQ_KERNELS_CUDA_STORED_CUH_

#include <cfloat>

#include "kernels/cuda_primitives.cuh"
#include "kernels/half.h"
#include "kernels/quant_params.h"

namespace sinq::kernels {

__device__ inline float RoundStored(float value, AuxStorage aux) {
  if (aux == AuxStorage::kF32) return value;
  return aux == AuxStorage::kBf16 ? RoundToBf16(value) : RoundToF16(value);
}

// Stores a value at `index` of `out` (null: nowhere) and returns what a reader sees. Adding 0 turns
// -0 into 0.
__device__ inline float StoreValue(float value, AuxStorage aux, void* out, int64_t index) {
  const float rounded = Add(RoundStored(value, aux), 0.0f);
  if (out == nullptr) return rounded;
  if (aux == AuxStorage::kF32) {
    static_cast<float*>(out)[index] = rounded;
  } else {
    static_cast<uint16_t*>(out)[index] =
        aux == AuxStorage::kBf16 ? static_cast<uint16_t>(__float_as_uint(rounded) >> 16)
                                 : FloatToF16(rounded);
  }
  return rounded;
}

// Whether a magnitude does not round to infinity.
__device__ inline bool FitsStored(float magnitude, AuxStorage aux) {
  if (aux == AuxStorage::kF32) return magnitude <= FLT_MAX;
  return magnitude < (aux == AuxStorage::kBf16 ? 0x1.ffp127f : 65520.0f);
}

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_CUDA_STORED_CUH_
