#include "kernels/matrix_check.h"

namespace sinq::kernels {

absl::Status CheckFactors(const MatrixView& in) {
  const int64_t blocks = ((in.rows + kFp8BlockSize - 1) / kFp8BlockSize) *
                         ((in.cols + kFp8BlockSize - 1) / kFp8BlockSize);
  const auto fits = [](absl::Span<const float> factors, int64_t count) {
    return factors.empty() || factors.size() == static_cast<size_t>(count);
  };
  if (!fits(in.block_scales, blocks))
    return absl::InternalError("block_scales has the wrong length");
  if (!fits(in.row_factor, in.rows)) return absl::InternalError("row_factor has the wrong length");
  if (!fits(in.column_factor, in.cols))
    return absl::InternalError("column_factor has the wrong length");
  return absl::OkStatus();
}

}  // namespace sinq::kernels
