#include "kernels/tile_pass.h"

#include <algorithm>
#include <atomic>

#include "absl/strings/str_cat.h"
#include "kernels/non_finite.h"

namespace sinq::kernels {
namespace {

struct TileOutcome {
  Balance balance;
  int64_t bad_row = -1;
};

absl::Status FirstBadRow(const MatrixView& in, const std::vector<TileOutcome>& outcomes) {
  int64_t bad_row = -1;
  for (const TileOutcome& outcome : outcomes) {
    if (outcome.bad_row >= 0 && (bad_row < 0 || outcome.bad_row < bad_row))
      bad_row = outcome.bad_row;
  }
  return bad_row < 0 ? absl::OkStatus() : FirstNonFinite(in, bad_row);
}

}  // namespace

absl::Status ForItems(const PassContext& context, int64_t count, const char* what,
                      absl::FunctionRef<void(std::byte* slot, int64_t item)> body) {
  const size_t items = static_cast<size_t>(count);
  const size_t room = context.slot_bytes == 0 ? items : context.slots.size() / context.slot_bytes;
  const size_t lanes = std::clamp<size_t>(room, 1, items);
  std::atomic<bool> stopped = false;
  std::atomic<size_t> next = 0;  // a lane may come late, or never
  context.parallel_for(lanes, [&](size_t lane) {
    std::byte* slot = context.slots.data() + lane * context.slot_bytes;
    for (size_t item = next.fetch_add(1); item < items; item = next.fetch_add(1)) {
      if (stopped.load(std::memory_order_relaxed) || context.cancelled()) {
        stopped = true;
        return;
      }
      body(slot, static_cast<int64_t>(item));
    }
  });
  return stopped ? absl::CancelledError(absl::StrCat("stopped between ", what)) : absl::OkStatus();
}

absl::StatusOr<std::vector<Balance>> ForTiles(const PassContext& context, const TileGrid& grid,
                                              const QuantParams& params, bool balances,
                                              absl::FunctionRef<void(const ReadyTile&)> body) {
  const MatrixView& in = context.in;
  const TileOps& ops = context.ops;
  const bool is_hqq = RoundingOf(params.method) == Rounding::kHqq;
  std::vector<TileOutcome> outcomes(static_cast<size_t>(grid.tile_count()));
  const auto one = [&](std::byte* slot, int64_t index) {
    Arena arena(slot);
    TileArrays arrays;
    arrays.Take(arena, grid.tile_rows(), grid.group(), TilesAreBf16(in), is_hqq);
    const Tile tile{arrays.data, TilesAreBf16(in), grid.tile_rows(), grid.group()};
    const TileScan scan = ops.load_tile(in, grid.Range(index), arrays.data);
    TileOutcome& outcome = outcomes[static_cast<size_t>(index)];
    outcome.bad_row = scan.bad_row;
    if (scan.bad_row >= 0) return;
    outcome.balance = balances ? BalanceTile(ops, tile, scan, params.profile, arrays.balance)
                               : LeaveTile(tile, scan, params, arrays.balance);
    body({index, tile, outcome.balance, &arrays});
  };
  if (absl::Status status = ForItems(context, grid.tile_count(), "tiles", one); !status.ok())
    return status;
  if (absl::Status status = FirstBadRow(in, outcomes); !status.ok()) return status;
  std::vector<Balance> result;
  result.reserve(outcomes.size());
  for (const TileOutcome& outcome : outcomes) result.push_back(outcome.balance);
  return result;
}

}  // namespace sinq::kernels
