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

// Where a group's levels lie.
struct Placement {
  VF scale, zero;
};

// What one coding of a group adds up.
struct CodeSums {
  VF misses;   // D, sum of (level - exact value)^2
  VF levels;   // A, sum of q
  VF squares;  // B, sum of q^2
};

// Codes each block with its placement. q is a level: the code itself, or what it stands for in a
// codebook.
template <size_t blocks, class Levels>
HWY_INLINE void Code(const float* const (&y)[blocks], int group, const Placement (&at)[blocks],
                     const Levels& levels, CodeSums (&sums)[blocks]) {
  const DF d;
  VF inverse[blocks], zero[blocks];
  CodeSums running[blocks];
  for (size_t b = 0; b < blocks; ++b) {
    inverse[b] = Reciprocal(at[b].scale);
    zero[b] = at[b].zero;
    running[b] = {hn::Zero(d), hn::Zero(d), hn::Zero(d)};
  }
  for (size_t k = 0; k < static_cast<size_t>(group); ++k) {
    for (size_t b = 0; b < blocks; ++b) {
      const VF exact = levels.Exact(hn::Load(d, y[b] + k * kLanes), inverse[b], zero[b]);
      const VF q = levels.Nearest(exact);
      const VF miss = hn::Sub(exact, q);
      running[b].misses = Fma(miss, miss, running[b].misses);
      running[b].levels = hn::Add(running[b].levels, q);
      running[b].squares = Fma(q, q, running[b].squares);
    }
  }
  for (size_t b = 0; b < blocks; ++b) sums[b] = running[b];
}

// What the search knows of the values of a block before it codes them.
struct Seen {
  VF low, high;
  Totals totals;
};
HWY_INLINE void LookAt(const Blocks& blocks, Seen (&seen)[kBlocks]) {
  const DF d;
  for (size_t b = 0; b < kBlocks; ++b) {
    const VF first = hn::Load(d, blocks.y[b]);
    seen[b] = {first, first, {hn::Zero(d), hn::Zero(d)}};
  }
  for (size_t k = 0; k < static_cast<size_t>(blocks.group); ++k) {
    for (size_t b = 0; b < kBlocks; ++b) {
      const VF value = hn::Load(d, blocks.y[b] + k * kLanes);
      seen[b].low = hn::Min(seen[b].low, value);
      seen[b].high = hn::Max(seen[b].high, value);
      seen[b].totals.values = hn::Add(seen[b].totals.values, value);
      seen[b].totals.squares = Fma(value, value, seen[b].totals.squares);
    }
  }
}

// A scale and zero, their error and the sum of (Q - zero)*y.
struct Fit {
  VF scale, zero, error, product;
};
// A coding that was tried, and the least squares of its codes.
struct Trial {
  Fit coded, refit;
};

HWY_INLINE void KeepBetter(Fit& best, const Fit& next) {
  const auto better = hn::Lt(next.error, best.error);
  best.scale = hn::IfThenElse(better, next.scale, best.scale);
  best.zero = hn::IfThenElse(better, next.zero, best.zero);
  best.error = hn::IfThenElse(better, next.error, best.error);
  best.product = hn::IfThenElse(better, next.product, best.product);
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

// What the sums of a coding imply about the sum of q*(exact value - q) (X of README.md section
// 4.1), given that of the squared exact values.
HWY_INLINE VF MissProduct(const CodeSums& sums, VF exact_squares) {
  return hn::Mul(hn::Set(DF(), 0.5f),
                 hn::Sub(hn::Sub(exact_squares, sums.squares), sums.misses));
}

// A block of groups as the asymmetric search sees it: what sums become.
struct AsymmetricRules {
  int group;
  const FitParams& params;

  HWY_INLINE Trial TrialOf(const CodeSums& sums, const Placement& at,
                             const Totals& totals) const {
    const DF d;
    const VF inverse = Reciprocal(at.scale), n = hn::Set(d, static_cast<float>(group));
    const VF twice_zero = hn::Mul(hn::Set(d, 2.0f), at.zero);
    const VF exact_squares =
        Fma(inverse, Fma(inverse, totals.squares, hn::Mul(twice_zero, totals.values)),
            hn::Mul(n, hn::Mul(at.zero, at.zero)));
    const VF miss_product = MissProduct(sums, exact_squares);
    const VF products =
        hn::Mul(at.scale, Fma(hn::Neg(at.zero), sums.levels, hn::Add(sums.squares, miss_product)));
    Trial trial;
    trial.coded = {at.scale, at.zero, hn::Mul(sums.misses, hn::Mul(at.scale, at.scale)),
                    ProductOf(at.zero, products, totals)};
    trial.refit = LeastSquares(sums, products, totals, at.scale, inverse);
    const VF misses = hn::Sub(Fma(inverse, totals.values, hn::Mul(n, at.zero)), sums.levels);
    trial.refit.error = ErrorOfRefit(trial, sums, miss_product, misses);
    return trial;
  }

 private:
  static HWY_INLINE VF ProductOf(VF zero, VF products, const Totals& totals) {
    return Fma(hn::Neg(zero), totals.values, products);
  }

  // Scale, zero and product that suit the codes best, the zero made storable.
  HWY_INLINE Fit LeastSquares(const CodeSums& sums, VF products, const Totals& totals, VF scale,
                              VF inverse) const {
    const DF d;
    const VF n = hn::Set(d, static_cast<float>(group)), none = hn::Zero(d);
    const VF det = hn::Sub(hn::Mul(n, sums.squares), hn::Mul(sums.levels, sums.levels));
    const VF num = hn::Sub(hn::Mul(n, products), hn::Mul(sums.levels, totals.values));
    const auto usable = hn::And(hn::Gt(det, none), hn::Gt(num, none));
    const VF step = hn::IfThenElse(usable, hn::Mul(det, Reciprocal(num)), inverse);
    const VF offset = hn::Mul(hn::Sub(sums.levels, hn::Mul(step, totals.values)),
                              hn::Set(d, 1.0f / static_cast<float>(group)));
    Fit fit;
    fit.zero = StorableZero(offset, params);
    fit.product = ProductOf(fit.zero, products, totals);
    const VF twice = hn::Mul(hn::Set(d, -2.0f), sums.levels);
    const VF square = Fma(fit.zero, Fma(n, fit.zero, twice), sums.squares);
    fit.scale = IfPositive(hn::Mul(fit.product, Reciprocal(IfPositive(square, none))), scale);
    return fit;
  }

  // Of the codes as they are: the coding's own error and small corrections.
  HWY_INLINE VF ErrorOfRefit(const Trial& trial, const CodeSums& sums, VF miss_product,
                             VF misses) const {
    const DF d;
    const VF two = hn::Set(d, 2.0f), n = hn::Set(d, static_cast<float>(group));
    const Fit &old = trial.coded, &next = trial.refit;
    const VF a = hn::Sub(old.scale, next.scale);
    const VF b = Fma(next.scale, next.zero, hn::Neg(hn::Mul(old.scale, old.zero)));
    const VF first = Fma(a, miss_product, hn::Mul(b, misses));
    const VF second = Fma(a, Fma(a, sums.squares, hn::Mul(hn::Mul(two, b), sums.levels)),
                          hn::Mul(n, hn::Mul(b, b)));
    return hn::Add(old.error, Fma(hn::Mul(two, old.scale), first, second));
  }
};

// The same where the zero is the middle code, from which codes are counted.
struct SymmetricRules {
  HWY_INLINE Trial TrialOf(const CodeSums& sums, const Placement& at,
                             const Totals& totals) const {
    const VF inverse = Reciprocal(at.scale), square = hn::Mul(at.scale, at.scale);
    const VF miss_product =
        MissProduct(sums, hn::Mul(inverse, hn::Mul(inverse, totals.squares)));
    const VF part = hn::Mul(miss_product, Reciprocal(sums.squares));
    const VF product = hn::Mul(at.scale, hn::Add(sums.squares, miss_product));
    return {{at.scale, at.zero, hn::Mul(sums.misses, square), product},
            {Fma(at.scale, part, at.scale), at.zero,
             hn::Mul(Fma(hn::Neg(miss_product), part, sums.misses), square), product}};
  }
};

// The scale with which the codes are as long as the values along them: least squares alone would
// make every weight, and so the layer's output, a little too small.
HWY_INLINE VF UnbiasedScale(const Fit& fit, VF squares) {
  const DF d;
  const VF scale = hn::Mul(squares, Reciprocal(fit.product));
  const VF length = hn::Abs(scale), given = hn::Abs(fit.scale);
  const auto same_sign = hn::Gt(hn::Mul(scale, fit.scale), hn::Zero(d));
  const auto is_near = hn::And(hn::Ge(length, hn::Mul(hn::Set(d, 0.8f), given)),
                               hn::Le(length, hn::Mul(hn::Set(d, 1.25f), given)));
  return hn::IfThenElse(hn::And(same_sign, is_near), scale, fit.scale);
}

// README.md section 4.1: the best of `count` codings at first(n, block), of `steps` steps from the
// best refit of those, and the last refit; with the unbiased scale.
template <class Levels, class Rules, class First>
HWY_INLINE void Search(const Blocks& blocks, const Seen (&seen)[kBlocks], const Levels& levels,
                       const Rules& rules, int count, int steps, const First& first,
                       Placement (&found)[kBlocks]) {
  Fit best[kBlocks], next[kBlocks];
  for (int n = 0; n < count + steps; ++n) {
    Placement at[kBlocks];
    for (size_t b = 0; b < kBlocks; ++b)
      at[b] = n < count ? first(n, b) : Placement{next[b].scale, next[b].zero};
    CodeSums sums[kBlocks];
    Code(blocks.y, blocks.group, at, levels, sums);
    for (size_t b = 0; b < kBlocks; ++b) {
      const Trial trial = rules.TrialOf(sums[b], at[b], seen[b].totals);
      if (n == 0) {
        best[b] = trial.coded;
      } else {
        KeepBetter(best[b], trial.coded);
      }
      if (n == 0 || n >= count) {
        next[b] = trial.refit;
      } else {
        KeepBetter(next[b], trial.refit);
      }
    }
  }
  for (size_t b = 0; b < kBlocks; ++b) {
    // No coding has seen the last one: it must be better by more than rounding can make it look.
    const VF squares = seen[b].totals.squares;
    next[b].error = hn::Add(next[b].error, hn::Mul(squares, hn::Set(DF(), 0x1p-20f)));
    KeepBetter(best[b], next[b]);
    found[b] = {UnbiasedScale(best[b], squares), best[b].zero};
  }
}

// The range that even levels cover.
struct EvenRange {
  VF low, high;
  HWY_INLINE Placement Shrunk(float shrink, const FitParams& params) const {
    const DF d;
    const VF lo = hn::Mul(hn::Set(d, shrink), low), hi = hn::Mul(hn::Set(d, shrink), high);
    const float inverse_top = 1.0f / static_cast<float>((1 << params.bits) - 1);
    const VF scale = hn::Mul(hn::Sub(hi, lo), hn::Set(d, inverse_top));
    return {scale, StorableZero(hn::Neg(hn::Mul(lo, Reciprocal(scale))), params)};
  }
};

// The range that a codebook covers: its levels -1 .. 1 around the mean.
struct BookRange {
  VF mean, reach;
  HWY_INLINE Placement Shrunk(float shrink, const FitParams& params) const {
    const VF scale = hn::Mul(hn::Set(DF(), shrink), reach);
    return {scale, StorableZero(hn::Neg(hn::Mul(mean, Reciprocal(scale))), params)};
  }
};

// Three ranges and two steps.
template <class Levels, class Range>
HWY_INLINE void SearchAsymmetric(const Blocks& blocks, const Seen (&seen)[kBlocks],
                                 const Range (&whole)[kBlocks], const FitParams& params,
                                 const Levels& levels, Placement (&fits)[kBlocks]) {
  if (!params.refine) {
    for (size_t b = 0; b < kBlocks; ++b) fits[b] = whole[b].Shrunk(1.0f, params);
    return;
  }
  const float step = 0.65f / static_cast<float>(1 << params.bits);
  const auto range = [&](int n, size_t b) {
    return whole[b].Shrunk(1.0f - static_cast<float>(n) * step, params);
  };
  Search(blocks, seen, levels, AsymmetricRules{blocks.group, params}, 3, 2, range, fits);
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
HWY_INLINE void FitConstants(VF low, VF high, const FitParams& params, Placement& fit) {
  const DF d;
  const VF none = hn::Zero(d), one = hn::Set(d, 1.0f);
  const auto constant = hn::And(hn::Eq(low, high), hn::Ne(low, none));
  const bool from_zero =
      params.zero_grid != ZeroGrid::kIntegerFromOne || HasCodebook(params.rounding);
  const VF below = HasCodebook(params.rounding) ? none : one;
  const VF single = hn::IfThenElse(hn::Gt(low, none), from_zero ? none : one, below);
  fit.scale = hn::IfThenElse(constant, hn::Abs(low), fit.scale);
  fit.zero = hn::IfThenElse(constant, single, fit.zero);
}

HWY_INLINE void FitAsymmetric(const Blocks& blocks, const Seen (&seen)[kBlocks],
                              const FitParams& params, Placement (&fits)[kBlocks]) {
  EvenRange whole[kBlocks];
  for (size_t b = 0; b < kBlocks; ++b) whole[b] = StorableRange(seen[b].low, seen[b].high, params);
  SearchAsymmetric(blocks, seen, whole, params, EvenLevels{TopCode(params)}, fits);
  for (size_t b = 0; b < kBlocks; ++b) FitConstants(seen[b].low, seen[b].high, params, fits[b]);
}

HWY_INLINE void FitToBook(const Blocks& blocks, const Seen (&seen)[kBlocks],
                          const FitParams& params, Placement (&fits)[kBlocks]) {
  const VF share = hn::Set(DF(), 1.0f / static_cast<float>(blocks.group));
  BookRange whole[kBlocks];
  for (size_t b = 0; b < kBlocks; ++b) {
    const VF mean = hn::Mul(seen[b].totals.values, share);
    whole[b] = {mean, hn::Max(hn::Sub(seen[b].high, mean), hn::Sub(mean, seen[b].low))};
  }
  SearchAsymmetric(blocks, seen, whole, params, BookLevels{CodebookOf(params.rounding)}, fits);
  for (size_t b = 0; b < kBlocks; ++b) FitConstants(seen[b].low, seen[b].high, params, fits[b]);
}

// The value of largest magnitude, positive on ties.
HWY_INLINE VF ExtremeOf(const Seen& seen) {
  return hn::IfThenElse(hn::Gt(hn::Neg(seen.low), seen.high), seen.low, seen.high);
}

// Four reaches and one step. The extreme goes to the lowest code, which takes a scale of the other
// sign.
HWY_INLINE void SearchSymmetric(const Blocks& blocks, const Seen (&seen)[kBlocks], int bits,
                                Placement (&fits)[kBlocks]) {
  constexpr float kSteps[] = {0.8f, -0.4f, -1.2f, -2.4f};
  const DF d;
  const float half = static_cast<float>(1 << (bits - 1)), step = 1.0f / (2.0f * half);
  const CentredLevels levels{hn::Set(d, -half), hn::Set(d, half - 1.0f)};
  const auto reach = [&](int n, size_t b) -> Placement {
    const VF share = hn::Set(d, 1.0f + kSteps[n] * step);
    return {hn::Mul(hn::Mul(hn::Neg(ExtremeOf(seen[b])), share), hn::Set(d, 1.0f / half)),
            hn::Set(d, half)};
  };
  Search(blocks, seen, levels, SymmetricRules(), 4, 1, reach, fits);
}

HWY_INLINE void FitSymmetric(const Blocks& blocks, const Seen (&seen)[kBlocks],
                             const FitParams& params, Placement (&fits)[kBlocks]) {
  const DF d;
  const float half = static_cast<float>(1 << (params.bits - 1));
  const VF share = hn::Set(d, 1.0f / (half - 1.0f));
  for (size_t b = 0; b < kBlocks; ++b)
    fits[b] = {hn::Mul(hn::Abs(ExtremeOf(seen[b])), share), hn::Set(d, half)};
  if (params.refine) SearchSymmetric(blocks, seen, params.bits, fits);
  for (size_t b = 0; b < kBlocks; ++b) {
    const VF low = seen[b].low;
    const auto constant = hn::And(hn::Eq(low, seen[b].high), hn::Ne(low, hn::Zero(d)));
    fits[b].scale = hn::IfThenElse(constant, hn::Neg(low), fits[b].scale);
  }
}

HWY_INLINE void FitGroups(const Blocks& blocks, const FitParams& params,
                          Placement (&fits)[kBlocks]) {
  Seen seen[kBlocks];
  LookAt(blocks, seen);
  if (HasCodebook(params.rounding)) return FitToBook(blocks, seen, params, fits);
  if (params.symmetric) return FitSymmetric(blocks, seen, params, fits);
  FitAsymmetric(blocks, seen, params, fits);
}

void FitTile(const Tile& tile, const float* u, const FitParams& params, float* scale, float* zero) {
  ForBlocks<kBlocks>(tile, u, [&](int64_t i, float* y) {
    Blocks blocks{{}, tile.group};
    for (size_t b = 0; b < kBlocks; ++b) {
      float* const block = y + b * kMaxGroup * kLanes;
      if (params.rounding == Rounding::kHadamard) TransformLanes(block, tile.group);
      blocks.y[b] = block;
    }
    Placement fits[kBlocks];
    FitGroups(blocks, params, fits);
    for (size_t b = 0; b < kBlocks; ++b) {
      // Adding 0 turns -0, about which instruction sets disagree, into 0.
      const int64_t first = i + static_cast<int64_t>(b * kLanes);
      StoreRows(hn::Add(fits[b].scale, hn::Zero(DF())), first, tile.rows, scale);
      StoreRows(hn::Add(fits[b].zero, hn::Zero(DF())), first, tile.rows, zero);
    }
  });
}

template <class Levels>
HWY_INLINE VF SquaredError(const float* y, int group, const Placement& at, const Levels& levels) {
  const float* const block[] = {y};
  const Placement placement[] = {at};
  CodeSums sums[1];
  Code(block, group, placement, levels, sums);
  return hn::Mul(sums[0].misses, hn::Mul(at.scale, at.scale));
}

void ScoreTile(const Tile& tile, const float* u, const FitParams& params, const float* scale,
               const float* zero, float* error, float* power) {
  ForRows(tile, u, [&](int64_t i, float* y) {
    if (params.rounding == Rounding::kHadamard) TransformLanes(y, tile.group);
    const Placement at{RowFactors(scale, i, tile.rows), RowFactors(zero, i, tile.rows)};
    const VF miss = HasCodebook(params.rounding)
                        ? SquaredError(y, tile.group, at, BookLevels{CodebookOf(params.rounding)})
                        : SquaredError(y, tile.group, at, EvenLevels{TopCode(params)});
    StoreRows(miss, i, tile.rows, error);
    StoreRows(TotalsOf(y, tile.group).squares, i, tile.rows, power);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace sinq::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
