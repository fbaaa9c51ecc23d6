#include "server/worker/output_check.h"

#include "kernels/output_error.h"
#include "server/base/aligned_buffer.h"

namespace sinq {
namespace {

kernels::WeightDtype DenseDtype(kernels::WeightDtype dtype) {
  return dtype == kernels::WeightDtype::kF8E4M3 ? kernels::WeightDtype::kBf16 : dtype;
}

uint64_t DenseBytes(kernels::WeightDtype dtype, int64_t rows, int64_t cols) {
  return static_cast<uint64_t>(rows) * static_cast<uint64_t>(cols) *
         kernels::BytesPerElement(DenseDtype(dtype));
}

}  // namespace

bool HasOutputCheck(const kernels::QuantParams& params, bool has_samples) {
  return has_samples && (params.layout == kernels::Layout::kSinq ||
                         params.layout == kernels::Layout::kDense);
}

uint64_t OutputCheckBytes(kernels::WeightDtype dtype, int64_t rows, int64_t cols) {
  return AlignedBytes(DenseBytes(dtype, rows, cols));
}

kernels::QuantParams OutputCheckParams(const kernels::QuantParams& params) {
  kernels::QuantParams dense = params;
  dense.layout = kernels::Layout::kDense;
  return dense;
}

absl::StatusOr<double> CheckOutput(const kernels::MatrixView& in,
                                   const kernels::QuantParams& params,
                                   const Computing& computing, absl::Span<std::byte> dense,
                                   absl::Span<std::byte> scratch,
                                   absl::FunctionRef<bool()> cancelled) {
  const absl::Span<std::byte> values =
      dense.subspan(0, static_cast<size_t>(DenseBytes(in.dtype, in.rows, in.cols)));
  kernels::TensorStats unused;
  const absl::Status status =
      computing.backend.Quantize(in, OutputCheckParams(params), scratch, {values},
                                 computing.parallel_for, cancelled, &unused);
  if (!status.ok()) return status;
  kernels::OutputErrorInput input;
  input.original = in;
  input.reconstructed = {values.data(), in.rows, in.cols, DenseDtype(in.dtype), {}};
  input.samples = in.activations->samples;
  input.tokens = in.activations->tokens;
  const absl::StatusOr<kernels::OutputError> error =
      kernels::MakeCpuOutputErrorMeter()->Measure(input, computing.parallel_for, cancelled);
  if (!error.ok()) return error.status();
  return error->Relative();
}

}  // namespace sinq
