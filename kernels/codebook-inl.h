// Values to codes and back (README.md section 9.1); one template argument tells even levels from
// codebooks.
#if defined(SINQ_KERNELS_CODEBOOK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SINQ_KERNELS_CODEBOOK_INL_H_
#undef SINQ_KERNELS_CODEBOOK_INL_H_
#else
#define SINQ_KERNELS_CODEBOOK_INL_H_
#endif

#include "kernels/codebook.h"
#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sinq::kernels {
namespace HWY_NAMESPACE {

// Levels 0, 1, .. top.
struct EvenLevels {
  VF top;
  HWY_INLINE VF Exact(VF y, VF inverse, VF zero) const { return Fma(y, inverse, zero); }
  HWY_INLINE VF Nearest(VF exact) const { return hn::Round(Clamp(exact, hn::Zero(DF()), top)); }
};

// The same, counted from the zero: lowest .. highest around 0.
struct CentredLevels {
  VF lowest, highest;
  HWY_INLINE VF Exact(VF y, VF inverse, VF /*zero*/) const { return hn::Mul(y, inverse); }
  HWY_INLINE VF Nearest(VF exact) const { return hn::Round(Clamp(exact, lowest, highest)); }
};

// The level that a value is coded as: the last one whose lower bound is under the value.
struct BookLevels {
  Codebook book;
  HWY_INLINE VF Exact(VF y, VF inverse, VF zero) const { return Fma(y, inverse, zero); }
  HWY_INLINE VF Nearest(VF exact) const {
    const DF d;
    VF level = hn::Set(d, book.levels[0]);
    for (int i = 0; i + 1 < book.size; ++i) {
      level = hn::IfThenElse(hn::Gt(exact, hn::Set(d, book.bounds[i])),
                             hn::Set(d, book.levels[i + 1]), level);
    }
    return level;
  }
  HWY_INLINE VF Code(VF exact) const {
    const DF d;
    VF code = hn::Zero(d);
    for (int i = 0; i + 1 < book.size; ++i) {
      code = hn::Add(
          code, hn::IfThenElseZero(hn::Gt(exact, hn::Set(d, book.bounds[i])), hn::Set(d, 1.0f)));
    }
    return code;
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace sinq::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
