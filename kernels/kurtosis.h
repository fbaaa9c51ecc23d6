// Kurtosis of a whole tensor, the gate of profile upstream (README.md section 3).
#ifndef SINQ_KERNELS_KURTOSIS_H_
#define SINQ_KERNELS_KURTOSIS_H_

#include "kernels/matrix_view.h"
#include "kernels/tile_ops.h"

namespace sinq::kernels {

inline constexpr double kKurtosisGate = 5.0;

// Non-excess kurtosis, variance floored at 1e-6; `in` must be finite.
double Kurtosis(const TileOps& ops, const MatrixView& in);
// The same from the sums of w, w^2, w^3, w^4 [4] of a [rows, cols] tensor.
double KurtosisOfSums(const double* sums, int64_t rows, int64_t cols);

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_KURTOSIS_H_
