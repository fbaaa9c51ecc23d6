// What a device found out about a tensor, for the host.
#ifndef SINQ_KERNELS_CUDA_OUTCOMES_H_
#define SINQ_KERNELS_CUDA_OUTCOMES_H_

#include <vector>

#include "absl/status/status.h"
#include "kernels/backend.h"  // TensorStats
#include "kernels/cuda_steps.h"

namespace sinq::kernels {

// InvalidArgument naming the first element of `in` that is not finite, if a tile has one.
absl::Status CheckFinite(const std::vector<DeviceTileOutcome>& outcomes, const MatrixView& in);
// The figures that TensorStats has of tiles.
void AddOutcomes(const std::vector<DeviceTileOutcome>& outcomes, TensorStats& stats);
// The figures of errors, once all steps are through.
void SetErrorFigures(const DeviceSummary& summary, TensorStats& stats);

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_CUDA_OUTCOMES_H_
