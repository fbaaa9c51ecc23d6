// The inner loops, one table of functions per SIMD target. Internal to the CPU backend.
#ifndef SINQ_KERNELS_TILE_OPS_H_
#define SINQ_KERNELS_TILE_OPS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/matrix_view.h"

namespace sinq::kernels {

inline constexpr int kMaxGroup = 128;
inline constexpr int kRowBlock =
    32;  // rows summed in fp32 before fp64 takes over (README.md section 1)
inline constexpr int kVirtualLanes = 16;

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

// How scale and zero of a group are searched for (README.md section 4).
struct FitParams {
  int bits = 4;
  bool symmetric = false;
  bool refine = true;  // false: range only
  bool zero_in_range =
      true;  // aux u8: lo <= 0 <= hi, zeros in sixteenths within [0, 2^b - 1]; else F16 zeros
};

// Final codes of one tensor from stored values (profile default) or from the exact ones (upstream).
struct EncodeParams {
  int bits = 4;
  int group = 64;
  int code_shift_min = 0;  // clamp range of the rounded value before `code_offset` is added
  int code_shift_max = 15;
  int code_offset = 0;
  bool divide = false;  // upstream: y = (w*column)*row_factor, q = rne(y / scale + zero); else
                        // fma(w*column, rcp(scale), zero)
  const float* column = nullptr;      // [K] factors of w
  const float* row_factor = nullptr;  // [M], upstream only
  const float* scale = nullptr;       // [M] what the codes are made with
  const float* zero = nullptr;        // [M]
  const float* stored_scale =
      nullptr;  // [M], [M], [K]: what the reader will see, for the error figures
  const float* stored_zero = nullptr;
  const float* stored_column = nullptr;
  float* error = nullptr;  // [M] sums of (w' - w)^2
  float* power = nullptr;  // [M] sums of w^2
};

// Grids of 8-bit auxiliaries, one for each column (README.md section 5).
struct AuxGrids {
  const float* minimum = nullptr;  // what the codes are made with
  const float* step = nullptr;
  const float* stored_minimum = nullptr;  // what F16 holds
  const float* stored_step = nullptr;
  bool shared = false;  // one grid for all values
};

struct TileOps {
  const char* target;
  // Copies columns [first_col, first_col + group) into `out` (rows * group * (2 if BF16 else 4)
  // bytes).
  TileScan (*load_tile)(const MatrixView& in, int64_t first_col, int group, void* out);
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
  // Upstream's range rule on y = (w*u)*v.
  void (*fit_upstream)(const Tile& tile, const float* u, const float* v, int bits, bool symmetric,
                       float* scale, float* zero);
  // Adds the sums of w, w^2, w^3, w^4 of one row (README.md section 3) to sums[4].
  void (*add_moments)(const MatrixView& in, int64_t row, double* sums);
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
};

// Best first; never empty. The tables live as long as the process.
std::vector<const TileOps*> SupportedTileOps();

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_TILE_OPS_H_
