#include "kernels/error_figures.h"

#include <cmath>

namespace sinq::kernels {

void SetErrorFigures(const ErrorTotals& t, TensorStats& stats) {
  stats.relative_error = t.power == 0 ? 0 : std::sqrt(t.error / t.power);
  stats.balanced_error = t.balanced_power == 0 ? 0 : std::sqrt(t.balanced_error / t.balanced_power);
  // ||W'||^2 from the small sums: nothing cancels, however good the codes are.
  const double quantized_power = t.close_power + 2 * t.overlap + t.close_error;
  const double product = t.close_power * quantized_power;
  stats.cosine = product > 0 ? (t.close_power + t.overlap) / std::sqrt(product) : 0;
}

}  // namespace sinq::kernels
