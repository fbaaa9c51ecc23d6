// Rules of the measuring calls that all backends share (README.md section 11).
#ifndef SINQ_KERNELS_MEASURING_H_
#define SINQ_KERNELS_MEASURING_H_

#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/matrix_view.h"
#include "kernels/quant_params.h"

namespace sinq::kernels {

// InvalidArgument for params that are not valid, FailedPrecondition for a matrix that has no groups
// of that size, Internal for block scales or folded factors of another shape.
absl::Status CheckMeasurable(const MatrixView& in, const QuantParams& params);

// Indices of candidates that measure the same balanced tiles of a matrix of `cols` columns, set by
// set; both in the order of the candidates.
std::vector<std::vector<size_t>> SharedTiles(int64_t cols,
                                             absl::Span<const QuantParams> candidates);

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_MEASURING_H_
