#include "kernels/non_finite.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/element.h"

namespace sinq::kernels {

absl::Status FirstNonFinite(const MatrixView& in, int64_t first_row) {
  for (int64_t i = first_row; i < in.rows; ++i) {
    for (int64_t k = 0; k < in.cols; ++k) {
      const float value = ElementAt(in, i, k);
      if (std::isfinite(value)) continue;
      return absl::InvalidArgumentError(absl::StrCat(
          "element [", i, ", ", k, "] is ", std::isnan(value) ? "NaN" : "infinite",
          in.is_folded() ? " with its folded scales" : "", "; weights must be finite"));
    }
  }
  return absl::InternalError("a non-finite element was seen but not found again");
}

}  // namespace sinq::kernels
