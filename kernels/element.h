// One element of a matrix as fp32: for the rare scalar paths.
#ifndef SINQ_KERNELS_ELEMENT_H_
#define SINQ_KERNELS_ELEMENT_H_

#include <cstring>

#include "kernels/half.h"
#include "kernels/matrix_view.h"

namespace sinq::kernels {

inline float UnfoldedElementAt(const MatrixView& in, int64_t row, int64_t col) {
  const size_t at = static_cast<size_t>(row * in.cols + col);
  if (in.dtype == WeightDtype::kF32) {
    float value;
    std::memcpy(&value, in.data + 4 * at, sizeof value);
    return value;
  }
  if (in.dtype == WeightDtype::kF8E4M3) {
    const float value = E4m3ToFloat(static_cast<uint8_t>(in.data[at]));
    if (in.block_scales.empty()) return value;
    const int64_t blocks_per_row = (in.cols + kFp8BlockSize - 1) / kFp8BlockSize;
    return value * in.block_scales[static_cast<size_t>(row / kFp8BlockSize * blocks_per_row +
                                                       col / kFp8BlockSize)];
  }
  uint16_t bits;
  std::memcpy(&bits, in.data + 2 * at, sizeof bits);
  return in.dtype == WeightDtype::kBf16 ? Bf16ToFloat(bits) : F16ToFloat(bits);
}

// Folded scales included (README.md section 8).
inline float ElementAt(const MatrixView& in, int64_t row, int64_t col) {
  float value = UnfoldedElementAt(in, row, col);
  if (!in.row_factor.empty()) value *= in.row_factor[static_cast<size_t>(row)];
  if (!in.column_factor.empty()) value *= in.column_factor[static_cast<size_t>(col)];
  return value;
}

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_ELEMENT_H_
