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
//   fold     folded inputs only: LaunchFold for whatever piece a later step takes, which then takes
//            the folded copy
//   moments  HasKurtosisGate only: LaunchMoments for ranges of rows, top to bottom; then the host
//            reads summary->moments, asks KurtosisOfSums and, if the gate closes, plans again with
//            method rtn
//   search   methods that need activations only: LaunchBalance and LaunchNoteTiles of
//            SearchTensorOf for panels that cover its tiles; LaunchCandidates; LaunchSearch for
//            ranges of rows that cover the tensor; LaunchChooseFactor
//   balance  LaunchBalance, then LaunchScaleColumns if there was a search, then LaunchFit, for
//            panels of tiles that cover the tensor, any order
//   (look)   the host may read arrays.outcomes now: a bad_row >= 0 ends the tensor
//   store    LaunchStore once
//   (look)   summary->faults != 0: InvalidArgument (StoreFault)
//   encode   LaunchEncode for ranges of packed rows that cover the tensor, any order; where
//            IsPackedApart, each range of rows goes through LaunchPack afterwards
//   errors   LaunchSumErrors once; the host reads the summary
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
  const float* row_factor = nullptr;     // [N], README.md section 8.1; only LaunchFold looks at
  const float* column_factor = nullptr;  // [K]  these two
};

// Shape and rules of one tensor [rows, cols] = [N, K].
struct CudaTensor {
  QuantParams params;  // as the steps follow them: method after the kurtosis gate, aux effective
  int64_t rows = 0, cols = 0;
  int group = 0;               // effective group size
  int64_t groups_per_row = 0;  // cols / group
  int64_t groups = 0;          // M = rows * groups_per_row
  int64_t tile_rows = 0;       // all rows, or `group` in squares
  int64_t tiles = 0;           // numbered along the rows
  int64_t columns = 0;         // length of t: tiles * group
  AuxStorage aux = AuxStorage::kU8;  // effective
  bool balances = false;       // tiles get a t and r of their own
  bool scales_groups = false;  // as kernels::ScalesGroups, where scales are fitted
  WeightDtype dense = WeightDtype::kBf16;  // what layout kDense stores: the input's, BF16 for FP8
  AuxStorage column_storage = AuxStorage::kF16;  // what t is rounded to when tiles are balanced
  bool quantizes = true;  // false: balanced tiles are measured, nothing is stored
  bool measures_errors = false;
  bool has_candidates = false;   // the column scale is divided by a factor that inputs choose
  bool notes_magnitudes = false;  // of SearchTensorOf
};
// `input`: the dtype of the weights before any folding.
CudaTensor PlanTensor(const QuantParams& params, int64_t rows, int64_t cols,
                      WeightDtype input = WeightDtype::kBf16);
// For Backend::MeasureColumns: LaunchBalance alone, which then leaves t in arrays.column.
CudaTensor PlanColumnMeasure(const QuantParams& params, int64_t rows, int64_t cols);
// For Backend::MeasureErrors of one candidate: LaunchBalance and LaunchScore for panels that cover
// the tensor, then LaunchSumScores. Candidates that share their tiles (measuring.h) may follow one
// LaunchBalance, each with arrays of its own: their panels are laid out alike.
CudaTensor PlanErrorMeasure(const QuantParams& params, int64_t rows, int64_t cols);
// The 1D tiles that the search for a column factor looks at, whatever the tiling of `tensor`; uses
// its arrays.
CudaTensor SearchTensorOf(const CudaTensor& tensor);
// Whether LaunchMoments must come first (README.md section 3).
bool HasKurtosisGate(const QuantParams& params);

// What balancing found out about one tile. Host and device share it, as it lies.
struct DeviceTileOutcome {
  int64_t bad_row = -1;  // first row of the tensor with a NaN or infinity in this tile; -1: none
  int32_t exponent = 0;
  int32_t rounds = 0;
  float imbalance_before = 1;
  float imbalance_after = 1;
};

// What does not fit the dtype that it is stored as, bits of DeviceSummary::faults.
enum StoreFault : uint32_t {
  kColumnScaleFault = 1,
  kScaleFault = 2,
  kZeroFault = 4,  // or the minimum that stands for it (GGUF Q4_1)
};

// Figures of one tensor; the caller clears it (all bytes 0) before the first step.
struct DeviceSummary {
  double moments[4];        // sums of w, w^2, w^3, w^4
  double error, power;      // sums over all groups (README.md section 7)
  // Of the groups in every eighth row: error, power, (w' - w)*w, and the first two where w was
  // coded.
  double close_sums[5];
  float largest_column;     // largest magnitudes that were to be stored, whatever the fault
  float largest_scale;
  float largest_zero;
  float column_factor;      // the power of two that moved from the scales to t (section 4)
  uint32_t faults;          // StoreFault bits
  uint32_t candidate;       // the column factor that won the search
  float largest_miss;       // of all |w' - w|
  uint32_t unused;          // keeps the size a multiple of 8
};

// Arrays of one tensor on the device. Group arrays are indexed e = row * groups_per_row + j, in
// both tilings.
struct DeviceArrays {
  float* column = nullptr;          // [columns] t, after LaunchStore what a reader sees
  float* inverse_column = nullptr;  // [columns] factors of w for the final codes
  // Group arrays only where the tensor is quantized.
  float* scale = nullptr;           // [M] after LaunchStore what a reader sees
  float* zero = nullptr;            // [M] likewise
  float* error = nullptr;           // [M]
  float* power = nullptr;           // [M]
  float* largest = nullptr;         // [M] |w' - w|
  float* overlap = nullptr;         // of the groups in every eighth row (close_rows.h)
  float* balanced_error = nullptr;  // likewise
  float* balanced_power = nullptr;  // likewise
  float* exact_scale = nullptr;     // [M] profile upstream only: what its codes are made with
  float* exact_zero = nullptr;      // [M] likewise
  float* row_factor = nullptr;      // [M] 1/r, likewise
  float* minimum = nullptr;         // [M] GGUF Q4_1 only, after LaunchStore
  // Methods that need activations only.
  float* input_magnitude = nullptr;   // [cols]
  float* weight_magnitude = nullptr;  // [cols]
  float* candidates = nullptr;        // [kAlphaSteps][cols] column factors c
  double* search_error = nullptr;     // [kAlphaSteps][blocks of 32 rows]
  double* tile_error = nullptr;     // [tiles] of PlanErrorMeasure only
  double* tile_power = nullptr;     // [tiles] likewise
  DeviceTileOutcome* outcomes = nullptr;  // [tiles]
  DeviceSummary* summary = nullptr;
  void* partials = nullptr;  // block results of reductions over the whole tensor
};
// Device memory that one tensor's arrays take, and the arrays laid out in such a piece.
size_t DeviceArraysBytes(const CudaTensor& tensor);
DeviceArrays LayOutDeviceArrays(const CudaTensor& tensor, void* memory);

// Folded inputs: the weights of a piece as F32, [rows, cols] without gaps, and the view of them
// that every later step takes instead. `folded` has FoldedBytes(weights).
size_t FoldedBytes(const DeviceWeights& weights);
DeviceWeights FoldedView(const DeviceWeights& weights, const void* folded);
int LaunchFold(const DeviceWeights& weights, void* folded, CudaStream stream);

// Adds the moments of the rows in `weights` (all columns) to summary->moments. `workspace` has
// MomentsBytes(weights.rows).
size_t MomentsBytes(int64_t rows);
int LaunchMoments(const CudaTensor& tensor, const DeviceWeights& weights,
                  const DeviceArrays& arrays, void* workspace, CudaStream stream);

// A range of tiles: `weights` holds at least ExtentOf(panel). `workspace` has PanelBytes(tensor,
// tiles) and must stay untouched from LaunchBalance to the end of LaunchFit of the same panel.
struct TilePanel {
  int64_t first_tile = 0, tiles = 0;
};
// Rows [first, last) of the tensor, empty if equal.
struct RowRange {
  int64_t first = 0, last = 0;
};
struct PanelExtent {
  RowRange rows;
  int64_t first_col = 0, cols = 0;
};
// The smallest rectangle around the tiles.
PanelExtent ExtentOf(const CudaTensor& tensor, const TilePanel& panel);
size_t PanelBytes(const CudaTensor& tensor, int64_t tiles);
// Sets arrays.outcomes, arrays.column (t, in profile default rounded as it will be stored) of the
// panel.
int LaunchBalance(const CudaTensor& tensor, const DeviceWeights& weights, const TilePanel& panel,
                  const DeviceArrays& arrays, void* workspace, CudaStream stream);
// Sets arrays.scale, arrays.zero (profile upstream: also the exact ones and row_factor).
int LaunchFit(const CudaTensor& tensor, const DeviceWeights& weights, const TilePanel& panel,
              const DeviceArrays& arrays, void* workspace, CudaStream stream);

// ---- activations (README.md section 10)

// What is known of a layer's inputs, on the device.
struct DeviceInputs {
  const float* values = nullptr;  // [rows, cols]: samples, or second moments
  int64_t rows = 0;               // tokens, or cols
  bool are_moments = false;
};
// After LaunchBalance of a panel of `search`, in the same workspace: sets weight_magnitude of its
// columns and, in profile upstream, row_factor to r. `weights` holds all rows of the panel.
int LaunchNoteTiles(const CudaTensor& search, const DeviceWeights& weights, const TilePanel& panel,
                    const DeviceArrays& arrays, void* workspace, CudaStream stream);
// Sets arrays.candidates. After all panels.
int LaunchCandidates(const CudaTensor& tensor, const DeviceInputs& inputs,
                     const DeviceArrays& arrays, CudaStream stream);
// Sets arrays.search_error of the rows in `weights` (all columns): the first is a multiple of 32,
// their number too or they are the last.
int LaunchSearch(const CudaTensor& tensor, const DeviceWeights& weights,
                 const DeviceInputs& inputs, const DeviceArrays& arrays, CudaStream stream);
// Sets summary->candidate.
int LaunchChooseFactor(const CudaTensor& tensor, const DeviceArrays& arrays, CudaStream stream);
// Between LaunchBalance and LaunchFit of a panel: divides arrays.column by the chosen factor.
int LaunchScaleColumns(const CudaTensor& tensor, const TilePanel& panel,
                       const DeviceArrays& arrays, void* workspace, CudaStream stream);

// ---- measuring (section 11)

// Sets arrays.tile_error and tile_power of the panel.
int LaunchScore(const CudaTensor& tensor, const DeviceWeights& weights, const TilePanel& panel,
                const DeviceArrays& arrays, void* workspace, CudaStream stream);
// Measurement::error and ::power into summary->error and ->power.
int LaunchSumScores(const CudaTensor& tensor, const DeviceArrays& arrays, CudaStream stream);

// The stored planes but the codes, in the order of PlanesOf: plane[0] is not looked at. Sets
// arrays.column, inverse_column, scale, zero to what a reader will see, and summary->faults.
inline constexpr int kMaxPlanes = 8;
struct DevicePlanes {
  void* plane[kMaxPlanes] = {};
};
int LaunchStore(const CudaTensor& tensor, const DeviceArrays& arrays, const DevicePlanes& planes,
                CudaStream stream);

// What LaunchEncode writes: `rows` packed rows, each of `row_bytes`. Packed row q is made of the
// group rows q, q + rows, q + 2 * rows, ... : `strands` of them, each from another part of the
// tensor (README.md section 6). In layouts that do not pack so there is one strand, and a packed
// row holds a group's codes as bytes, or its dense values: together the matrix row by row.
struct PackedRows {
  int64_t rows = 0;
  size_t row_bytes = 0;
  int strands = 0;  // at most kMaxStrands
};
inline constexpr int kMaxStrands = 10;
PackedRows PackedRowsOf(const CudaTensor& tensor);

// The weights' rows that strand `strand` of packed rows [first, last) reads.
RowRange RowsOfStrand(const CudaTensor& tensor, int64_t first, int64_t last, int strand);

// Packed rows [first, last). `strands[s]` holds at least RowsOfStrand(.., s), all columns; the same
// piece for all of them when the tensor is on the device as a whole. `codes` receives packed row
// `first` at its beginning. Sets the error figures in the arrays, from `error` to `balanced_power`,
// of the group rows it codes.
struct EncodeRange {
  int64_t first = 0, last = 0;
  DeviceWeights strands[kMaxStrands];
  void* codes = nullptr;
};
int LaunchEncode(const CudaTensor& tensor, const EncodeRange& range, const DeviceArrays& arrays,
                 CudaStream stream);

// Layouts whose codes LaunchEncode leaves as bytes for LaunchPack.
bool IsPackedApart(const CudaTensor& tensor);
// What some rows of the tensor become in the first plane (section 12): `lines` pieces of
// `line_bytes`, `plane_pitch_bytes` apart in the plane, the first at `plane_offset_bytes`.
// rows.first is a multiple of 32, and rows.last too or the number of rows.
struct PackedPiece {
  int64_t lines = 0;
  size_t line_bytes = 0, plane_pitch_bytes = 0, plane_offset_bytes = 0;
};
PackedPiece PieceOf(const CudaTensor& tensor, const RowRange& rows);
// Packs codes [rows, cols] into `lines`: the piece without gaps. After LaunchStore.
int LaunchPack(const CudaTensor& tensor, const RowRange& rows, const uint8_t* codes,
               const DeviceArrays& arrays, void* lines, CudaStream stream);

// The sums and extremes of the error figures in the arrays into the summary: error, power,
// close_sums, largest_miss.
int LaunchSumErrors(const CudaTensor& tensor, const DeviceArrays& arrays, CudaStream stream);

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_CUDA_STEPS_H_
