#include "kernels/cuda_outcomes.h"

#include <algorithm>

#include "kernels/error_figures.h"
#include "kernels/non_finite.h"

namespace sinq::kernels {

absl::Status CheckFinite(const std::vector<DeviceTileOutcome>& outcomes, const MatrixView& in) {
  int64_t first = -1;
  for (const DeviceTileOutcome& outcome : outcomes) {
    if (outcome.bad_row >= 0 && (first < 0 || outcome.bad_row < first)) first = outcome.bad_row;
  }
  return first < 0 ? absl::OkStatus() : FirstNonFinite(in, first);
}

void AddOutcomes(const std::vector<DeviceTileOutcome>& outcomes, TensorStats& stats) {
  int64_t rounds = 0;
  for (const DeviceTileOutcome& outcome : outcomes) {
    stats.imbalance_before = std::max<double>(stats.imbalance_before, outcome.imbalance_before);
    stats.imbalance_after = std::max<double>(stats.imbalance_after, outcome.imbalance_after);
    ++stats.tiles_by_rounds[static_cast<size_t>(outcome.rounds)];
    rounds += outcome.rounds;
  }
  stats.mean_rounds = static_cast<double>(rounds) / static_cast<double>(outcomes.size());
}

void SetErrorFigures(const DeviceSummary& summary, TensorStats& stats) {
  const double(&close)[5] = summary.close_sums;
  SetErrorFigures(
      ErrorTotals{summary.error, summary.power, close[0], close[1], close[2], close[3], close[4]},
      stats);
  stats.max_abs_error = static_cast<double>(summary.largest_miss);
}

}  // namespace sinq::kernels
