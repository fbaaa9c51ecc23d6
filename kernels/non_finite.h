// Names the element that makes a tensor unusable.
#ifndef SINQ_KERNELS_NON_FINITE_H_
#define SINQ_KERNELS_NON_FINITE_H_

#include "absl/status/status.h"
#include "kernels/matrix_view.h"

namespace sinq::kernels {

// InvalidArgument naming the first NaN or infinity in row-major order, `first_row` being the first
// row that may hold one. Internal if there is none.
absl::Status NonFiniteElement(const MatrixView& in, int64_t first_row);

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_NON_FINITE_H_
