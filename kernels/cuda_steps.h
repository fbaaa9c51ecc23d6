// The steps of quantizing one tensor on a CUDA device, as launchers: the device code behind
// CudaBackend. The arithmetic is README.md's and the bytes are those of every other backend.
//
// Rules that hold for every launcher here
//  - It puts kernels into `stream` and returns the error of the first launch that failed
//    (a cudaError_t value, 0: none). It allocates nothing, copies nothing and never waits.
//  - All pointers are device pointers, all arrays 16-byte aligned (an arena of 256-byte pieces is).
//  - Arguments are trusted: sizes come from PlanTensor and the *Bytes functions below, the
//    caller has validated `params` and the shape (PlanesOf).
//  - Results do not depend on how the tensor is cut into panels and ranges, nor on the device.
//  - No state: any number of tensors may be in work on different streams. A tensor on its own
//    leaves the device idle between its short kernels, so a caller that wants throughput keeps
//    several in flight.
//
// Order of one tensor:
//   clear    SetBytes(arrays.summary, 0)
//   moments  profile upstream with method sinq only: LaunchMoments for ranges of rows, top to
//            bottom; then the host reads summary->moments, asks KurtosisOfSums and, if the gate
//            closes, plans again with method rtn
//   balance  LaunchBalance, then LaunchFit, for panels of tiles that cover the tensor, any order
//   (look)   the host may read arrays.outcomes now: a bad_row >= 0 ends the tensor
//   store    LaunchStore once
//   (look)   summary->faults != 0: InvalidArgument (StoreFault)
//   encode   LaunchEncode for ranges of packed rows that cover the tensor, any order
//   errors   LaunchSumErrors once; the host reads summary->error and ->power
#ifndef SINQ_KERNELS_CUDA_STEPS_H_
#define SINQ_KERNELS_CUDA_STEPS_H_

#include <cstddef>
#include <cstdint>

#include "kernels/cuda_runtime.h"  // CudaStream
#include "kernels/matrix_view.h"
#include "kernels/quant_params.h"

namespace sinq::kernels {

// Weights on the device: a whole tensor, some of its columns or some of its rows.
struct DeviceWeights {
  const void* data = nullptr;  // element [first_row, first_col] of the tensor, 16-byte aligned
  int64_t first_row = 0, rows = 0;  // held
  int64_t first_col = 0, cols = 0;  // held; multiples of the effective group size
  int64_t stride = 0;               // elements from row to row, a multiple of 16
  WeightDtype dtype = WeightDtype::kBf16;
  // These cover the whole tensor wherever the piece lies. null: all 1.
  const float* block_scales = nullptr;   // kF8E4M3: [ceil(N/128), block_scales_per_row]
  int64_t block_scales_per_row = 0;      // ceil(K/128)
  const float* row_factor = nullptr;     // [N], README.md section 8
  const float* column_factor = nullptr;  // [K]
};

// Shape and rules of one tensor [rows, cols] = [N, K].
struct CudaTensor {
  QuantParams params;  // as the steps follow them: `method` after the kurtosis gate
  int64_t rows = 0, cols = 0;
  int group = 0;       // effective group size
  int64_t tiles = 0;   // cols / group
  int64_t groups = 0;  // M = rows * tiles
  AuxStorage aux = AuxStorage::kU8;  // effective
};
CudaTensor PlanTensor(const QuantParams& params, int64_t rows, int64_t cols);

// What balancing found out about one tile. Host and device share it, as it lies.
struct DeviceTileOutcome {
  int64_t bad_row = -1;  // first row of the tensor with a NaN or infinity in this tile; -1: none
  int32_t exponent = 0;
  int32_t rounds = 0;
  float imbalance_before = 1;
  float imbalance_after = 1;
};

// What does not fit F16, bits of DeviceSummary::faults.
enum StoreFault : uint32_t {
  kColumnScaleFault = 1,
  kScaleFault = 2,
  kZeroFault = 4,
};

// Figures of one tensor; the caller clears it (all bytes 0) before the first step.
struct DeviceSummary {
  double moments[4];        // sums of w, w^2, w^3, w^4
  double error, power;      // sums over all groups (README.md section 7)
  float largest_column;     // largest magnitudes that were to be stored as F16, whatever the fault
  float largest_scale;
  float largest_zero;
  float column_factor;      // the power of two that moved from the scales to t (section 4)
  uint32_t faults;          // StoreFault bits
  uint32_t unused;          // keeps the size a multiple of 8
};

// Arrays of one tensor on the device. Group arrays are indexed e = row * tiles + tile.
struct DeviceArrays {
  float* column = nullptr;          // [K] t, after LaunchStore what a reader sees
  float* inverse_column = nullptr;  // [K] factors of w for the final codes
  float* scale = nullptr;           // [M] after LaunchStore what a reader sees
  float* zero = nullptr;            // [M] likewise
  float* error = nullptr;           // [M]
  float* power = nullptr;           // [M]
  float* exact_scale = nullptr;     // [M] profile upstream only: what its codes are made with
  float* exact_zero = nullptr;      // [M] likewise
  float* row_factor = nullptr;      // [M] 1/r, likewise
  DeviceTileOutcome* outcomes = nullptr;  // [tiles]
  DeviceSummary* summary = nullptr;
  void* partials = nullptr;  // block results of reductions over the whole tensor
};
// Device memory that one tensor's arrays take, and the arrays laid out in such a piece.
size_t DeviceArraysBytes(const CudaTensor& tensor);
DeviceArrays LayOutDeviceArrays(const CudaTensor& tensor, void* memory);

// Adds the moments of the rows in `weights` (all columns) to summary->moments. `workspace` has
// MomentsBytes(weights.rows).
size_t MomentsBytes(int64_t rows);
int LaunchMoments(const CudaTensor& tensor, const DeviceWeights& weights,
                  const DeviceArrays& arrays, void* workspace, CudaStream stream);

// A range of tiles: `weights` holds all rows and the columns of tiles [first_tile, first_tile +
// tiles), maybe more. `workspace` has PanelBytes(tensor, tiles) and must stay untouched from
// LaunchBalance to the end of LaunchFit of the same panel.
struct TilePanel {
  int64_t first_tile = 0, tiles = 0;
};
size_t PanelBytes(const CudaTensor& tensor, int64_t tiles);
// Sets arrays.outcomes, arrays.column (t, rounded to F16 in profile default) of the panel.
int LaunchBalance(const CudaTensor& tensor, const DeviceWeights& weights, const TilePanel& panel,
                  const DeviceArrays& arrays, void* workspace, CudaStream stream);
// Sets arrays.scale, arrays.zero (profile upstream: also the exact ones and row_factor).
int LaunchFit(const CudaTensor& tensor, const DeviceWeights& weights, const TilePanel& panel,
              const DeviceArrays& arrays, void* workspace, CudaStream stream);

// The stored planes but the codes, in the order of PlanesOf: planes[0] is not looked at. Sets
// arrays.column, inverse_column, scale, zero to what a reader will see, and summary->faults.
inline constexpr int kMaxPlanes = 8;
struct DevicePlanes {
  void* plane[kMaxPlanes] = {};
};
int LaunchStore(const CudaTensor& tensor, const DeviceArrays& arrays, const DevicePlanes& planes,
                CudaStream stream);

// Packed rows of plane kCodes: `rows` of them, each of `row_bytes`. Packed row q is made of the
// group rows q, q + rows, q + 2 * rows, ... : `strands` of them, each from another part of the
// tensor (README.md section 6).
struct PackedRows {
  int64_t rows = 0;
  size_t row_bytes = 0;
  int strands = 0;  // at most kMaxStrands
};
inline constexpr int kMaxStrands = 10;
PackedRows PackedRowsOf(const CudaTensor& tensor);

// Rows [first, last) of the tensor, empty if equal.
struct RowRange {
  int64_t first = 0, last = 0;
};
// The weights' rows that strand `strand` of packed rows [first, last) reads.
RowRange RowsOfStrand(const CudaTensor& tensor, int64_t first, int64_t last, int strand);

// Packed rows [first, last). `strands[s]` holds at least RowsOfStrand(.., s), all columns; the same
// piece for all of them when the tensor is on the device as a whole. `codes` receives packed row
// `first` at its beginning. Sets arrays.error and arrays.power of the group rows it codes.
struct EncodeRange {
  int64_t first = 0, last = 0;
  DeviceWeights strands[kMaxStrands];
  void* codes = nullptr;
};
int LaunchEncode(const CudaTensor& tensor, const EncodeRange& range, const DeviceArrays& arrays,
                 CudaStream stream);

// summary->error and ->power from arrays.error and arrays.power.
int LaunchSumErrors(const CudaTensor& tensor, const DeviceArrays& arrays, CudaStream stream);

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_CUDA_STEPS_H_
