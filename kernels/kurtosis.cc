#include "kernels/kurtosis.h"

#include <algorithm>

namespace sinq::kernels {

double Kurtosis(const TileOps& ops, const MatrixView& in) {
  double sums[4] = {};
  for (int64_t i = 0; i < in.rows; ++i) ops.add_moments(in, i, sums);
  return KurtosisOfSums(sums, in.rows, in.cols);
}

double KurtosisOfSums(const double* sums, int64_t rows, int64_t cols) {
  const double n = static_cast<double>(rows) * static_cast<double>(cols);
  const double mean = sums[0] / n, m2 = sums[1] / n, m3 = sums[2] / n, m4 = sums[3] / n;
  const double variance = std::max(m2 - mean * mean, 1e-6);
  const double fourth = m4 - 4 * mean * m3 + 6 * mean * mean * m2 - 3 * mean * mean * mean * mean;
  return fourth / (variance * variance);
}

}  // namespace sinq::kernels
