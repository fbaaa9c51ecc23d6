// What quantizing does to the outputs of a layer: ||X W'T - X WT|| / ||X WT|| for samples X of its
// input. The figure that weights alone cannot give: errors in columns that see large inputs count
// more.
#ifndef SINQ_KERNELS_OUTPUT_ERROR_H_
#define SINQ_KERNELS_OUTPUT_ERROR_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/backend.h"
#include "kernels/matrix_view.h"

namespace sinq::kernels {

struct OutputErrorInput {
  MatrixView original;              // W  [N, K]
  MatrixView reconstructed;         // W' [N, K], of any dtype: what a reader makes of the planes
  absl::Span<const float> samples;  // X [tokens, K] row-major
  int64_t tokens = 0;               // at least 1
  // [K], positive; empty: all 1. With t both matrices are divided by it, column by column: the
  // samples are then those of the balanced space.
  absl::Span<const float> column_scale;
};

struct OutputError {
  double error = 0;         // sum over tokens and rows of (X W'T - X WT)^2
  double power = 0;         // sum over tokens and rows of (X WT)^2
  double Relative() const;  // sqrt(error / power), 0 if power is 0
};

class OutputErrorMeter {
 public:
  virtual ~OutputErrorMeter() = default;
  virtual std::string Name() const = 0;  // "cpu", "cuda"
  // InvalidArgument names what does not fit together, or the first element that is not finite.
  // Cancelled when `cancelled` says so; it is asked between blocks of rows. Errors of a device as
  // Backend::Quantize.
  virtual absl::StatusOr<OutputError> Measure(const OutputErrorInput& input,
                                              ParallelFor parallel_for,
                                              absl::FunctionRef<bool()> cancelled) = 0;
};

// Thread-safe. The same figure on every machine and for every number of threads (README.md section
// 7.1).
std::unique_ptr<OutputErrorMeter> MakeCpuOutputErrorMeter();

// OK, or what Measure answers to an input that does not fit together.
absl::Status CheckOutputErrorInput(const OutputErrorInput& input);

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_OUTPUT_ERROR_H_
