// What quantizing did to a layer's outputs on the sample inputs that came with the recipe
// (kernels/output_error.h). Deterministic: always the CPU's arithmetic.
#ifndef SINQ_SERVER_WORKER_OUTPUT_CHECK_H_
#define SINQ_SERVER_WORKER_OUTPUT_CHECK_H_

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/backend.h"
#include "server/worker/worker_pool.h"
#include "kernels/matrix_view.h"
#include "kernels/quant_params.h"

namespace sinq {

// Whether there is something to compare: samples, and a layout whose values the dense layout gives.
bool HasOutputCheck(const kernels::QuantParams& params, bool has_samples);
// Bytes of the dequantized copy, 64-byte aligned. The dense layout's own scratch comes on top.
uint64_t OutputCheckBytes(kernels::WeightDtype dtype, int64_t rows, int64_t cols);
kernels::QuantParams OutputCheckParams(const kernels::QuantParams& params);

// ||X W'T - X WT|| / ||X WT|| with X the samples of `in.activations` and W' as `params` makes it,
// rounded to the dtype of `in` (BF16 for FP8). `dense` has OutputCheckBytes, `scratch` what the
// backend needs for OutputCheckParams. Errors as Backend::Quantize.
absl::StatusOr<double> CheckOutput(const kernels::MatrixView& in,
                                   const kernels::QuantParams& params,
                                   const Computing& computing, absl::Span<std::byte> dense,
                                   absl::Span<std::byte> scratch,
                                   absl::FunctionRef<bool()> cancelled);

}  // namespace sinq

#endif  // SINQ_SERVER_WORKER_OUTPUT_CHECK_H_
