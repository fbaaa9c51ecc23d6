// The one place where a kernel is launched. Kernels take one struct by value, so that a launch has
// no list of arguments to get wrong.
#ifndef SINQ_KERNELS_CUDA_LAUNCH_H_
#define SINQ_KERNELS_CUDA_LAUNCH_H_

#include <cuda_runtime.h>

#include <initializer_list>

#include "kernels/cuda_runtime.h"  // CudaStream
#include "kernels/launch_config.h"

namespace sinq::kernels {

// Returns a cudaError_t value. A shape without blocks has nothing to do and launches nothing.
template <class Params>
[[nodiscard]] int LaunchKernel(void (*kernel)(Params), const LaunchShape& shape, CudaStream stream,
                               const Params& params) {
  if (shape.grid == 0) return 0;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(shape.grid);
  config.blockDim = dim3(shape.block);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  return static_cast<int>(cudaLaunchKernelEx(&config, kernel, params));
}

// The first error of a list; every launch of it is attempted.
[[nodiscard]] inline int FirstError(std::initializer_list<int> errors) {
  for (const int error : errors) {
    if (error != 0) return error;
  }
  return 0;
}

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_CUDA_LAUNCH_H_
