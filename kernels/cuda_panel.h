// What the CUDA steps keep between kernels: the workspace of a panel of tiles, from LaunchBalance
// to LaunchFit, and partial results of reductions over a tensor. Internal to the steps.
#ifndef SINQ_KERNELS_CUDA_PANEL_H_
#define SINQ_KERNELS_CUDA_PANEL_H_

#include <cstddef>
#include <cstdint>

#include "kernels/cuda_steps.h"

namespace sinq::kernels {

// Where a tile stands between rounds.
struct TileState {
  int64_t bad_row = -1;
  int32_t running = 0;        // 0: frozen or never balanced
  int32_t exponent = 0;       // p
  int32_t rounds = 0;         // evaluated
  int32_t best_round = 0;     // the round whose t and r are the result; 0: both are 1
  float tau = 0;
  float row_correction = 1;   // what the row stds of the untouched tile still lack: 2^(p-p0)
  float imbalance_before = 1;
  float imbalance_after = 1;
};

// What the scan saw in one block of rows of a tile.
struct BlockScan {
  uint32_t largest_bits = 0;       // of the magnitudes, as binary32
  uint32_t has_constant_group = 0;
  int32_t bad_row = -1;            // within the block
  int32_t unused = 0;
};

// Extremes of the row stds of one block of rows.
struct BlockExtremes {
  float smallest = 0, largest = 0;
};

// Round k works on t[k % 2] and r[k % 2] and leaves the round before it in place: a tile freezes
// in the first round that is worse, so its result is never further back.
struct PanelArrays {
  TileState* states = nullptr;         // [tiles]
  BlockScan* scans = nullptr;          // [tiles][row blocks]
  float* factor = nullptr;             // [tiles][group] u, what w is multiplied by
  // The rest only where tiles are balanced.
  float* t[2] = {};                    // [tiles][group]
  float* r[2] = {};                    // [tiles][padded rows]
  float* row_std = nullptr;            // [tiles][padded rows]
  float* column_sum = nullptr;         // [tiles][row blocks][group]
  float* column_square = nullptr;      // [tiles][row blocks][group]
  BlockExtremes* extremes = nullptr;   // [tiles][row blocks]
  // Measuring only, by tile.
  float* score_error = nullptr;        // [tiles][padded rows]
  float* score_power = nullptr;        // [tiles][padded rows]
  // The search for a column factor only: sums of |w|, by block of rows.
  float* magnitude = nullptr;          // [row blocks][columns of the panel]
  // HQQ only: after each round.
  float* hqq_zero = nullptr;           // [rounds][tiles][padded rows]
  float* hqq_error = nullptr;          // [rounds][tiles][padded rows]
  int32_t* hqq_best = nullptr;         // [tiles] the round that wins
  int64_t row_blocks = 0;
  int64_t padded_rows = 0;             // row_blocks * kRowsPerBlock
};

// Extremes that one block of LaunchStore saw.
struct StorePartial {
  float largest_scale = 0, largest_column = 0;  // magnitudes
  float smallest_zero = 0, largest_zero = 0;
};
// Blocks of LaunchStore's first kernel: two for each multiprocessor of the largest device.
inline constexpr int kMaxStorePartials = 288;
// Values for each block of rows that LaunchSumErrors keeps at once.
inline constexpr int kSumPartials = 6;
// Of DeviceArrays::partials: LaunchStore's, then those of LaunchSumErrors in the same place.
size_t TensorPartialsBytes(int64_t rows);

PanelArrays LayOutPanel(const CudaTensor& tensor, int64_t tiles, void* workspace);

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_CUDA_PANEL_H_
