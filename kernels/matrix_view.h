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

// What is known of a layer's inputs, for the methods that need it (NeedsActivations). Either
// samples or second moments.
struct ActivationView {
  absl::Span<const float> samples;         // [tokens, cols] row-major
  int64_t tokens = 0;                      // rows of `samples`
  absl::Span<const float> second_moments;  // [cols, cols]: mean over tokens of x xT
};

// Row-major [rows, cols], rows contiguous. `data` needs no alignment.
struct MatrixView {
  const std::byte* data = nullptr;
  int64_t rows = 0;  // N, out_features
  int64_t cols = 0;  // K, in_features
  WeightDtype dtype = WeightDtype::kBf16;
  // Only for kF8E4M3: F32 [ceil(rows/128), ceil(cols/128)], multiplied onto the values. Empty:
  // all 1.
  absl::Span<const float> block_scales;
  // Folded scales (README.md section 8), empty: all 1. Every element is taken as
  // fl(fl(w * row_factor[i]) * column_factor[k]).
  absl::Span<const float> row_factor = {};     // [rows]
  absl::Span<const float> column_factor = {};  // [cols]
  const ActivationView* activations = nullptr;

  bool is_folded() const { return !row_factor.empty() || !column_factor.empty(); }
  size_t SizeBytes() const {
    return static_cast<size_t>(rows) * static_cast<size_t>(cols) * BytesPerElement(dtype);
  }
};

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_MATRIX_VIEW_H_
