// deterministic_math.h on vectors, operation by operation, for what HQQ needs of it.
#if defined(SINQ_KERNELS_POWER_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SINQ_KERNELS_POWER_INL_H_
#undef SINQ_KERNELS_POWER_INL_H_
#else
#define SINQ_KERNELS_POWER_INL_H_
#endif

#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sinq::kernels {
namespace HWY_NAMESPACE {

using D64 = hn::Repartition<double, DF>;
using V64 = hn::Vec<D64>;

// Log2 of normal, positive values.
HWY_INLINE V64 Log2Of(V64 x) {
  const D64 d;
  const hn::RebindToUnsigned<D64> du;
  const auto bits = hn::BitCast(du, x);
  // Integers below 2^52 become doubles through the bits of 2^52.
  const auto shifted = hn::Or(hn::ShiftRight<52>(bits), hn::Set(du, 0x4330000000000000u));
  const V64 biased = hn::Sub(hn::BitCast(d, shifted), hn::Set(d, 0x1p52));
  const auto fraction = hn::And(bits, hn::Set(du, 0xfffffffffffffu));
  V64 m = hn::BitCast(d, hn::Or(fraction, hn::Set(du, uint64_t{1023} << 52)));
  const auto big = hn::Gt(m, hn::Set(d, 1.4142135623730951));
  m = hn::IfThenElse(big, hn::Mul(m, hn::Set(d, 0.5)), m);
  const V64 bias = hn::IfThenElse(big, hn::Set(d, 1022.0), hn::Set(d, 1023.0));
  const V64 one = hn::Set(d, 1.0);
  const V64 f = hn::Div(hn::Sub(m, one), hn::Add(m, one));
  const V64 f2 = hn::Mul(f, f);
  V64 sum = hn::Set(d, 1.0 / 21.0);
  for (int n = 19; n >= 1; n -= 2) sum = hn::Add(hn::Mul(sum, f2), hn::Set(d, 1.0 / n));
  return hn::Add(hn::Sub(biased, bias), hn::Mul(hn::Mul(f, sum), hn::Set(d, 2.8853900817779268)));
}

// Exp2 of values within -1000 .. 1000.
HWY_INLINE V64 Exp2Of(V64 y) {
  const D64 d;
  const hn::RebindToUnsigned<D64> du;
  const V64 magic = hn::Set(d, 6755399441055744.0);
  const V64 raised = hn::Add(y, magic);
  const V64 z = hn::Mul(hn::Sub(y, hn::Sub(raised, magic)), hn::Set(d, 0.69314718055994531));
  const V64 one = hn::Set(d, 1.0);
  V64 sum = one;
  for (int n = 14; n >= 1; --n) sum = hn::Add(one, hn::Mul(hn::Mul(z, hn::Set(d, 1.0 / n)), sum));
  // The whole part lies in the lowest bits of `raised`.
  const auto whole = hn::ShiftLeft<52>(hn::BitCast(du, raised));
  const auto power = hn::Add(whole, hn::Set(du, uint64_t{1023} << 52));
  return hn::Mul(sum, hn::BitCast(d, power));
}

// x^y of values from 1e-5 to 1e5, |y| <= 1.
HWY_INLINE VF PowerOf(VF x, double y) {
  const D64 d;
  const hn::Rebind<float, D64> narrow;
  HWY_ALIGN float lanes[kLanes];
  hn::Store(x, DF(), lanes);
  for (size_t i = 0; i < kLanes; i += kLanes / 2) {
    const V64 log2 = Log2Of(hn::PromoteTo(d, hn::Load(narrow, lanes + i)));
    hn::Store(hn::DemoteTo(narrow, Exp2Of(hn::Mul(hn::Set(d, y), log2))), narrow, lanes + i);
  }
  return hn::Load(DF(), lanes);
}

}  // namespace HWY_NAMESPACE
}  // namespace sinq::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
