// The error that names the first NaN or infinity of a matrix.
#ifndef SINQ_KERNELS_NON_FINITE_H_
#define SINQ_KERNELS_NON_FINITE_H_

#include "absl/status/status.h"
#include "kernels/matrix_view.h"

namespace sinq::kernels {

// InvalidArgument with the first non-finite element from `first_row` on, in row-major order.
absl::Status FirstNonFinite(const MatrixView& in, int64_t first_row);

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_NON_FINITE_H_
