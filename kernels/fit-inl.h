// Scale and zero of each group in profile default (README.md sections 4, 9.1 and 11).
#if defined(SINQ_KERNELS_FIT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SINQ_KERNELS_FIT_INL_H_
#undef SINQ_KERNELS_FIT_INL_H_
#else
#define SINQ_KERNELS_FIT_INL_H_
#endif

#include <algorithm>

#include "kernels/codebook-inl.h"
#include "kernels/groups-inl.h"
#include "kernels/hadamard-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sinq::kernels {
namespace HWY_NAMESPACE {

struct Sums {
  VF error;     // sum of (level - exact value)^2
  VF levels;    // sum of q
  VF squares;   // sum of q^2
  VF products;  // sum of q*y
};

// Codes y with (scale, zero) and sums up what the next step needs. q is a level: the code itself,
// or what it stands for in a codebook.
template <class Levels>
HWY_INLINE Sums Score(const float* HWY_RESTRICT y, int group, VF scale, VF zero,
                      const Levels& levels) {
  const DF d;
  const VF inverse = Reciprocal(scale);
  Sums sums{hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)};
  for (int k = 0; k < group; ++k) {
    const VF value = hn::Load(d, y + static_cast<size_t>(k) * kLanes);
    const VF exact = Fma(value, inverse, zero);
    const VF q = levels.Nearest(exact);
    const VF miss = hn::Sub(exact, q);
    sums.error = Fma(miss, miss, sums.error);
    sums.levels = hn::Add(sums.levels, q);
    sums.squares = Fma(q, q, sums.squares);
    sums.products = Fma(q, value, sums.products);
  }
  sums.error = hn::Mul(sums.error, hn::Mul(scale, scale));
  return sums;
}

struct Fit {
  VF scale, zero;
  Sums sums;
};

HWY_INLINE void KeepBetter(Fit& best, const Fit& next) {
  const auto better = hn::Lt(next.sums.error, best.sums.error);
  best.scale = hn::IfThenElse(better, next.scale, best.scale);
  best.zero = hn::IfThenElse(better, next.zero, best.zero);
  best.sums.error = hn::IfThenElse(better, next.sums.error, best.sums.error);
  best.sums.levels = hn::IfThenElse(better, next.sums.levels, best.sums.levels);
  best.sums.squares = hn::IfThenElse(better, next.sums.squares, best.sums.squares);
  best.sums.products = hn::IfThenElse(better, next.sums.products, best.sums.products);
}

HWY_INLINE VF TopCode(const FitParams& params) {
  return hn::Set(DF(), static_cast<float>((1 << params.bits) - 1));
}

// zeta of README.md section 4.
HWY_INLINE VF StorableZero(VF zero, const FitParams& params) {
  const DF d;
  const VF none = hn::Zero(d), one = hn::Set(d, 1.0f);
  switch (params.zero_grid) {
    case ZeroGrid::kSixteenths: {
      const VF steps = hn::Round(hn::Mul(zero, hn::Set(d, 16.0f)));
      return Clamp(hn::Mul(steps, hn::Set(d, 0.0625f)), none, TopCode(params));
    }
    case ZeroGrid::k256ths: {
      const VF steps = hn::Round(hn::Mul(zero, hn::Set(d, 256.0f)));
      return Clamp(hn::Mul(steps, hn::Set(d, 0x1p-8f)), hn::Neg(one), one);
    }
    case ZeroGrid::kInteger:
      return Clamp(hn::Round(zero), none, TopCode(params));
    case ZeroGrid::kIntegerFromOne:
      return Clamp(hn::Round(zero), one, TopCode(params));
    case ZeroGrid::kF16:
      return RoundVectorToF16(zero);
    case ZeroGrid::kBf16:
      return RoundVectorToBf16(zero);
    case ZeroGrid::kF32:
      return zero;
  }
  return zero;
}

HWY_INLINE bool HasRealZeros(const FitParams& params) {
  return params.zero_grid == ZeroGrid::kF16 || params.zero_grid == ZeroGrid::kBf16 ||
         params.zero_grid == ZeroGrid::kF32;
}

HWY_INLINE VF IfPositive(VF value, VF otherwise) {
  const DF d;
  return hn::IfThenElse(hn::Gt(value, hn::Zero(d)), value, otherwise);
}

// One least-squares step from the levels behind `sums`; returns the new scale and sets the new
// zero.
HWY_INLINE VF LeastSquares(const Sums& sums, VF scale, VF total, int group, const FitParams& params,
                           VF* zero) {
  const DF d;
  const VF n = hn::Set(d, static_cast<float>(group));
  const VF det = hn::Sub(hn::Mul(n, sums.squares), hn::Mul(sums.levels, sums.levels));
  const VF num = hn::Sub(hn::Mul(n, sums.products), hn::Mul(sums.levels, total));
  const VF slope = IfPositive(hn::Mul(num, Reciprocal(IfPositive(det, hn::Zero(d)))), scale);
  const VF offset = hn::Mul(hn::Sub(total, hn::Mul(slope, sums.levels)),
                            hn::Set(d, 1.0f / static_cast<float>(group)));
  const VF z = StorableZero(hn::Neg(hn::Mul(offset, Reciprocal(slope))), params);
  const VF product = Fma(hn::Neg(z), total, sums.products);
  const VF twice = hn::Mul(hn::Set(d, -2.0f), sums.levels);
  const VF square = Fma(z, Fma(n, z, twice), sums.squares);
  *zero = z;
  return IfPositive(hn::Mul(product, Reciprocal(IfPositive(square, hn::Zero(d)))), slope);
}

// The range that even levels cover.
struct EvenRange {
  VF low, high;
  HWY_INLINE VF ScaleAndZero(float shrink, const FitParams& params, VF* zero) const {
    const DF d;
    const VF lo = hn::Mul(hn::Set(d, shrink), low), hi = hn::Mul(hn::Set(d, shrink), high);
    const float inverse_top = 1.0f / static_cast<float>((1 << params.bits) - 1);
    const VF scale = hn::Mul(hn::Sub(hi, lo), hn::Set(d, inverse_top));
    *zero = StorableZero(hn::Neg(hn::Mul(lo, Reciprocal(scale))), params);
    return scale;
  }
};

// The range that a codebook covers: its levels -1 .. 1 around the mean.
struct BookRange {
  VF mean, reach;
  HWY_INLINE VF ScaleAndZero(float shrink, const FitParams& params, VF* zero) const {
    const VF scale = hn::Mul(hn::Set(DF(), shrink), reach);
    *zero = StorableZero(hn::Neg(hn::Mul(mean, Reciprocal(scale))), params);
    return scale;
  }
};

template <class Levels, class Range>
HWY_INLINE Fit RangeFit(const float* y, int group, const Range& range, float shrink,
                        const FitParams& params, const Levels& levels) {
  VF zero;
  const VF scale = range.ScaleAndZero(shrink, params, &zero);
  return {scale, zero, Score(y, group, scale, zero, levels)};
}

template <class Levels>
HWY_INLINE Fit StepFit(const float* y, int group, const Fit& from, VF total,
                       const FitParams& params, const Levels& levels) {
  VF zero;
  const VF scale = LeastSquares(from.sums, from.scale, total, group, params, &zero);
  return {scale, zero, Score(y, group, scale, zero, levels)};
}

// The scale with which the codes are as long as the values along them: least squares alone would
// make every weight, and so the layer's output, a little too small.
HWY_INLINE VF UnbiasedScale(const Fit& fit, const Totals& y) {
  const DF d;
  const VF product = Fma(hn::Neg(fit.zero), y.values, fit.sums.products);
  const VF scale = hn::Mul(y.squares, Reciprocal(product));
  const VF length = hn::Abs(scale), given = hn::Abs(fit.scale);
  const auto same_sign = hn::Gt(hn::Mul(scale, fit.scale), hn::Zero(d));
  const auto is_near = hn::And(hn::Ge(length, hn::Mul(hn::Set(d, 0.8f), given)),
                               hn::Le(length, hn::Mul(hn::Set(d, 1.25f), given)));
  return hn::IfThenElse(hn::And(same_sign, is_near), scale, fit.scale);
}

// Three ranges and the steps from them (README.md section 4.1).
template <class Levels, class Range>
HWY_INLINE Fit Search(const float* y, int group, const Range& whole, const FitParams& params,
                      const Levels& levels) {
  Fit best = RangeFit(y, group, whole, 1.0f, params, levels);
  if (!params.refine) return best;
  const Totals totals = TotalsOf(y, group);
  Fit step = StepFit(y, group, best, totals.values, params, levels);
  for (const float shrink : {0.9f, 0.8f}) {
    const Fit range = RangeFit(y, group, whole, shrink, params, levels);
    KeepBetter(best, range);
    KeepBetter(step, StepFit(y, group, range, totals.values, params, levels));
  }
  KeepBetter(best, step);
  KeepBetter(best, StepFit(y, group, step, totals.values, params, levels));
  best.scale = UnbiasedScale(best, totals);
  return best;
}

// The range as the storage of zeros wants it: around 0 where a zero must lie within the codes, or
// where F16 would lose digits of it.
HWY_INLINE EvenRange StorableRange(VF low, VF high, const FitParams& params) {
  const DF d;
  const VF none = hn::Zero(d);
  const VF reach = hn::Max(hn::Abs(low), hn::Abs(high));
  const auto include_zero = HasRealZeros(params)
                                ? hn::Gt(reach, hn::Mul(hn::Set(d, 4.0f), hn::Sub(high, low)))
                                : hn::Eq(reach, reach);
  EvenRange range{hn::IfThenElse(include_zero, hn::Min(low, none), low),
                  hn::IfThenElse(include_zero, hn::Max(high, none), high)};
  if (params.zero_grid == ZeroGrid::kIntegerFromOne) {
    const float share = 1.0f / static_cast<float>((1 << params.bits) - 2);
    range.low = hn::Min(range.low, hn::Neg(hn::Mul(range.high, hn::Set(d, share))));
  }
  return range;
}

// One value in the whole group: a step of its size beside a zero of 0 or 1 holds it as exactly as
// the stored scale does, and never with a scale that is a small part of it.
HWY_INLINE void FitConstants(VF low, VF high, const FitParams& params, VF* scale, VF* zero) {
  const DF d;
  const VF none = hn::Zero(d), one = hn::Set(d, 1.0f);
  const auto constant = hn::And(hn::Eq(low, high), hn::Ne(low, none));
  const bool from_zero =
      params.zero_grid != ZeroGrid::kIntegerFromOne || HasCodebook(params.rounding);
  const VF below = HasCodebook(params.rounding) ? none : one;
  const VF single = hn::IfThenElse(hn::Gt(low, none), from_zero ? none : one, below);
  *scale = hn::IfThenElse(constant, hn::Abs(low), *scale);
  *zero = hn::IfThenElse(constant, single, *zero);
}

HWY_INLINE Fit FitAsymmetric(const float* y, int group, const FitParams& params) {
  VF low, high;
  RangeOf(y, group, &low, &high);
  Fit fit = Search(y, group, StorableRange(low, high, params), params, EvenLevels{TopCode(params)});
  FitConstants(low, high, params, &fit.scale, &fit.zero);
  return fit;
}

HWY_INLINE Fit FitToBook(const float* y, int group, const FitParams& params) {
  const DF d;
  VF low, high;
  RangeOf(y, group, &low, &high);
  const VF mean = hn::Mul(SumOf(y, group), hn::Set(d, 1.0f / static_cast<float>(group)));
  const BookRange range{mean, hn::Max(hn::Sub(high, mean), hn::Sub(mean, low))};
  Fit fit = Search(y, group, range, params, BookLevels{CodebookOf(params.rounding)});
  FitConstants(low, high, params, &fit.scale, &fit.zero);
  return fit;
}

// The candidates of README.md section 4.1, all with the zero in the middle.
HWY_INLINE Fit SearchSymmetric(const float* y, int group, VF extreme, VF middle, float half) {
  const DF d;
  const EvenLevels levels{hn::Set(d, 2.0f * half - 1.0f)};
  const auto shrunk = [&](float shrink) {
    const VF scale =
        hn::Mul(hn::Mul(hn::Neg(extreme), hn::Set(d, shrink)), hn::Set(d, 1.0f / half));
    return Fit{scale, middle, Score(y, group, scale, middle, levels)};
  };
  Fit best = shrunk(1.15f);
  for (const float shrink : {1.0f, 0.95f, 0.9f, 0.85f, 0.8f, 0.75f, 0.7f})
    KeepBetter(best, shrunk(shrink));
  const Totals totals = TotalsOf(y, group);
  const VF n = hn::Set(d, static_cast<float>(group));
  const VF product = Fma(hn::Neg(middle), totals.values, best.sums.products);
  const VF square =
      Fma(middle, Fma(n, middle, hn::Mul(hn::Set(d, -2.0f), best.sums.levels)), best.sums.squares);
  const VF refined = hn::Mul(product, Reciprocal(IfPositive(square, hn::Zero(d))));
  const VF scale = hn::IfThenElse(hn::Eq(refined, hn::Zero(d)), best.scale, refined);
  KeepBetter(best, {scale, middle, Score(y, group, scale, middle, levels)});
  best.scale = UnbiasedScale(best, totals);
  return best;
}

HWY_INLINE Fit FitSymmetric(const float* y, int group, const FitParams& params) {
  const DF d;
  const float half = static_cast<float>(1 << (params.bits - 1));
  const VF middle = hn::Set(d, half), none = hn::Zero(d);
  VF low, high;
  RangeOf(y, group, &low, &high);
  // The value of largest magnitude, positive on ties, goes to the lowest code: that takes a scale
  // of the other sign.
  const VF extreme = hn::IfThenElse(hn::Gt(hn::Neg(low), high), low, high);
  Fit fit{hn::Mul(hn::Abs(extreme), hn::Set(d, 1.0f / (half - 1.0f))),
          middle,
          {none, none, none, none}};
  if (params.refine) fit = SearchSymmetric(y, group, extreme, middle, half);
  const auto constant = hn::And(hn::Eq(low, high), hn::Ne(low, none));
  fit.scale = hn::IfThenElse(constant, hn::Neg(low), fit.scale);
  return fit;
}

HWY_INLINE Fit FitGroups(const float* y, int group, const FitParams& params) {
  if (HasCodebook(params.rounding)) return FitToBook(y, group, params);
  return params.symmetric ? FitSymmetric(y, group, params) : FitAsymmetric(y, group, params);
}

void FitTile(const Tile& tile, const float* u, const FitParams& params, float* scale, float* zero) {
  ForRows(tile, u, [&](int64_t i, float* y) {
    if (params.rounding == Rounding::kHadamard) TransformLanes(y, tile.group);
    const Fit fit = FitGroups(y, tile.group, params);
    // Adding 0 turns -0, about which instruction sets disagree, into 0.
    StoreRows(hn::Add(fit.scale, hn::Zero(DF())), i, tile.rows, scale);
    StoreRows(hn::Add(fit.zero, hn::Zero(DF())), i, tile.rows, zero);
  });
}

HWY_INLINE VF SquaredError(const float* y, int group, const FitParams& params, VF scale, VF zero) {
  if (HasCodebook(params.rounding))
    return Score(y, group, scale, zero, BookLevels{CodebookOf(params.rounding)}).error;
  return Score(y, group, scale, zero, EvenLevels{TopCode(params)}).error;
}

void ScoreTile(const Tile& tile, const float* u, const FitParams& params, const float* scale,
               const float* zero, float* error, float* power) {
  ForRows(tile, u, [&](int64_t i, float* y) {
    if (params.rounding == Rounding::kHadamard) TransformLanes(y, tile.group);
    const VF square = TotalsOf(y, tile.group).squares;
    const VF miss = SquaredError(y, tile.group, params, RowFactors(scale, i, tile.rows),
                                 RowFactors(zero, i, tile.rows));
    StoreRows(miss, i, tile.rows, error);
    StoreRows(square, i, tile.rows, power);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace sinq::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
