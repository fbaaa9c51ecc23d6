// Non-owning view of a weight matrix: the only way weights are passed to kernels.
#ifndef SINQ_KERNELS_MATRIX_VIEW_H_
#define SINQ_KERNELS_MATRIX_VIEW_H_

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"

namespace sinq::kernels {

// Element types a kernel can read. kF8E4M3 is the FN variant (no infinities, 0x7f and 0xff are
// NaN).
enum class WeightDtype : uint8_t { kBf16, kF16, kF32, kF8E4M3 };

constexpr size_t BytesPerElement(WeightDtype dtype) {
  switch (dtype) {
    case WeightDtype::kF32:
      return 4;
    case WeightDtype::kF8E4M3:
      return 1;
    default:
      return 2;
  }
}

// FP8 block scales cover squares of this many rows and columns; partial blocks at the edges exist.
inline constexpr int64_t kFp8BlockSize = 128;

// Row-major [rows, cols], rows contiguous. `data` needs no alignment.
struct MatrixView {
  const std::byte* data = nullptr;
  int64_t rows = 0;  // N, out_features
  int64_t cols = 0;  // K, in_features
  WeightDtype dtype = WeightDtype::kBf16;
  // Only for kF8E4M3: F32 [ceil(rows/128), ceil(cols/128)], multiplied onto the values. Empty:
  // all 1.
  absl::Span<const float> block_scales;

  size_t SizeBytes() const {
    return static_cast<size_t>(rows) * static_cast<size_t>(cols) * BytesPerElement(dtype);
  }
};

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_MATRIX_VIEW_H_
