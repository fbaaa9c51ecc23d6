// The column factor of the activation-aware methods (README.md section 10).
#ifndef SINQ_TESTS_REFERENCE_REFERENCE_ACTIVATIONS_H_
#define SINQ_TESTS_REFERENCE_REFERENCE_ACTIVATIONS_H_

#include <vector>

#include "absl/status/statusor.h"
#include "tests/reference/reference.h"

namespace sinq::kernels {

// c [K] of the winning candidate. `balances` are those of the 1D tiles. InvalidArgument as
// Backend::Quantize for missing or wrong activations.
absl::StatusOr<std::vector<float>> ReferenceColumnFactor(const MatrixView& in,
                                                         const std::vector<float>& w,
                                                         const QuantParams& params, int group,
                                                         const std::vector<TileBalance>& balances);

}  // namespace sinq::kernels

#endif  // SINQ_TESTS_REFERENCE_REFERENCE_ACTIVATIONS_H_
