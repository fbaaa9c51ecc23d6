// Whether the parts of a MatrixView fit together.
#ifndef SINQ_KERNELS_MATRIX_CHECK_H_
#define SINQ_KERNELS_MATRIX_CHECK_H_

#include "absl/status/status.h"
#include "kernels/matrix_view.h"

namespace sinq::kernels {

// Internal unless block scales and folded factors have the lengths that they must have.
absl::Status CheckFactors(const MatrixView& in);

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_MATRIX_CHECK_H_
