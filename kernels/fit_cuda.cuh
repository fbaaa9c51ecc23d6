// Scale and zero of one group, by one thread that holds its balanced values: README.md sections 3,
// 4, 4.1 and 9.1.
#ifndef SINQ_KERNELS_FIT_CUDA_CUH_
#define SINQ_KERNELS_FIT_CUDA_CUH_

#include "kernels/cuda_primitives.cuh"
#include "kernels/fit_rules.h"
#include "kernels/half.h"

namespace sinq::kernels {

// A scale and zero, their error E and the sum of (Q - zero)*y.
struct GroupFit {
  float scale = 0, zero = 0;
  float error = 0;
  float product = 0;
};

// What one coding of a group adds up: D, A and B of section 4.1.
struct CodeSums {
  float misses, levels, squares;
};

// Y and V.
struct GroupTotals {
  float values, squares;
};

// A coding that was tried, and the least squares of its codes.
struct Trial {
  GroupFit coded, refit;
};

struct GroupRange {
  float low, high;
};
template <int kGroup>
__device__ GroupRange RangeOf(const float (&y)[kGroup]) {
  GroupRange range{y[0], y[0]};
#pragma unroll
  for (int k = 1; k < kGroup; ++k) {
    range.low = Min(range.low, y[k]);
    range.high = Max(range.high, y[k]);
  }
  return range;
}

template <int kGroup>
__device__ float SumOf(const float (&y)[kGroup]) {
  float sum = 0;
#pragma unroll
  for (int k = 0; k < kGroup; ++k) sum = Add(sum, y[k]);
  return sum;
}

template <int kGroup>
__device__ GroupTotals TotalsOf(const float (&y)[kGroup]) {
  GroupTotals totals{0, 0};
#pragma unroll
  for (int k = 0; k < kGroup; ++k) {
    totals.values = Add(totals.values, y[k]);
    totals.squares = Fma(y[k], y[k], totals.squares);
  }
  return totals;
}

// The last of kBook levels whose lower bound is under the value.
template <int kBook>
__device__ float NearestLevel(float exact, const FitRules& rules) {
  float level = rules.levels[0];
#pragma unroll
  for (int i = 0; i + 1 < kBook; ++i)
    level = exact > rules.bounds[i] ? rules.levels[i + 1] : level;
  return level;
}

// Rounds a group's exact values to codes and adds those up. Codes that are integers have a sum that
// is exact in any order: it is taken from the bits that rounding leaves (RoundSmallToInt), two of
// them by one instruction.
template <int kBook>
struct CodeSum {
  float levels = 0;
  unsigned bits = 0;

  // What the value is coded as.
  __device__ float Add(float exact, const FitRules& rules) {
    if constexpr (kBook == 0) {
      const float shifted = kernels::Add(Clamp(exact, 0.0f, rules.top), kRounder);
      bits += __float_as_uint(shifted);
      return Sub(shifted, kRounder);
    } else {
      const float level = NearestLevel<kBook>(exact, rules);
      levels = kernels::Add(levels, level);
      return level;
    }
  }
  __device__ float Of(unsigned count) const {
    return kBook == 0 ? static_cast<float>(bits - count * kRounderBits) : levels;
  }
};

// Codes the group with the fit's scale and zero.
template <int kBook, int kGroup>
__device__ CodeSums CodeGroup(const float (&y)[kGroup], const FitRules& rules, float scale,
                              float zero) {
  const float inverse = Reciprocal(scale);
  float misses = 0, squares = 0;
  CodeSum<kBook> codes;
#pragma unroll
  for (int k = 0; k < kGroup; ++k) {
    const float exact = Fma(y[k], inverse, zero);
    const float q = codes.Add(exact, rules);
    const float miss = Sub(exact, q);
    misses = Fma(miss, miss, misses);
    squares = Fma(q, q, squares);
  }
  return {misses, codes.Of(kGroup), squares};
}

// The same counted from the middle code, which is the zero. The sum of the codes is not needed.
template <int kGroup>
__device__ CodeSums CodeCentred(const float (&y)[kGroup], const FitRules& rules, float scale) {
  const float inverse = Reciprocal(scale), highest = Sub(rules.half, 1.0f);
  float misses = 0, squares = 0;
#pragma unroll
  for (int k = 0; k < kGroup; ++k) {
    const float exact = Mul(y[k], inverse);
    const float q = RoundSmall(Clamp(exact, -rules.half, highest));
    const float miss = Sub(exact, q);
    misses = Fma(miss, miss, misses);
    squares = Fma(q, q, squares);
  }
  return {misses, 0.0f, squares};
}

__device__ inline float ErrorOf(const CodeSums& sums, float scale) {
  return Mul(sums.misses, Mul(scale, scale));
}

__device__ inline GroupFit Better(const GroupFit& best, const GroupFit& next) {
  return next.error < best.error ? next : best;
}
__device__ inline float IfPositive(float value, float otherwise) {
  return value > 0 ? value : otherwise;
}

// To 11 significant bits, below 2^-14 to multiples of 2^-24; no bound above.
__device__ inline float RoundToElevenBits(float x) {
  if (Magnitude(x) < 0x1p-14f) return Mul(RoundEven(Mul(x, 0x1p24f)), 0x1p-24f);
  const unsigned bits = __float_as_uint(x);
  return __uint_as_float((bits + 0xfffu + ((bits >> 13) & 1u)) & ~0x1fffu);
}

// zeta of README.md section 4.
__device__ inline float StorableZero(float zero, const FitRules& rules) {
  switch (rules.zero_grid) {
    case ZeroGrid::kSixteenths:
      return Clamp(Mul(RoundEven(Mul(zero, 16.0f)), 0.0625f), 0.0f, rules.top);
    case ZeroGrid::k256ths:
      return Clamp(Mul(RoundEven(Mul(zero, 256.0f)), 0x1p-8f), -1.0f, 1.0f);
    case ZeroGrid::kInteger:
      return Clamp(RoundEven(zero), 0.0f, rules.top);
    case ZeroGrid::kIntegerFromOne:
      return Clamp(RoundEven(zero), 1.0f, rules.top);
    case ZeroGrid::kF16:
      return RoundToElevenBits(zero);
    case ZeroGrid::kBf16:
      return RoundToBf16(zero);
    case ZeroGrid::kF32:
      break;
  }
  return zero;
}

__device__ inline bool HasRealZeros(const FitRules& rules) {
  return rules.zero_grid == ZeroGrid::kF16 || rules.zero_grid == ZeroGrid::kBf16 ||
         rules.zero_grid == ZeroGrid::kF32;
}

// The whole of what a group's levels should cover: a range, or for codebooks the mean and the reach
// around it.
struct Cover {
  float low, high;
  float mean, reach;
};

template <int kBook>
__device__ GroupFit RangeCandidate(const Cover& cover, const RangeCut& cut, const FitRules& rules) {
  GroupFit fit;
  if constexpr (kBook == 0) {
    const float width = Sub(cover.high, cover.low);
    const float lo = Fma(cut.low, width, cover.low), hi = Fma(-cut.high, width, cover.high);
    fit.scale = Mul(Sub(hi, lo), rules.inverse_top);
    fit.zero = StorableZero(-Mul(lo, Reciprocal(fit.scale)), rules);
  } else {
    fit.scale = Mul(Sub(1.0f, cut.low), cover.reach);
    fit.zero = StorableZero(-Mul(cover.mean, Reciprocal(fit.scale)), rules);
  }
  return fit;
}

// X of section 4.1, given the sum of the squared exact values.
__device__ inline float MissProduct(const CodeSums& sums, float exact_squares) {
  return Mul(0.5f, Sub(Sub(exact_squares, sums.squares), sums.misses));
}

// E' of the codes as they are.
__device__ inline float ErrorOfRefit(const Trial& trial, const CodeSums& sums, float count,
                                     float miss_product, float misses) {
  const GroupFit &old = trial.coded, &next = trial.refit;
  const float a = Sub(old.scale, next.scale);
  const float b = Fma(next.scale, next.zero, -Mul(old.scale, old.zero));
  const float first = Fma(a, miss_product, Mul(b, misses));
  const float second =
      Fma(a, Fma(a, sums.squares, Mul(Mul(2.0f, b), sums.levels)), Mul(count, Mul(b, b)));
  return Add(old.error, Fma(Mul(2.0f, old.scale), first, second));
}

template <int kGroup>
__device__ Trial TrialOf(const CodeSums& sums, float scale, float zero, const GroupTotals& totals,
                         const FitRules& rules) {
  constexpr float kCount = static_cast<float>(kGroup), kInverseCount = 1.0f / kGroup;
  const float inverse = Reciprocal(scale);
  const float exact_squares =
      Fma(inverse, Fma(inverse, totals.squares, Mul(Mul(2.0f, zero), totals.values)),
          Mul(kCount, Mul(zero, zero)));
  const float miss_product = MissProduct(sums, exact_squares);
  const float products = Mul(scale, Fma(-zero, sums.levels, Add(sums.squares, miss_product)));
  Trial trial;
  trial.coded = {scale, zero, ErrorOf(sums, scale), Fma(-zero, totals.values, products)};

  const float det = Sub(Mul(kCount, sums.squares), Mul(sums.levels, sums.levels));
  const float num = Sub(Mul(kCount, products), Mul(sums.levels, totals.values));
  const float step = det > 0 && num > 0 ? Mul(det, Reciprocal(num)) : inverse;
  const float z = StorableZero(Mul(Sub(sums.levels, Mul(step, totals.values)), kInverseCount),
                               rules);
  const float product = Fma(-z, totals.values, products);
  const float square = Fma(z, Fma(kCount, z, Mul(-2.0f, sums.levels)), sums.squares);
  const float refined = Mul(product, Reciprocal(IfPositive(square, 0.0f)));
  trial.refit = {IfPositive(refined, scale), z, 0, product};
  const float misses = Sub(Fma(inverse, totals.values, Mul(kCount, zero)), sums.levels);
  trial.refit.error = ErrorOfRefit(trial, sums, kCount, miss_product, misses);
  return trial;
}

__device__ inline Trial CentredTrialOf(const CodeSums& sums, float scale, float zero,
                                       const GroupTotals& totals) {
  const float inverse = Reciprocal(scale), square = Mul(scale, scale);
  const float miss_product = MissProduct(sums, Mul(inverse, Mul(inverse, totals.squares)));
  const float part = Mul(miss_product, Reciprocal(sums.squares));
  const float product = Mul(scale, Add(sums.squares, miss_product));
  return {{scale, zero, Mul(sums.misses, square), product},
          {Fma(scale, part, scale), zero, Mul(Fma(-miss_product, part, sums.misses), square),
           product}};
}

// The scale with which the codes are as long as the values along them.
__device__ inline float UnbiasedScale(const GroupFit& fit, float squares) {
  const float scale = Mul(squares, Reciprocal(fit.product));
  const float length = Magnitude(scale), given = Magnitude(fit.scale);
  const bool is_near = length >= Mul(0.8f, given) && length <= Mul(1.25f, given);
  return Mul(scale, fit.scale) > 0 && is_near ? scale : fit.scale;
}

// The best of `count` codings, of `steps` steps from the best refit of those, and the last refit.
// code(n, next) makes coding n, a step if n >= count; one loop, so that the unrolled coding is in
// the program once.
template <class Code>
__device__ GroupFit Search(int count, int steps, float squares, const Code& code) {
  GroupFit best, next;
#pragma unroll 1
  for (int n = 0; n < count + steps; ++n) {
    const Trial trial = code(n, next);
    best = n == 0 ? trial.coded : Better(best, trial.coded);
    next = n == 0 || n >= count ? trial.refit : Better(next, trial.refit);
  }
  // No coding has seen the last one: it must be better by more than rounding can make it look.
  next.error = Add(next.error, Mul(squares, kUnseenMargin));
  best = Better(best, next);
  best.scale = UnbiasedScale(best, squares);
  return best;
}

// Ranges, then steps.
template <int kBook, int kGroup>
__device__ GroupFit SearchAsymmetric(const float (&y)[kGroup], const Cover& cover,
                                     const FitRules& rules) {
  if (!rules.refine) return RangeCandidate<kBook>(cover, {}, rules);
  const GroupTotals totals = TotalsOf(y);
  const auto code = [&](int n, const GroupFit& next) {
    const GroupFit at =
        n < rules.range_count ? RangeCandidate<kBook>(cover, rules.cuts[n], rules) : next;
    return TrialOf<kGroup>(CodeGroup<kBook>(y, rules, at.scale, at.zero), at.scale, at.zero,
                           totals, rules);
  };
  return Search(rules.range_count, rules.steps_after_ranges, totals.squares, code);
}

// The range as the storage of zeros wants it: around 0 where a zero must lie within the codes, or
// where F16 would lose digits of it.
__device__ inline GroupRange StorableRange(const GroupRange& range, const FitRules& rules) {
  const float reach = Max(Magnitude(range.low), Magnitude(range.high));
  const bool far = reach > Mul(4.0f, Sub(range.high, range.low));
  GroupRange storable = range;
  if (!HasRealZeros(rules) || far) storable = {Min(range.low, 0.0f), Max(range.high, 0.0f)};
  if (rules.zero_grid == ZeroGrid::kIntegerFromOne)
    storable.low = Min(storable.low, -Mul(storable.high, rules.low_share));
  return storable;
}

// One value in the whole group, held as exactly as the stored scale is: by a step of its size
// beside a zero of 0 or 1, or where groups share one 8-bit grid of scales by all steps of the
// range. kBook has levels of -1, 0 and 1.
template <int kBook>
__device__ void FitConstant(const GroupRange& range, const FitRules& rules, GroupFit& fit) {
  if (range.low != range.high || range.low == 0) return;
  const bool shares_grid = rules.zero_grid == ZeroGrid::kSixteenths;
  const float steps = shares_grid ? rules.top : 1.0f;
  fit.scale = Mul(Magnitude(range.low), Reciprocal(steps));
  fit.zero = 0.0f;
  if (kBook == 0 && range.low < 0) fit.zero = steps;
  if (kBook == 0 && rules.zero_grid == ZeroGrid::kIntegerFromOne) fit.zero = 1.0f;
}

template <int kGroup>
__device__ GroupFit FitAsymmetric(const float (&y)[kGroup], const FitRules& rules) {
  const GroupRange range = RangeOf(y), storable = StorableRange(range, rules);
  GroupFit fit = SearchAsymmetric<0>(y, {storable.low, storable.high, 0, 0}, rules);
  FitConstant<0>(range, rules, fit);
  return fit;
}

template <int kBook, int kGroup>
__device__ GroupFit FitToBook(const float (&y)[kGroup], const FitRules& rules) {
  const GroupRange range = RangeOf(y);
  const float mean = Mul(SumOf(y), 1.0f / kGroup);
  const float reach = Max(Sub(range.high, mean), Sub(mean, range.low));
  GroupFit fit = SearchAsymmetric<kBook>(y, {0, 0, mean, reach}, rules);
  FitConstant<kBook>(range, rules, fit);
  return fit;
}

// Four reaches and one step.
template <int kGroup>
__device__ GroupFit SearchSymmetric(const float (&y)[kGroup], float extreme,
                                    const FitRules& rules) {
  const float inverse_half = Div(1.0f, rules.half);
  const GroupTotals totals = TotalsOf(y);
  return Search(kReaches, kStepsAfterReaches, totals.squares, [&](int n, const GroupFit& next) {
    const float scale =
        n < kReaches ? Mul(Mul(-extreme, rules.reaches[n]), inverse_half) : next.scale;
    return CentredTrialOf(CodeCentred(y, rules, scale), scale, rules.half, totals);
  });
}

template <int kGroup>
__device__ GroupFit FitSymmetric(const float (&y)[kGroup], const FitRules& rules) {
  const GroupRange range = RangeOf(y);
  // The value of largest magnitude, positive on a tie, goes to the lowest code: that takes a scale
  // of the other sign.
  const float extreme = -range.low > range.high ? range.low : range.high;
  GroupFit fit;
  if (rules.refine) {
    fit = SearchSymmetric(y, extreme, rules);
  } else {
    fit.scale = Mul(Magnitude(extreme), Div(1.0f, Sub(rules.half, 1.0f)));
    fit.zero = rules.half;
  }
  if (range.low == range.high && range.low != 0) fit.scale = -range.low;
  return fit;
}

// Profile default; kBook as for NearestLevel.
template <int kBook, int kGroup>
__device__ GroupFit FitDefault(const float (&y)[kGroup], const FitRules& rules) {
  if constexpr (kBook != 0) return FitToBook<kBook>(y, rules);
  return rules.symmetric ? FitSymmetric(y, rules) : FitAsymmetric(y, rules);
}

// Profile upstream: the range rule, or the codebook's, on y = (w*u)*v.
template <int kGroup>
__device__ GroupFit FitUpstream(const float (&y)[kGroup], const FitRules& rules) {
  const GroupRange range = RangeOf(y);
  GroupFit fit;
  if (rules.book_size != 0) {
    const float mean = Mul(SumOf(y), 1.0f / kGroup);
    fit.scale = Max(Max(Sub(range.high, mean), Sub(mean, range.low)), 1e-4f);
    fit.zero = -Div(mean, fit.scale);
  } else if (rules.symmetric) {
    const float h = Sub(rules.half, 1.0f);
    fit.scale =
        Div(Max(Max(Magnitude(range.low), Magnitude(range.high)), 1e-5f), Sub(h, 1.0f));
    fit.zero = h;
  } else {
    fit.scale = Div(Max(Sub(range.high, range.low), 1e-4f), rules.top);
    fit.zero = -RoundEven(Div(range.low, fit.scale));
  }
  return fit;
}

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_FIT_CUDA_CUH_
