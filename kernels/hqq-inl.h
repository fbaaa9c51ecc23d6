// HQQ's rounds on the zeros of a tile (README.md section 9.2).
#if defined(SINQ_KERNELS_HQQ_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SINQ_KERNELS_HQQ_INL_H_
#undef SINQ_KERNELS_HQQ_INL_H_
#else
#define SINQ_KERNELS_HQQ_INL_H_
#endif

#include <algorithm>

#include "kernels/fit-inl.h"
#include "kernels/power-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sinq::kernels {
namespace HWY_NAMESPACE {

// sign(miss) * max(|miss| - |miss|^(p-1) / beta, 0), p = 0.7, beta = 10; |miss| within 1e-5 .. 1e5.
// Under 0.17 that is 0 for sure, so the power is often not needed.
HWY_INLINE VF Shrink(VF miss) {
  const DF d;
  const VF least = hn::Set(d, 0.17f);
  const VF size = Clamp(hn::Abs(miss), hn::Set(d, 1e-5f), hn::Set(d, 1e5f));
  if (hn::AllTrue(d, hn::Lt(size, least))) return hn::Zero(d);
  const VF left = hn::Sub(size, hn::Mul(hn::Set(d, 0.1f), PowerOf(size, -0.3)));
  const VF shrunk = hn::IfThenElseZero(hn::Ge(size, least), hn::Max(left, hn::Zero(d)));
  return hn::CopySign(shrunk, miss);
}

struct HqqRound {
  VF zero;   // after the round
  VF error;  // sum of |y - y'| with the zero before it
};

HWY_INLINE HqqRound RoundOfHqq(const float* HWY_RESTRICT y, int group, VF inverse, VF zero,
                               VF top) {
  const DF d;
  VF error = hn::Zero(d), total = hn::Zero(d);
  for (size_t k = 0; k < static_cast<size_t>(group); ++k) {
    const VF value = hn::Load(d, y + k * kLanes);
    const VF q = hn::Round(Clamp(hn::Add(hn::Mul(value, inverse), zero), hn::Zero(d), top));
    const VF back = hn::Div(hn::Sub(q, zero), inverse);
    const VF miss = hn::Sub(value, back);
    error = hn::Add(error, hn::Abs(miss));
    total = hn::Add(total, hn::Sub(q, hn::Mul(hn::Sub(value, Shrink(miss)), inverse)));
  }
  return {hn::Mul(total, hn::Set(d, 1.0f / static_cast<float>(group))), error};
}

// The multiplier of y, with the authors' floors or without.
HWY_INLINE VF HqqInverse(VF low, VF high, VF top, bool upstream) {
  const DF d;
  const VF range = hn::Sub(high, low);
  if (!upstream) {
    // A group without a range has zeros of 0 and codes of 0 whatever the multiplier.
    const VF one = hn::Set(d, 1.0f);
    const VF inverse = hn::Mul(top, Reciprocal(range));
    return hn::IfThenElse(hn::Gt(inverse, hn::Zero(d)), inverse, one);
  }
  const VF inverse =
      hn::IfThenElse(hn::Le(range, hn::Set(d, 1e-4f)), hn::Set(d, 1.0f), hn::Div(top, range));
  return Clamp(inverse, hn::Set(d, 1e-5f), hn::Set(d, 2e4f));
}

// Adds the errors of rows [first, rows) to blocks of 32 rows, and full blocks to the total.
class HqqErrors {
 public:
  void Add(VF error, int64_t first, int64_t rows, int round) {
    HWY_ALIGN float lanes[kLanes];
    hn::Store(error, DF(), lanes);
    const int64_t count = std::min<int64_t>(static_cast<int64_t>(kLanes), rows - first);
    for (int64_t lane = 0; lane < count; ++lane) block_[round] += static_cast<double>(lanes[lane]);
  }
  void EndOfRows(int64_t last, int64_t rows, double* totals) {
    if (last % kRowBlock != 0 && last < rows) return;
    for (int round = 0; round < kHqqRounds; ++round) {
      totals[round] += block_[round];
      block_[round] = 0;
    }
  }

 private:
  double block_[kHqqRounds] = {};
};

void FitHqq(const Tile& tile, const UpstreamFactors& factors, const FitParams& params,
            HqqOutcome* out) {
  const DF d;
  const bool upstream = factors.row != nullptr;
  const VF top = TopCode(params);
  HqqErrors errors;
  std::fill_n(out->error, kHqqRounds, 0.0);
  ForRows(tile, factors.column, [&](int64_t i, float* y) {
    if (upstream) MultiplyRows(y, tile.group, RowFactors(factors.row, i, tile.rows));
    EvenRange range;
    RangeOf(y, tile.group, &range.low, &range.high);
    const EvenRange seen = range;
    if (!upstream) range = StorableRange(seen.low, seen.high, params);
    const VF inverse = HqqInverse(range.low, range.high, top, upstream);
    VF zero = hn::Neg(hn::Mul(range.low, inverse));
    Placement single{hn::Div(hn::Set(d, 1.0f), inverse), hn::Zero(d)};
    const auto constant = hn::Eq(seen.low, seen.high);
    if (!upstream) {
      FitConstants(seen.low, seen.high, params, single);
      const auto empty = hn::And(constant, hn::Eq(seen.low, hn::Zero(d)));
      single.scale = hn::IfThenZeroElse(empty, single.scale);
    }
    for (int round = 0; round < kHqqRounds; ++round) {
      const HqqRound next = RoundOfHqq(y, tile.group, inverse, zero, top);
      zero = next.zero;
      errors.Add(next.error, i, tile.rows, round);
      const VF kept =
          upstream ? zero : hn::IfThenElse(constant, single.zero, StorableZero(zero, params));
      StoreRows(hn::Add(kept, hn::Zero(d)), i, tile.rows, out->history + round * out->stride);
    }
    StoreRows(single.scale, i, tile.rows, out->scale);
    StoreRows(inverse, i, tile.rows, out->inverse);
    errors.EndOfRows(std::min<int64_t>(i + static_cast<int64_t>(kLanes), tile.rows), tile.rows,
                     out->error);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace sinq::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
