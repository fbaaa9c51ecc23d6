// The column factor c of the activation-aware methods (README.md section 10).
#ifndef SINQ_KERNELS_ACTIVATION_SEARCH_H_
#define SINQ_KERNELS_ACTIVATION_SEARCH_H_

#include <vector>

#include "absl/status/status.h"
#include "kernels/activation_rules.h"
#include "kernels/arena.h"
#include "kernels/quant_params.h"
#include "kernels/tile_pass.h"

namespace sinq::kernels {

// InvalidArgument unless `in` has finite samples or second moments of its width (one of them).
absl::Status CheckActivations(const MatrixView& in);

// What the search needs to know of the balanced weights, one tile after another, and what it finds.
// Arrays of the whole tensor.
struct ActivationArrays {
  float* column_scale = nullptr;      // [K] t of 1D tiles
  float* row_scale = nullptr;         // [M] r of 1D tiles, profile upstream only
  float* weight_magnitude = nullptr;  // [K] mean |w| of the column
  float* power_of_two = nullptr;      // [K] 2^p of the column's tile
  float* factors = nullptr;           // [kAlphaSteps][K] every candidate c

  void Take(Arena& arena, int64_t cols, int64_t groups, bool upstream);
};

// Scratch of one lane of the search.
size_t ActivationSlotBytes(int64_t cols);

// Notes what the search needs of one balanced tile of `grid` (1D). Of different tiles, at the same
// time from different threads.
void NoteTile(const TileOps& ops, const TileGrid& grid, const ReadyTile& ready,
              const ActivationArrays& arrays);

// Tries all candidates on the whole matrix and points `best` at the factors [K] that win. All tiles
// have been noted. `group` is that of the tiles.
absl::Status SearchColumnFactor(const PassContext& context, const QuantParams& params, int group,
                                const ActivationArrays& arrays, const float** best);

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_ACTIVATION_SEARCH_H_
