// HQQ on a CUDA device, a part of LaunchFit.
#ifndef SINQ_KERNELS_HQQ_CUDA_H_
#define SINQ_KERNELS_HQQ_CUDA_H_

#include "kernels/cuda_steps.h"

namespace sinq::kernels {

int LaunchHqq(const CudaTensor& tensor, const DeviceWeights& weights, const TilePanel& panel,
              const DeviceArrays& arrays, void* workspace, CudaStream stream);

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_HQQ_CUDA_H_
