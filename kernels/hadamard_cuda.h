// Method hadamard on a CUDA device: parts of LaunchFit, LaunchEncode and LaunchScore (README.md
// section 11).
#ifndef SINQ_KERNELS_HADAMARD_CUDA_H_
#define SINQ_KERNELS_HADAMARD_CUDA_H_

#include "kernels/cuda_steps.h"

namespace sinq::kernels {

[[nodiscard]] int LaunchHadamardFit(const CudaTensor& tensor, const DeviceWeights& weights,
                                    const TilePanel& panel, const DeviceArrays& arrays,
                                    void* workspace, CudaStream stream);
[[nodiscard]] int LaunchHadamardEncode(const CudaTensor& tensor, const EncodeRange& range,
                                       const DeviceArrays& arrays, CudaStream stream);
// Errors and powers of the groups, as they stand before they are added up.
[[nodiscard]] int LaunchHadamardScore(const CudaTensor& tensor, const DeviceWeights& weights,
                                      const TilePanel& panel, const DeviceArrays& arrays,
                                      void* workspace, CudaStream stream);

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_HADAMARD_CUDA_H_
