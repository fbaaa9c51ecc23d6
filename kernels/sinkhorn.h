// Balancing of one tile: column scales t and row scales r that even out the standard deviations
// (SINQ, arXiv 2509.22944, Algorithm 1; README.md section 2). Works in the caller's buffers;
// allocates nothing.
#ifndef SINQ_KERNELS_SINKHORN_H_
#define SINQ_KERNELS_SINKHORN_H_

#include <cstdint>

#include "kernels/quant_params.h"
#include "kernels/tile_ops.h"

namespace sinq::kernels {

// Buffers of one tile. Row arrays hold the rows rounded up to 16, column arrays kMaxGroup values.
struct BalanceBuffers {
  float* row_std = nullptr;
  float* row_scale = nullptr;  // r of the current round
  float* row_reciprocal = nullptr;
  float* best_row_scale = nullptr;     // the result r
  float* best_column_scale = nullptr;  // the result t, [group]
};

struct Balance {
  int exponent = 0;  // p: the tile is taken times 2^p (profile default)
  int rounds = 0;
  float imbalance_before = 1;
  float imbalance_after = 1;
};

// t = r = 1 and no rounds when the tile must stay as it is (README.md section 2).
Balance BalanceTile(const TileOps& ops, const Tile& tile, const TileScan& scan, Profile profile,
                    const BalanceBuffers& buffers);
// t = r = 1 for a tile that is not to be balanced; only its exponent is found (README.md section
// 8.2).
Balance LeaveTile(const Tile& tile, const TileScan& scan, const QuantParams& params,
                  const BalanceBuffers& buffers);

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_SINKHORN_H_
