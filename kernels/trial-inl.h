// One coding of a block of groups, and what its sums tell about a better one (README.md section
// 4.1).
#if defined(SINQ_KERNELS_TRIAL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SINQ_KERNELS_TRIAL_INL_H_
#undef SINQ_KERNELS_TRIAL_INL_H_
#else
#define SINQ_KERNELS_TRIAL_INL_H_
#endif

#include "kernels/codebook-inl.h"
#include "kernels/groups-inl.h"

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

// E: in the space of y.
HWY_INLINE VF ErrorOf(const CodeSums& sums, VF scale) {
  return hn::Mul(sums.misses, hn::Mul(scale, scale));
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

  HWY_INLINE Trial TrialOf(const CodeSums& sums, const Placement& at, const Totals& totals) const {
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
    trial.coded = {at.scale, at.zero, ErrorOf(sums, at.scale),
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
  HWY_INLINE Trial TrialOf(const CodeSums& sums, const Placement& at, const Totals& totals) const {
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

}  // namespace HWY_NAMESPACE
}  // namespace sinq::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
