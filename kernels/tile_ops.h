// The inner loops, one table of functions per SIMD target. Internal to the CPU backend.
#ifndef SINQ_KERNELS_TILE_OPS_H_
#define SINQ_KERNELS_TILE_OPS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/matrix_view.h"
#include "kernels/quant_params.h"

namespace sinq::kernels {

inline constexpr int kMaxGroup = 128;
inline constexpr int kRowBlock =
    32;  // rows summed in fp32 before fp64 takes over (README.md section 1)
inline constexpr int kVirtualLanes = 16;

// Which part of the matrix a tile is: all rows and `group` columns, or a square.
struct TileRange {
  int64_t first_row = 0, rows = 0, first_col = 0;
  int group = 0;
};

// Folded weights are no BF16 values any more.
inline bool TilesAreBf16(const MatrixView& in) {
  return in.dtype == WeightDtype::kBf16 && !in.is_folded();
}

// A tile copied out of the matrix: `rows` x `group`, contiguous; BF16 bits if `is_bf16`, else fp32.
struct Tile {
  const void* data = nullptr;
  bool is_bf16 = false;
  int64_t rows = 0;
  int group = 0;
};

// What the copying pass sees on its way.
struct TileScan {
  float largest = 0;                // max |w|
  bool has_constant_group = false;  // some row has all values equal and not zero
  int64_t bad_row = -1;             // first row with a NaN or infinity; -1: none
};

// Standard deviations of one tile; row_std holds `rows` rounded up to 16, col_std `group`.
struct TileStats {
  float* row_std = nullptr;
  float* col_std = nullptr;
  double* col_square_sum = nullptr;  // [group]
};

// What a zero is rounded to before codes are made (zeta, README.md section 4).
enum class ZeroGrid : uint8_t {
  kSixteenths,
  k256ths,  // of a codebook
  kInteger,
  kIntegerFromOne,
  kF16,
  kBf16,
  kF32,
};

// How scale and zero of a group are searched for (README.md sections 4 and 9).
struct FitParams {
  int bits = 4;
  bool symmetric = false;
  bool refine = true;  // false: range only
  bool scales_groups = false;  // each group has a power of two of its own (README.md section 8.2)
  Rounding rounding = Rounding::kUniform;
  ZeroGrid zero_grid = ZeroGrid::kSixteenths;
};

// Profile upstream: y = (w*u)*v.
struct UpstreamFactors {
  const float* column = nullptr;  // [group] u
  const float* row = nullptr;     // [rows] v
};

inline constexpr int kHqqRounds = 20;

// What HQQ's rounds leave of one tile (README.md section 9.2). Arrays by row; `history` has
// kHqqRounds arrays of `stride` zeros, one after each round.
struct HqqOutcome {
  float* scale = nullptr;    // 1 / multiplier
  float* inverse = nullptr;  // the multiplier of y
  float* history = nullptr;
  int64_t stride = 0;
  double error[kHqqRounds] = {};  // sums of |y - y'| over the tile
};

// How a value becomes a code.
enum class Coding : uint8_t {
  kStored,      // fma(w*column, rcp(scale), zero): profile default
  kDivide,      // ((w*column)*row_factor) / scale + zero: profile upstream
  kMultiply,    // the same with * instead of /: HQQ in profile upstream
  kBook,        // kStored, then the nearest value of the codebook
  kBookDivide,  // kDivide, then the nearest value of the codebook
  kHadamard,    // kStored on the transformed group
};

// Final codes of one tensor from stored values (profile default) or from the exact ones (upstream).
// Sums over each group that the figures of a tensor are made of (README.md section 7), each [M].
struct ErrorSums {
  float* error = nullptr;  // (w' - w)^2
  float* power = nullptr;  // w^2
  // Not a sum: the largest |w' - w| of the group and some neighbours.
  float* largest = nullptr;
  // Only of rows that are looked at closely (IsCloseRow), unspecified elsewhere.
  float* overlap = nullptr;         // (w' - w)*w
  float* balanced_error = nullptr;  // the first two in the space in which w was coded
  float* balanced_power = nullptr;
};
// Rows that the dearer figures are taken from.
constexpr bool IsCloseRow(int64_t row) { return row % 8 == 0; }

struct EncodeParams {
  Coding coding = Coding::kStored;
  int bits = 4;
  int group = 64;
  int code_shift_min = 0;  // clamp range of the rounded value before `code_offset` is added
  int code_shift_max = 15;
  int code_offset = 0;
  // Column arrays hold one row of [K] for each `column_rows` rows of weights; 0: one for all.
  int64_t column_rows = 0;
  const float* column = nullptr;      // factors of w
  const float* row_factor = nullptr;  // [M], upstream only
  const float* scale = nullptr;       // [M] what the codes are made with
  const float* zero = nullptr;        // [M]
  // What the reader will see, for the dequantized values: [M], [M], as `column`.
  const float* stored_scale = nullptr;
  const float* stored_zero = nullptr;
  const float* stored_column = nullptr;
  ErrorSums sums;
};

// One candidate of the activation-aware search on 32 rows (README.md section 10).
struct ScaledRtn {
  int bits = 4, group = 64;
  float range_floor = 0;             // least range of a group
  const float* forward = nullptr;    // [K] y = (w * forward) * row_reciprocal
  const float* backward = nullptr;   // [K] w' = ((q - z) * (s * row_scale)) * backward
  const float* row_scale = nullptr;  // [rows of the matrix, tiles]; nullptr: 1
};

// Grids of 8-bit auxiliaries, one for each column (README.md section 5).
struct AuxGrids {
  const float* minimum = nullptr;  // what the codes are made with
  const float* step = nullptr;
  const float* stored_minimum = nullptr;  // what F16 holds
  const float* stored_step = nullptr;
  bool shared = false;  // one grid for all values
};

// What the activation-aware search sums up.
enum class OutputNorm : uint8_t { kAbsolute, kSquare, kMoments };

struct TileOps {
  const char* target;
  // Copies a tile into `out` (rows * group * (2 if TilesAreBf16 else 4) bytes).
  TileScan (*load_tile)(const MatrixView& in, const TileRange& range, void* out);
  // Standard deviations of x = (w*u)*v; v == nullptr: x = w*u.
  void (*stats)(const Tile& tile, const float* u, const float* v, const TileStats& out);
  // Smallest and largest of `count` values; `count` > 0.
  void (*extremes)(const float* values, int64_t count, float* smallest, float* largest);
  // One damped step: scale *= clamp(clamp(std)/tau), and its reciprocal times `factor`. Arrays are
  // padded to 16 values.
  void (*update)(const float* std, int64_t count, float tau, float factor, float* scale,
                 float* reciprocal);
  // scale[i], zero[i] of every row of the tile, in the space y = w*u.
  void (*fit)(const Tile& tile, const float* u, const FitParams& params, float* scale, float* zero);
  // The same in the space y = w for all groups of rows [first, first + count) of the matrix, in
  // 1D tiles of `group` columns, `params.scales_groups` being set: values i + tile * in.rows of the
  // arrays. Returns the first row with a NaN or infinity, whose arrays are not complete then; -1:
  // none.
  int64_t (*fit_rows)(const MatrixView& in, int group, const FitParams& params, int64_t first,
                      int64_t count, float* scale, float* zero);
  // The authors' rules on y = (w*u)*v.
  void (*fit_upstream)(const Tile& tile, const UpstreamFactors& factors, const FitParams& params,
                       float* scale, float* zero);
  // HQQ's rounds on y = w*u (profile default) or (w*u)*v (upstream: factors.row is set).
  void (*fit_hqq)(const Tile& tile, const UpstreamFactors& factors, const FitParams& params,
                  HqqOutcome* out);
  // Squared error and power of every row for given scales and zeros, in the space y = w*u.
  void (*score)(const Tile& tile, const float* u, const FitParams& params, const float* scale,
                const float* zero, float* error, float* power);
  // Adds the sums of w, w^2, w^3, w^4 of one row (README.md section 3) to sums[4].
  void (*add_moments)(const MatrixView& in, int64_t row, double* sums);
  // Sums of |w| over the rows of each column (README.md section 1).
  void (*column_magnitudes)(const Tile& tile, double* sums);
  // w' - w of up to 32 rows from `first_row` on, transposed: difference[k * 32 + row].
  void (*scaled_rtn)(const MatrixView& in, const ScaledRtn& candidate, int64_t first_row,
                     float* difference);
  // error[row] of 32 rows: the outputs' errors over `count` samples [count, cols], as magnitudes,
  // squares or, with `moments`, products with the difference itself.
  void (*output_error)(const float* samples, int64_t count, int64_t cols, const float* difference,
                       OutputNorm norm, double* error);
  // low[i] = min(low[i], values[i]), high likewise.
  void (*widen)(const float* values, int64_t count, float* low, float* high);
  // Codes of `count` values; each value is replaced by what a reader reconstructs.
  void (*encode_aux)(float* values, int64_t count, const AuxGrids& grids, uint8_t* codes);
  // Rounds values to F16 in place and stores their bits (2 bytes each) at `out`; false if one is
  // too large for F16.
  bool (*store_f16)(float* values, int64_t count, std::byte* out);
  // Packed rows [first, last) of the codes (README.md section 6) and their error figures.
  void (*encode)(const MatrixView& in, const EncodeParams& params, int64_t first, int64_t last,
                 std::byte* packed);
  // Codes of rows [first, first + count) as bytes [count, cols], and their error figures.
  void (*encode_rows)(const MatrixView& in, const EncodeParams& params, int64_t first,
                      int64_t count, uint8_t* codes);
  // Dequantized weights of the same rows (README.md section 8), in the dtype of the input (BF16
  // for FP8), into the whole matrix `dense`.
  void (*encode_dense)(const MatrixView& in, const EncodeParams& params, int64_t first,
                       int64_t count, std::byte* dense);
};

// Best first; never empty. The tables live as long as the process.
std::vector<const TileOps*> SupportedTileOps();

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_TILE_OPS_H_
