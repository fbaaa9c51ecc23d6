#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/element.h"
#include "kernels/non_finite.h"
#include "kernels/output_error.h"

namespace sinq::kernels {
namespace {

constexpr size_t kLanes = 16;
constexpr int64_t kRowsPerTask = 32;  // rows between two looks at `cancelled`

absl::Status CheckShape(const MatrixView& in, const MatrixView& like, const char* what) {
  if (in.rows == like.rows && in.cols == like.cols) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(what, " is [", in.rows, ", ", in.cols,
                                                 "] and the original is [", like.rows, ", ",
                                                 like.cols, "]; they must have one shape"));
}

absl::Status CheckCount(size_t count, int64_t expected, const char* what) {
  if (count == static_cast<size_t>(expected)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(what, " has ", count, " values; ", expected, " are needed"));
}

double LaneSum(const double* a, const double* b, size_t count) {
  double lane[kLanes] = {};
  size_t k = 0;
  for (; k + kLanes <= count; k += kLanes) {
    for (size_t l = 0; l < kLanes; ++l) lane[l] += a[k + l] * b[k + l];
  }
  for (size_t l = 0; k + l < count; ++l) lane[l] += a[k + l] * b[k + l];
  for (size_t half = kLanes / 2; half >= 1; half /= 2) {
    for (size_t l = 0; l < half; ++l) lane[l] += lane[l + half];
  }
  return lane[0];
}

class CpuOutputErrorMeter final : public OutputErrorMeter {
 public:
  std::string Name() const override { return "cpu"; }

  absl::StatusOr<OutputError> Measure(const OutputErrorInput& input, ParallelFor parallel_for,
                                      absl::FunctionRef<bool()> cancelled) override {
    if (absl::Status status = CheckOutputErrorInput(input); !status.ok()) return status;
    const int64_t rows = input.original.rows;
    const std::vector<double> samples(input.samples.begin(), input.samples.end());
    std::vector<OutputError> by_row(static_cast<size_t>(rows));
    std::atomic<bool> stopped = false;
    parallel_for(static_cast<size_t>((rows + kRowsPerTask - 1) / kRowsPerTask), [&](size_t task) {
      if (stopped.load(std::memory_order_relaxed) || cancelled()) {
        stopped = true;
        return;
      }
      const int64_t first = static_cast<int64_t>(task) * kRowsPerTask;
      for (int64_t i = first; i < std::min(first + kRowsPerTask, rows); ++i)
        by_row[static_cast<size_t>(i)] = OneRow(input, samples, i);
    });
    if (stopped) return absl::CancelledError("stopped between blocks of rows");
    return Total(input, by_row);
  }

 private:
  static OutputError OneRow(const OutputErrorInput& input, const std::vector<double>& samples,
                            int64_t row) {
    const size_t cols = static_cast<size_t>(input.original.cols);
    std::vector<double> weights(cols), difference(cols);
    for (size_t k = 0; k < cols; ++k) {
      const int64_t col = static_cast<int64_t>(k);
      const double t =
          input.column_scale.empty() ? 1.0 : static_cast<double>(input.column_scale[k]);
      const double original = static_cast<double>(ElementAt(input.original, row, col));
      const double reconstructed = static_cast<double>(ElementAt(input.reconstructed, row, col));
      weights[k] = original / t;
      difference[k] = (reconstructed - original) / t;
    }
    OutputError sums;
    for (size_t first = 0; first < samples.size(); first += cols) {
      const double error = LaneSum(&samples[first], difference.data(), cols);
      const double output = LaneSum(&samples[first], weights.data(), cols);
      sums.error += error * error;
      sums.power += output * output;
    }
    return sums;
  }

  static absl::StatusOr<OutputError> Total(const OutputErrorInput& input,
                                           const std::vector<OutputError>& by_row) {
    OutputError total;
    for (const OutputError& row : by_row) {
      total.error += row.error;
      total.power += row.power;
    }
    if (std::isfinite(total.error) && std::isfinite(total.power)) return total;
    if (absl::Status status = FirstNonFinite(input.original, 0); absl::IsInvalidArgument(status))
      return status;
    if (absl::Status status = FirstNonFinite(input.reconstructed, 0);
        absl::IsInvalidArgument(status))
      return status;
    return absl::InvalidArgumentError("a sample is not finite, or the outputs overflow");
  }
};

}  // namespace

double OutputError::Relative() const { return power == 0 ? 0 : std::sqrt(error / power); }

absl::Status CheckOutputErrorInput(const OutputErrorInput& input) {
  const MatrixView& original = input.original;
  if (original.rows < 1 || original.cols < 1)
    return absl::InvalidArgumentError("the matrix is empty");
  absl::Status status = CheckShape(input.reconstructed, original, "the reconstruction");
  if (!status.ok()) return status;
  if (input.tokens < 1 || input.tokens > (int64_t{1} << 40) / original.cols)
    return absl::InvalidArgumentError(absl::StrCat("tokens is ", input.tokens,
                                                   "; it must be at least 1 and the samples at "
                                                   "most 2^40 values"));
  status = CheckCount(input.samples.size(), input.tokens * original.cols, "samples");
  if (!status.ok()) return status;
  if (input.column_scale.empty()) return absl::OkStatus();
  status = CheckCount(input.column_scale.size(), original.cols, "column_scale");
  if (!status.ok()) return status;
  for (size_t k = 0; k < input.column_scale.size(); ++k) {
    if (std::isfinite(input.column_scale[k]) && input.column_scale[k] > 0) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "column_scale[", k, "] is ", input.column_scale[k], "; it must be positive and finite"));
  }
  return absl::OkStatus();
}

std::unique_ptr<OutputErrorMeter> MakeCpuOutputErrorMeter() {
  return std::make_unique<CpuOutputErrorMeter>();
}

}  // namespace sinq::kernels
