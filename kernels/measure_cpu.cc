#include "kernels/measure_cpu.h"

#include <algorithm>
#include <cmath>

#include "kernels/group_store.h"
#include "kernels/half.h"
#include "kernels/measuring.h"

namespace sinq::kernels {
namespace {

int GroupOf(const MatrixView& in, const QuantParams& params) {
  return EffectiveGroupSize(in.cols, params.group_size);
}

FitParams FitParamsOf(const QuantParams& candidate, const MatrixView& in) {
  QuantParams effective = candidate;
  effective.aux = EffectiveAux(candidate, in.rows, in.cols);
  FitParams fit;
  fit.bits = candidate.bits;
  fit.symmetric = candidate.symmetric;
  fit.refine = candidate.method != Method::kRtn;
  fit.rounding = RoundingOf(candidate.method);
  fit.zero_grid = ZeroGridOf(effective);
  return fit;
}

// Sums by rows in blocks of 32, in order (README.md section 7), and back in the units of w.
double SumRows(const float* values, int64_t rows, int exponent) {
  double total = 0;
  for (int64_t first = 0; first < rows; first += kRowBlock) {
    double block = 0;
    for (int64_t i = first; i < std::min<int64_t>(rows, first + kRowBlock); ++i)
      block += static_cast<double>(values[i]);
    total += block;
  }
  return std::ldexp(total, -2 * exponent);
}

Measurement MeasureTile(const TileOps& ops, const ReadyTile& ready, const FitParams& fit) {
  float u[kMaxGroup];
  for (int k = 0; k < ready.tile.group; ++k) {
    u[k] = 1.0f / RoundToF16(ready.arrays->balance.best_column_scale[k]) *
           std::ldexp(1.0f, ready.balance.exponent);
  }
  const TileArrays& arrays = *ready.arrays;
  ops.fit(ready.tile, u, fit, arrays.scale, arrays.zero);
  ops.score(ready.tile, u, fit, arrays.scale, arrays.zero, arrays.error, arrays.power);
  return {SumRows(arrays.error, ready.tile.rows, ready.balance.exponent),
          SumRows(arrays.power, ready.tile.rows, ready.balance.exponent)};
}

// Some candidates that share their tiles.
absl::Status MeasureShared(const PassContext& context, absl::Span<const QuantParams> candidates,
                           const std::vector<size_t>& shared, absl::Span<Measurement> measured) {
  const QuantParams& first = candidates[shared.front()];
  const TileGrid grid(context.in.rows, context.in.cols, GroupOf(context.in, first), Tiling::k1D);
  std::vector<FitParams> fits;
  for (const size_t c : shared) fits.push_back(FitParamsOf(candidates[c], context.in));
  std::vector<Measurement> by_tile(static_cast<size_t>(grid.tile_count()) * fits.size());
  const auto balanced =
      ForTiles(context, grid, first, Balances(first.method), [&](const ReadyTile& ready) {
        Measurement* of_tile = &by_tile[static_cast<size_t>(ready.index) * fits.size()];
        for (const FitParams& fit : fits) *of_tile++ = MeasureTile(context.ops, ready, fit);
      });
  if (!balanced.ok()) return balanced.status();
  for (size_t i = 0; i < by_tile.size(); ++i) {
    Measurement& total = measured[shared[i % fits.size()]];
    total.error += by_tile[i].error;
    total.power += by_tile[i].power;
  }
  return absl::OkStatus();
}

}  // namespace

size_t MeasureSlotBytes(const MatrixView& in, absl::Span<const QuantParams> candidates) {
  size_t size_bytes = 0;
  for (const QuantParams& candidate : candidates) {
    Arena arena(nullptr);
    TileArrays().Take(arena, in.rows, GroupOf(in, candidate), TilesAreBf16(in),
                      RoundingOf(candidate.method) == Rounding::kHqq);
    size_bytes = std::max(size_bytes, arena.used());
  }
  return size_bytes;
}

absl::Status MeasureColumnScales(const PassContext& context, const QuantParams& params,
                                 absl::Span<float> t) {
  const TileGrid grid(context.in.rows, context.in.cols, GroupOf(context.in, params), Tiling::k1D);
  return ForTiles(context, grid, params, /*balances=*/true,
                  [&](const ReadyTile& ready) {
                    std::copy_n(ready.arrays->balance.best_column_scale, grid.group(),
                                t.data() + grid.FirstColumn(ready.index));
                  })
      .status();
}

absl::Status MeasureCandidates(const PassContext& context, absl::Span<const QuantParams> candidates,
                               absl::Span<Measurement> measured) {
  std::fill(measured.begin(), measured.end(), Measurement());
  for (const std::vector<size_t>& shared : SharedTiles(context.in.cols, candidates)) {
    if (absl::Status status = MeasureShared(context, candidates, shared, measured); !status.ok())
      return status;
  }
  return absl::OkStatus();
}

}  // namespace sinq::kernels
