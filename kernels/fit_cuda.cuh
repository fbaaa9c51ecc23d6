// Scale and zero of one group, by one thread that holds its balanced values: README.md sections 3,
// 4, 4.1 and 9.1.
#ifndef SINQ_KERNELS_FIT_CUDA_CUH_
#define SINQ_KERNELS_FIT_CUDA_CUH_

#include "kernels/cuda_primitives.cuh"
#include "kernels/fit_rules.h"
#include "kernels/half.h"

namespace sinq::kernels {

struct GroupFit {
  float scale = 0, zero = 0;
  float error = 0;     // E of a scored candidate
  float codes = 0;     // sum of q, a code or the level it stands for
  float squares = 0;   // sum of q^2
  float products = 0;  // sum of q*y
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
__device__ float SumOfSquares(const float (&y)[kGroup]) {
  float sum = 0;
#pragma unroll
  for (int k = 0; k < kGroup; ++k) sum = Fma(y[k], y[k], sum);
  return sum;
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

// The sum of a group's codes. Codes 0, 1, .. top are integers, whose sum is exact in any order: it
// is taken from the bits that rounding leaves (RoundSmallToInt), two of them by one instruction.
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
__device__ void Score(const float (&y)[kGroup], const FitRules& rules, GroupFit& fit) {
  const float inverse = Reciprocal(fit.scale);
  float error = 0, squares = 0, products = 0;
  CodeSum<kBook> codes;
#pragma unroll
  for (int k = 0; k < kGroup; ++k) {
    const float exact = Fma(y[k], inverse, fit.zero);
    const float q = codes.Add(exact, rules);
    const float miss = Sub(exact, q);
    error = Fma(miss, miss, error);
    squares = Fma(q, q, squares);
    products = Fma(q, y[k], products);
  }
  fit.error = Mul(error, Mul(fit.scale, fit.scale));
  fit.codes = codes.Of(kGroup);
  fit.squares = squares;
  fit.products = products;
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
__device__ GroupFit RangeCandidate(const Cover& cover, float shrink, const FitRules& rules) {
  GroupFit fit;
  if constexpr (kBook == 0) {
    const float lo = Mul(shrink, cover.low), hi = Mul(shrink, cover.high);
    fit.scale = Mul(Sub(hi, lo), rules.inverse_top);
    fit.zero = StorableZero(-Mul(lo, Reciprocal(fit.scale)), rules);
  } else {
    fit.scale = Mul(shrink, cover.reach);
    fit.zero = StorableZero(-Mul(cover.mean, Reciprocal(fit.scale)), rules);
  }
  return fit;
}

// One least-squares step from a scored candidate.
template <int kGroup>
__device__ GroupFit StepCandidate(const GroupFit& from, float total, const FitRules& rules) {
  constexpr float kCount = static_cast<float>(kGroup), kInverseCount = 1.0f / kGroup;
  const float det = Sub(Mul(kCount, from.squares), Mul(from.codes, from.codes));
  const float num = Sub(Mul(kCount, from.products), Mul(from.codes, total));
  const float slope = IfPositive(Mul(num, Reciprocal(IfPositive(det, 0.0f))), from.scale);
  const float offset = Mul(Sub(total, Mul(slope, from.codes)), kInverseCount);
  GroupFit fit;
  fit.zero = StorableZero(-Mul(offset, Reciprocal(slope)), rules);
  const float product = Fma(-fit.zero, total, from.products);
  const float square =
      Fma(fit.zero, Fma(kCount, fit.zero, Mul(-2.0f, from.codes)), from.squares);
  fit.scale = IfPositive(Mul(product, Reciprocal(IfPositive(square, 0.0f))), slope);
  return fit;
}

// The scale with which the codes are as long as the values along them; `fit` is scored.
template <int kGroup>
__device__ float UnbiasedScale(const float (&y)[kGroup], const GroupFit& fit, float total) {
  const float product = Fma(-fit.zero, total, fit.products);
  const float scale = Mul(SumOfSquares(y), Reciprocal(product));
  const float length = Magnitude(scale), given = Magnitude(fit.scale);
  const bool is_near = length >= Mul(0.8f, given) && length <= Mul(1.25f, given);
  return Mul(scale, fit.scale) > 0 && is_near ? scale : fit.scale;
}

// R1, S1, R2, S2, R3, S3, then the step from the best S: one loop, so that the unrolled coding is
// in the program once.
template <int kBook, int kGroup>
__device__ GroupFit SearchAsymmetric(const float (&y)[kGroup], const Cover& cover,
                                     const FitRules& rules) {
  if (!rules.refine) return RangeCandidate<kBook>(cover, 1.0f, rules);
  const float total = SumOf(y);
  GroupFit best, best_step, range;
#pragma unroll 1
  for (int n = 0; n < 7; ++n) {
    const bool is_range = n % 2 == 0 && n < 6;
    const float shrink = n == 0 ? 1.0f : n == 2 ? 0.9f : 0.8f;
    if (n == 6) range = best_step;
    GroupFit next = is_range ? RangeCandidate<kBook>(cover, shrink, rules)
                             : StepCandidate<kGroup>(range, total, rules);
    Score<kBook>(y, rules, next);
    if (is_range) {
      range = next;
      best = n == 0 ? next : Better(best, next);
    } else if (n < 6) {
      best_step = n == 1 ? next : Better(best_step, next);
    } else {
      best = Better(Better(best, best_step), next);
    }
  }
  best.scale = UnbiasedScale(y, best, total);
  return best;
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

// One value in the whole group: a step of its size beside a zero of 0 or 1 holds it exactly. kBook
// has levels of -1, 0 and 1.
template <int kBook>
__device__ void FitConstant(const GroupRange& range, const FitRules& rules, GroupFit& fit) {
  if (range.low != range.high || range.low == 0) return;
  fit.scale = Magnitude(range.low);
  fit.zero = 0.0f;
  if (kBook == 0 && (range.low < 0 || rules.zero_grid == ZeroGrid::kIntegerFromOne))
    fit.zero = 1.0f;
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

// Eight reaches, then the least-squares scale of the best: again one loop.
template <int kGroup>
__device__ GroupFit SearchSymmetric(const float (&y)[kGroup], float extreme,
                                    const FitRules& rules) {
  const float total = SumOf(y), inverse_half = Div(1.0f, rules.half);
  GroupFit best;
#pragma unroll 1
  for (int n = 0; n < 9; ++n) {
    GroupFit next;
    next.zero = rules.half;
    if (n < 8) {
      next.scale = Mul(Mul(-extreme, rules.shrinks[n]), inverse_half);
    } else {
      const float product = Fma(-rules.half, total, best.products);
      const float square =
          Fma(rules.half, Fma(static_cast<float>(kGroup), rules.half, Mul(-2.0f, best.codes)),
              best.squares);
      const float refined = Mul(product, Reciprocal(IfPositive(square, 0.0f)));
      next.scale = refined == 0 ? best.scale : refined;
    }
    Score<0>(y, rules, next);
    best = n == 0 ? next : Better(best, next);
  }
  best.scale = UnbiasedScale(y, best, total);
  return best;
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
