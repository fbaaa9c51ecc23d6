// Fields in 32-bit words, as the layouts of others have them: README.md section 12.
#ifndef SINQ_KERNELS_PACK_CUDA_CUH_
#define SINQ_KERNELS_PACK_CUDA_CUH_

#include "kernels/cuda_primitives.cuh"

namespace sinq::kernels {

// A field of a stream that begins `shift` bits after the word does; before it if negative.
__device__ inline unsigned FieldInWord(unsigned field, int shift) {
  return shift >= 0 ? field << shift : field >> -shift;
}

// The nibble of an AWQ word that row (or column) c of its eight lies in: 0, 4, 1, 5, 2, 6, 3, 7.
__device__ inline int AwqNibble(int c) { return c / 2 + c % 2 * 4; }

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_PACK_CUDA_CUH_
