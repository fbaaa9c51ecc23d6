// Loads and balances the tiles of a matrix, several at a time, each in a slot of the scratch.
#ifndef SINQ_KERNELS_TILE_PASS_H_
#define SINQ_KERNELS_TILE_PASS_H_

#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/sinkhorn.h"
#include "kernels/tile_arrays.h"
#include "kernels/tile_grid.h"

namespace sinq::kernels {

// A tile that has been loaded and balanced.
struct ReadyTile {
  int64_t index = 0;
  Tile tile;
  Balance balance;
  TileArrays* arrays = nullptr;
};

// What all passes of one call share.
struct PassContext {
  const TileOps& ops;
  const MatrixView& in;
  absl::Span<std::byte> slots;
  size_t slot_bytes = 0;  // 0: the items need no slots
  ParallelFor parallel_for;
  absl::FunctionRef<bool()> cancelled;
};

// Runs body(lane, slot, item) for items 0 .. count - 1, as many lanes at once as `slots` has room
// for. Cancelled as soon as `cancelled` says so, with `what` in the message.
absl::Status ForItems(const PassContext& context, int64_t count, const char* what,
                      absl::FunctionRef<void(std::byte* slot, int64_t item)> body);

// Calls `body` for every tile of `grid`, balanced if `balances`. The balances by tile, or the first
// error: Cancelled, or InvalidArgument for a NaN or infinity.
absl::StatusOr<std::vector<Balance>> ForTiles(const PassContext& context, const TileGrid& grid,
                                              const QuantParams& params, bool balances,
                                              absl::FunctionRef<void(const ReadyTile&)> body);

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_TILE_PASS_H_
