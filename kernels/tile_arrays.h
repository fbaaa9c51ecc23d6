// Buffers of one tile in work, in the caller's scratch.
#ifndef SINQ_KERNELS_TILE_ARRAYS_H_
#define SINQ_KERNELS_TILE_ARRAYS_H_

#include "kernels/arena.h"
#include "kernels/sinkhorn.h"
#include "kernels/tile_ops.h"

namespace sinq::kernels {

struct TileArrays {
  float* data = nullptr;
  BalanceBuffers balance;
  float* scale = nullptr;  // [rows rounded up to 16], as everything by row
  float* zero = nullptr;
  float* error = nullptr;
  float* power = nullptr;
  HqqOutcome hqq;  // only for HQQ

  void Take(Arena& arena, int64_t rows, int group, bool is_bf16, bool is_hqq) {
    const int64_t padded = (rows + 15) / 16 * 16;
    data = arena.Floats(rows * group / (is_bf16 ? 2 : 1) + kMaxGroup);
    for (float** array : {&balance.row_std, &balance.row_scale, &balance.row_reciprocal,
                          &balance.best_row_scale, &scale, &zero}) {
      *array = arena.Floats(padded);
    }
    balance.best_column_scale = arena.Floats(kMaxGroup);
    // Free once the tile is balanced.
    error = balance.row_std;
    power = balance.row_scale;
    if (!is_hqq) return;
    hqq.scale = scale;
    hqq.stride = padded;
    hqq.inverse = arena.Floats(padded);
    hqq.history = arena.Floats(kHqqRounds * padded);
  }
};

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_TILE_ARRAYS_H_
