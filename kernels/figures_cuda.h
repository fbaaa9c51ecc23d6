// Totals of the dearer error figures on a CUDA device, a part of LaunchSumErrors.
#ifndef SINQ_KERNELS_FIGURES_CUDA_H_
#define SINQ_KERNELS_FIGURES_CUDA_H_

#include "kernels/cuda_steps.h"

namespace sinq::kernels {

// summary->close_sums and ->largest_miss. After LaunchEncode of all groups.
[[nodiscard]] int LaunchSumFigures(const CudaTensor& tensor, const DeviceArrays& arrays,
                                   CudaStream stream);

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_FIGURES_CUDA_H_
