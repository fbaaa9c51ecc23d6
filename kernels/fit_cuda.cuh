// Scale and zero of one group, by one thread that holds its balanced values: README.md sections 3,
// 4 and 4.1.
#ifndef SINQ_KERNELS_FIT_CUDA_CUH_
#define SINQ_KERNELS_FIT_CUDA_CUH_

#include "kernels/cuda_primitives.cuh"

namespace sinq::kernels {

// What the search is told. The reciprocals are rounded on the host.
struct FitRules {
  float top = 15;                 // 2^b - 1
  float inverse_top = 1.0f / 15;
  float half = 8;                 // 2^(b-1)
  bool symmetric = false;
  bool refine = true;             // false: range only
  bool zero_in_range = true;      // zeros in sixteenths within [0, top]; else F16 zeros
  // Reaches that a symmetric scale is tried with; here, because kernel arguments may be indexed.
  float shrinks[8] = {1.15f, 1.0f, 0.95f, 0.9f, 0.85f, 0.8f, 0.75f, 0.7f};
};

struct GroupFit {
  float scale = 0, zero = 0;
  float error = 0;     // E of a scored candidate
  float codes = 0;     // sum of q
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

// Codes the group with the fit's scale and zero.
template <int kGroup>
__device__ void Score(const float (&y)[kGroup], float top, GroupFit& fit) {
  const float inverse = Reciprocal(fit.scale);
  float error = 0, codes = 0, squares = 0, products = 0;
#pragma unroll
  for (int k = 0; k < kGroup; ++k) {
    const float exact = Fma(y[k], inverse, fit.zero);
    const float q = RoundSmall(Clamp(exact, 0.0f, top));
    const float miss = Sub(exact, q);
    error = Fma(miss, miss, error);
    codes = Add(codes, q);
    squares = Fma(q, q, squares);
    products = Fma(q, y[k], products);
  }
  fit.error = Mul(error, Mul(fit.scale, fit.scale));
  fit.codes = codes;
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
  if (!rules.zero_in_range) return RoundToElevenBits(zero);
  return Clamp(Mul(RoundEven(Mul(zero, 16.0f)), 0.0625f), 0.0f, rules.top);
}

__device__ inline GroupFit RangeCandidate(const GroupRange& range, float shrink,
                                          const FitRules& rules) {
  const float lo = Mul(shrink, range.low), hi = Mul(shrink, range.high);
  GroupFit fit;
  fit.scale = Mul(Sub(hi, lo), rules.inverse_top);
  fit.zero = StorableZero(-Mul(lo, Reciprocal(fit.scale)), rules);
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

// R1, S1, R2, S2, R3, S3, then the step from the best S: one loop, so that the unrolled coding is
// in the program once.
template <int kGroup>
__device__ GroupFit SearchAsymmetric(const float (&y)[kGroup], const GroupRange& bounds,
                                     const FitRules& rules) {
  if (!rules.refine) return RangeCandidate(bounds, 1.0f, rules);
  const float total = SumOf(y);
  GroupFit best, best_step, range;
#pragma unroll 1
  for (int n = 0; n < 7; ++n) {
    const bool is_range = n % 2 == 0 && n < 6;
    const float shrink = n == 0 ? 1.0f : n == 2 ? 0.9f : 0.8f;
    if (n == 6) range = best_step;
    GroupFit next = is_range ? RangeCandidate(bounds, shrink, rules)
                             : StepCandidate<kGroup>(range, total, rules);
    Score(y, rules.top, next);
    if (is_range) {
      range = next;
      best = n == 0 ? next : Better(best, next);
    } else if (n < 6) {
      best_step = n == 1 ? next : Better(best_step, next);
    } else {
      best = Better(Better(best, best_step), next);
    }
  }
  return best;
}

template <int kGroup>
__device__ GroupFit FitAsymmetric(const float (&y)[kGroup], const FitRules& rules) {
  const GroupRange range = RangeOf(y);
  const float reach = Max(Magnitude(range.low), Magnitude(range.high));
  const bool far = reach > Mul(4.0f, Sub(range.high, range.low));
  GroupRange bounds = range;
  if (rules.zero_in_range || far) bounds = {Min(range.low, 0.0f), Max(range.high, 0.0f)};
  GroupFit fit = SearchAsymmetric(y, bounds, rules);
  // One value in the whole group: a step of its size beside a zero of 0 or 1 holds it exactly.
  if (range.low == range.high && range.low != 0) {
    fit.scale = Magnitude(range.low);
    fit.zero = range.low > 0 ? 0.0f : 1.0f;
  }
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
    Score(y, rules.top, next);
    best = n == 0 ? next : Better(best, next);
  }
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

// Profile upstream: the range rule on (w*u)*v, where y = w*u. v > 0, so the extremes of y*v are the
// extremes of y times v.
template <int kGroup>
__device__ GroupFit FitUpstream(const float (&y)[kGroup], float v, const FitRules& rules) {
  const GroupRange range = RangeOf(y);
  const float low = Mul(range.low, v), high = Mul(range.high, v);
  GroupFit fit;
  if (rules.symmetric) {
    const float h = Sub(rules.half, 1.0f);
    fit.scale = Div(Max(Max(Magnitude(low), Magnitude(high)), 1e-5f), Sub(h, 1.0f));
    fit.zero = h;
  } else {
    fit.scale = Div(Max(Sub(high, low), 1e-4f), rules.top);
    fit.zero = -RoundEven(Div(low, fit.scale));
  }
  return fit;
}

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_FIT_CUDA_CUH_
