#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/backend.h"  // kMaxRounds
#include "kernels/sinkhorn.h"

namespace sinq::kernels {
namespace {

constexpr float kStdFloor = 1e-3f, kStdCeiling = 1e3f, kTauEpsilon = 1e-6f,
                kImbalanceFloor = 1e-12f;
constexpr int kMaxExponent = 126;  // 2^p stays a normal number

struct Spread {
  float smallest = 0, largest = 0;
  float Imbalance() const { return largest / std::max(smallest, kImbalanceFloor); }
};

// 2^exponent brings `largest` into [1, 2), as far as the exponent stays within bounds.
int ExponentOf(float largest) {
  return std::clamp(-std::ilogb(largest), -kMaxExponent, kMaxExponent);
}

int64_t PaddedRows(const Tile& tile) { return (tile.rows + 15) / 16 * 16; }

class Balancer {
 public:
  Balancer(const TileOps& ops, const Tile& tile, const BalanceBuffers& buffers)
      : ops_(ops), tile_(tile), buffers_(buffers), padded_rows_(PaddedRows(tile)) {
    std::fill_n(column_scale_, kMaxGroup, 1.0f);
    std::fill_n(buffers_.row_scale, padded_rows_, 1.0f);
    KeepCurrent();
  }

  Balance Run(const TileScan& scan, Profile profile) {
    Balance result;
    const bool scale_free = profile == Profile::kDefault;
    if (tile_.rows == 1) return result;
    if (scale_free && (scan.has_constant_group || scan.largest == 0)) return result;
    result.exponent = scale_free ? MeasureScaled(scan.largest) : MeasureWith(0);
    Iterate(result);
    return result;
  }

 private:
  // Statistics of w * 2^exponent. Returns the exponent.
  int MeasureWith(int exponent) {
    std::fill_n(column_reciprocal_, kMaxGroup, std::ldexp(1.0f, exponent));
    Measure(nullptr);
    return exponent;
  }

  // Statistics of the tile times the power of two nearest to 1/RMS.
  int MeasureScaled(float largest) {
    const int first = ExponentOf(largest);
    MeasureWith(first);
    double square = 0;
    for (int k = 0; k < tile_.group; ++k) square += column_square_sum_[k];
    square /= static_cast<double>(tile_.rows) * tile_.group;
    const int log2 = std::ilogb(square) + 1;
    const int exponent =
        std::clamp(first - (log2 >= 0 ? log2 / 2 : -((1 - log2) / 2)), -kMaxExponent, kMaxExponent);
    const float correction = std::ldexp(1.0f, exponent - first);
    for (int64_t i = 0; i < padded_rows_; ++i) buffers_.row_std[i] *= correction;
    for (int k = 0; k < tile_.group; ++k) column_std_[k] *= correction;
    return exponent;
  }

  void Measure(const float* row_reciprocal) {
    ops_.stats(tile_, column_reciprocal_, row_reciprocal,
               {buffers_.row_std, column_std_, column_square_sum_});
  }

  Spread CurrentSpread() const {
    Spread rows, columns;
    ops_.extremes(buffers_.row_std, tile_.rows, &rows.smallest, &rows.largest);
    ops_.extremes(column_std_, tile_.group, &columns.smallest, &columns.largest);
    return {std::min(rows.smallest, columns.smallest), std::max(rows.largest, columns.largest)};
  }

  void KeepCurrent() {
    std::copy_n(column_scale_, tile_.group, buffers_.best_column_scale);
    std::copy_n(buffers_.row_scale, padded_rows_, buffers_.best_row_scale);
  }

  void Iterate(Balance& result) {
    const Spread spread = CurrentSpread();
    const float tau = std::clamp(spread.smallest, kStdFloor, kStdCeiling) + kTauEpsilon;
    result.imbalance_before = result.imbalance_after = spread.Imbalance();
    const float factor = std::ldexp(1.0f, result.exponent);
    for (int k = 1; k < kMaxRounds; ++k) {
      ops_.update(column_std_, tile_.group, tau, factor, column_scale_, column_reciprocal_);
      ops_.update(buffers_.row_std, tile_.rows, tau, 1.0f, buffers_.row_scale,
                  buffers_.row_reciprocal);
      Measure(buffers_.row_reciprocal);
      ++result.rounds;
      const float imbalance = CurrentSpread().Imbalance();
      if (!(imbalance <= result.imbalance_after)) return;  // frozen: nothing later can win
      result.imbalance_after = imbalance;
      KeepCurrent();
    }
  }

  const TileOps& ops_;
  const Tile& tile_;
  const BalanceBuffers& buffers_;
  const int64_t padded_rows_;
  float column_scale_[kMaxGroup], column_reciprocal_[kMaxGroup], column_std_[kMaxGroup] = {};
  double column_square_sum_[kMaxGroup];
};

}  // namespace

Balance BalanceTile(const TileOps& ops, const Tile& tile, const TileScan& scan, Profile profile,
                    const BalanceBuffers& buffers) {
  return Balancer(ops, tile, buffers).Run(scan, profile);
}

Balance LeaveTile(const Tile& tile, const TileScan& scan, const QuantParams& params,
                  const BalanceBuffers& buffers) {
  std::fill_n(buffers.best_column_scale, tile.group, 1.0f);
  std::fill_n(buffers.best_row_scale, PaddedRows(tile), 1.0f);
  Balance result;
  const bool searches = params.profile == Profile::kDefault && params.method != Method::kRtn;
  if (searches && scan.largest > 0) result.exponent = ExponentOf(scan.largest);
  return result;
}

}  // namespace sinq::kernels
