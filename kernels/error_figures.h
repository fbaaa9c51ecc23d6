// From sums over a tensor to its figures: the same on every backend (README.md section 7).
#ifndef SINQ_KERNELS_ERROR_FIGURES_H_
#define SINQ_KERNELS_ERROR_FIGURES_H_

#include "kernels/backend.h"

namespace sinq::kernels {

struct ErrorTotals {
  double error = 0;  // (w' - w)^2
  double power = 0;  // w^2
  // Of every eighth row.
  double close_error = 0, close_power = 0;
  double overlap = 0;                             // (w' - w)*w
  double balanced_error = 0, balanced_power = 0;  // in the space in which w was coded
};

// Sets relative_error, balanced_error and cosine.
void SetErrorFigures(const ErrorTotals& totals, TensorStats& stats);

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_ERROR_FIGURES_H_
