// How much device memory a tensor takes and into which pieces it is cut to fit: plain host code.
//
// What stays for the whole tensor (fixed):
//   arrays   scales, zeros, t and error figures (DeviceArraysBytes): about 22 / g bytes for a
//            weight, 34 / g in profile upstream
//   planes   the stored planes but the first: at most 8 / g bytes for a weight, and 4 K
//   factors  block scales and folded factors
//   inputs   samples or second moments, for the methods that need activations: 4 bytes a value.
//            Where they do not fit the tensor is for the CPU
// What moves through the rest of the arena (moving), one of:
//   resident the weights and the codes as a whole, and the workspace of one panel of tiles
//   in pieces  first the rectangles around some tiles, with the workspace of that panel; then rows,
//            those that some packed rows read, with their codes. The search of the methods that
//            need activations goes before, over panels and blocks of rows of its own
// Folded weights lie there twice, as they came and multiplied out in fp32; layouts that are packed
// apart need their codes twice, as bytes and packed.
// The bytes that come out do not depend on the choice (cuda_steps.h).
#ifndef SINQ_KERNELS_CUDA_MEMORY_PLAN_H_
#define SINQ_KERNELS_CUDA_MEMORY_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cuda_steps.h"
#include "kernels/layout.h"
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
  size_t inputs_bytes = 0;
  // The moving part. Resident: weights, codes and workspace lie side by side. In pieces: the three
  // uses of moving_bytes follow each other.
  size_t moving_bytes = 0;
  int64_t panel_tiles = 0;  // tiles that are balanced at once
  int64_t moment_rows = 0;  // rows whose moments are taken at once; 0: none are asked for
  // Methods that need activations; else 0.
  int64_t search_tiles = 0;  // of SearchTensorOf, that are noted at once
  int64_t search_rows = 0;   // whole blocks of 32, or all: what is searched at once
  // Packed rows that are made at once; where IsPackedApart, those of whole blocks of kRowsApart
  // rows or of all rows.
  int64_t encode_rows = 0;

  size_t fixed_bytes() const {
    return arrays_bytes + planes_bytes + factors_bytes + inputs_bytes;
  }
  size_t total_bytes() const { return fixed_bytes() + moving_bytes; }
};

// The plan with the largest pieces whose fixed part fits `arena_bytes` and whose moving part fits
// both the rest of it and `moving_limit_bytes`. `in.data` is not looked at; params, shape and
// activations are valid (Validate, PlanesOf, CheckActivations). ResourceExhausted with the bytes
// that the smallest pieces take.
absl::StatusOr<CudaMemoryPlan> PlanCudaMemory(const MatrixView& in, const QuantParams& params,
                                              size_t arena_bytes, size_t moving_limit_bytes);

// The same for measuring: each tensor's arrays stay, rectangles around some tiles move.
struct CudaMeasurePlan {
  std::vector<CudaTensor> tensors;  // of one shape, share their balanced tiles
  size_t arrays_bytes = 0;          // of all of them
  size_t factors_bytes = 0;
  size_t moving_bytes = 0;
  int64_t panel_tiles = 0;

  size_t fixed_bytes() const { return arrays_bytes + factors_bytes; }
  size_t total_bytes() const { return fixed_bytes() + moving_bytes; }
};
// `tensors`: PlanColumnMeasure, or PlanErrorMeasure of candidates that share tiles. Errors as
// PlanCudaMemory.
absl::StatusOr<CudaMeasurePlan> PlanCudaMeasure(const MatrixView& in,
                                                std::vector<CudaTensor> tensors,
                                                size_t arena_bytes, size_t moving_limit_bytes);

// Rows that LaunchPack takes are cut at multiples of this.
inline constexpr int64_t kRowsApart = 32;

// Sizes that the plan and its user must agree on.
size_t CodesBytes(const CudaTensor& tensor, int64_t packed_rows);
// [rows, cols] of `in` as they come, and with their folded copy.
size_t RawBytes(const MatrixView& in, int64_t rows, int64_t cols);
size_t WeightsBytes(const MatrixView& in, int64_t rows, int64_t cols);
// Workspace of a panel of `tiles` tiles, also if the gate turns the method into rtn.
size_t PanelWorkspaceBytes(const CudaTensor& tensor, int64_t tiles);
// What the first plane's dtype is where the layout stores dense weights.
PlaneDtype DenseDtype(WeightDtype dtype);

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_CUDA_MEMORY_PLAN_H_
