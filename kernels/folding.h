// Arithmetic of a column scale that is moved into the tensors before a layer (README.md section
// 13). Scalar: it touches vectors and the few matrices that stay dense.
#ifndef SINQ_KERNELS_FOLDING_H_
#define SINQ_KERNELS_FOLDING_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/matrix_view.h"

namespace sinq::kernels {

// A column code counts 1/32 octaves: steps of 2.2 %, and at most 127 of them, a factor of 15.7.
inline constexpr int kColumnCodesPerOctave = 32;

// t [cols], all > 0 -> codes [cols]: log2 of t over the geometric mean of its tile. `group_size`
// divides cols.
void ColumnCodes(absl::Span<const float> t, int group_size, absl::Span<int8_t> codes);

// The geometric mean of `count` > 0 scales whose codes add up to `sum`; the nearest power of two of
// it if `power_of_two`.
float SharedScale(int64_t sum, int64_t count, bool power_of_two);

// How a vector's element takes a factor.
enum class VectorFold : uint8_t {
  kTimes,    // w' = w t: norms that multiply by w, biases
  kPlusOne,  // w' = (1 + w) t - 1: norms that multiply by 1 + w
};
struct FoldedElement {
  float value = 0;  // w' as stored
  float scale = 1;  // the factor that the stored w' really stands for
};
// `dtype` is that of storage, not kF8E4M3. Where w' cannot be stored well (overflow, w or 1 + w is
// 0, or the realized factor is not within [t/2, 2t]) w stays and the scale is 1.
FoldedElement FoldElement(VectorFold fold, float w, float t, WeightDtype dtype);

// Element `at` of an array of `dtype` (not kF8E4M3).
float LoadElement(const std::byte* data, size_t at, WeightDtype dtype);
void StoreElement(float value, std::byte* data, size_t at, WeightDtype dtype);

// Writes `in` with its factors, rounded once to `dtype` (not kF8E4M3), row-major. InvalidArgument
// naming the first element that is not finite after that.
absl::Status FoldMatrix(const MatrixView& in, WeightDtype dtype, absl::Span<std::byte> out);

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_FOLDING_H_
