// How much device memory a tensor takes and into which pieces it is cut to fit: plain host code.
//
// What stays for the whole tensor (fixed):
//   arrays   scales, zeros, t and error figures (DeviceArraysBytes): about 16 / g bytes for a
//   weight,
//            28 / g in profile upstream
//   planes   the stored planes but the codes: at most 4 / g bytes for a weight, and 2 K
//   factors  block scales and folded factors
// What moves through the rest of the arena (moving), one of:
//   resident the weights and the codes as a whole, and the workspace of one panel of tiles
//   in pieces  first columns, all rows of some tiles, with the workspace of that panel; then rows,
//            those that some packed rows read, with their codes
// The bytes that come out do not depend on the choice (cuda_steps.h).
#ifndef SINQ_KERNELS_CUDA_MEMORY_PLAN_H_
#define SINQ_KERNELS_CUDA_MEMORY_PLAN_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "kernels/cuda_steps.h"
#include "kernels/matrix_view.h"
#include "kernels/quant_params.h"

namespace sinq::kernels {

// All sizes are multiples of kArenaAlignment (cuda_arena.h).
struct CudaMemoryPlan {
  CudaTensor tensor;
  bool resident = false;
  size_t arrays_bytes = 0;
  size_t planes_bytes = 0;
  size_t factors_bytes = 0;
  // The moving part. Resident: weights, codes and workspace lie side by side. In pieces: the three
  // uses of moving_bytes follow each other.
  size_t moving_bytes = 0;
  int64_t panel_tiles = 0;  // tiles that are balanced at once
  int64_t moment_rows = 0;  // rows whose moments are taken at once; 0: none are asked for
  int64_t encode_rows = 0;  // packed rows that are made at once

  size_t fixed_bytes() const { return arrays_bytes + planes_bytes + factors_bytes; }
  size_t total_bytes() const { return fixed_bytes() + moving_bytes; }
};

// The plan with the largest pieces whose fixed part fits `arena_bytes` and whose moving part fits
// both the rest of it and `moving_limit_bytes`. `in.data` is not looked at; params and shape are
// valid (Validate, NativePlanes). ResourceExhausted with the bytes that the smallest pieces take.
absl::StatusOr<CudaMemoryPlan> PlanCudaMemory(const MatrixView& in, const QuantParams& params,
                                              size_t arena_bytes, size_t moving_limit_bytes);

// Sizes that the plan and its user must agree on.
size_t CodesBytes(const CudaTensor& tensor, int64_t packed_rows);
size_t WeightsBytes(WeightDtype dtype, int64_t rows, int64_t cols);
// Whether the kurtosis gate of profile upstream has to be asked for.
bool AsksKurtosis(const QuantParams& params);
// Workspace of a panel of `tiles` tiles, also if the gate turns the method into rtn.
size_t PanelWorkspaceBytes(const CudaTensor& tensor, int64_t tiles);

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_CUDA_MEMORY_PLAN_H_
