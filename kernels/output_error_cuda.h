// OutputErrorMeter over cuBLAS: products in fp32 on the device, sums of squares in fp64 on the
// host.
#ifndef SINQ_KERNELS_OUTPUT_ERROR_CUDA_H_
#define SINQ_KERNELS_OUTPUT_ERROR_CUDA_H_

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/cublas.h"
#include "kernels/cuda_runtime.h"
#include "kernels/output_error.h"

namespace sinq::kernels {

struct CudaOutputErrorOptions {
  int device = 0;
  // Device memory that is kept for samples, blocks of rows and their outputs. Samples that do not
  // leave room for one row are refused.
  size_t device_bytes = size_t{512} << 20;
};

// Thread-safe: calls take turns on one stream. The same figure each time on one kind of device (one
// stream, a workspace of its own, pedantic fp32); within the rounding of fp32 products of the
// CPU's.
absl::StatusOr<std::unique_ptr<OutputErrorMeter>> MakeCudaOutputErrorMeter(
    std::shared_ptr<CudaRuntime> runtime, std::shared_ptr<const CublasTable> cublas,
    const CudaOutputErrorOptions& options);

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_OUTPUT_ERROR_CUDA_H_
