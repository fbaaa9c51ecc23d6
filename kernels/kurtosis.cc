#include "kernels/kurtosis.h"

#include <algorithm>

#include "kernels/element.h"

namespace sinq::kernels {

double Kurtosis(const MatrixView& in) {
  double s1 = 0, s2 = 0, s3 = 0, s4 = 0;
  for (int64_t i = 0; i < in.rows; ++i) {
    double r1 = 0, r2 = 0, r3 = 0, r4 = 0;
    for (int64_t k = 0; k < in.cols; ++k) {
      const double d = ElementAt(in, i, k);
      const double d2 = d * d;
      r1 += d;
      r2 += d2;
      r3 += d2 * d;
      r4 += d2 * d2;
    }
    s1 += r1;
    s2 += r2;
    s3 += r3;
    s4 += r4;
  }
  const double n = static_cast<double>(in.rows) * static_cast<double>(in.cols);
  const double mean = s1 / n, m2 = s2 / n, m3 = s3 / n, m4 = s4 / n;
  const double variance = std::max(m2 - mean * mean, 1e-6);
  const double fourth = m4 - 4 * mean * m3 + 6 * mean * mean * m2 - 3 * mean * mean * mean * mean;
  return fourth / (variance * variance);
}

}  // namespace sinq::kernels
