// What all inner loops share: vector types, one rounding on every target, storage roundings. Each
// *-inl.h is compiled once per SIMD target; the arithmetic is README.md's, operation by operation.
#if defined(SINQ_KERNELS_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SINQ_KERNELS_SIMD_INL_H_
#undef SINQ_KERNELS_SIMD_INL_H_
#else
#define SINQ_KERNELS_SIMD_INL_H_
#endif

#include <cmath>
#include <cstring>

#include "hwy/highway.h"
#include "kernels/tile_ops.h"

HWY_BEFORE_NAMESPACE();
namespace sinq::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::CappedTag<float, kVirtualLanes>;
using DI = hn::RebindToSigned<DF>;
using DU = hn::RebindToUnsigned<DF>;
using VF = hn::Vec<DF>;
constexpr size_t kLanes =
    HWY_MIN(HWY_MAX_BYTES / sizeof(float), static_cast<size_t>(kVirtualLanes));
constexpr size_t kParts = kVirtualLanes / kLanes;  // vectors that make up the virtual lanes
constexpr size_t kChunkVectors =
    4;  // vectors of a row handled at once: their column sums fit registers

// One rounding on every target, also where the hardware has no fused multiply-add.
#if HWY_TARGET == HWY_SSSE3 || HWY_TARGET == HWY_SSE4
HWY_INLINE VF Fma(VF a, VF b, VF c) {
  const DF d;
  HWY_ALIGN float x[kLanes], y[kLanes], z[kLanes];
  hn::Store(a, d, x);
  hn::Store(b, d, y);
  hn::Store(c, d, z);
  for (size_t i = 0; i < kLanes; ++i) z[i] = std::fma(x[i], y[i], z[i]);
  return hn::Load(d, z);
}
#else
HWY_INLINE VF Fma(VF a, VF b, VF c) { return hn::MulAdd(a, b, c); }
#endif

// Without hardware conversion Highway's own loses infinities and NaN.
constexpr bool kHasF16Conversion = HWY_TARGET != HWY_SSSE3 && HWY_TARGET != HWY_SSE4;

HWY_INLINE VF LoadWeights(DF d, const float* from) { return hn::LoadU(d, from); }
HWY_INLINE VF LoadWeights(DF d, const uint16_t* from) {
  const hn::Rebind<uint16_t, DF> d16;
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(DU(), hn::LoadU(d16, from))));
}

HWY_INLINE VF Clamp(VF value, VF low, VF high) { return hn::Min(hn::Max(value, low), high); }

// An integer value 0 .. 2^22 as an integer: at 2^23 floats lie 1 apart. A general conversion also
// has to look for values that are too large.
HWY_INLINE hn::Vec<DI> SmallToInt(VF value) {
  const VF shifted = hn::Add(value, hn::Set(DF(), 0x1p23f));
  return hn::Sub(hn::BitCast(DI(), shifted), hn::Set(DI(), 0x4b000000));
}

// 1/x where x != 0, else 0.
HWY_INLINE VF Reciprocal(VF x) {
  const DF d;
  return hn::IfThenZeroElse(hn::Eq(x, hn::Zero(d)), hn::Div(hn::Set(d, 1.0f), x));
}

HWY_INLINE VF RoundVectorToF16(VF x) {
  const DF d;
  const DU du;
  const auto bits = hn::BitCast(du, x);
  const auto odd = hn::And(hn::ShiftRight<13>(bits), hn::Set(du, 1u));
  const auto rounded =
      hn::And(hn::Add(bits, hn::Add(odd, hn::Set(du, 0xfffu))), hn::Set(du, ~0x1fffu));
  const VF subnormal = hn::Mul(hn::Round(hn::Mul(x, hn::Set(d, 0x1p24f))), hn::Set(d, 0x1p-24f));
  return hn::IfThenElse(hn::Lt(hn::Abs(x), hn::Set(d, 0x1p-14f)), subnormal,
                        hn::BitCast(d, rounded));
}

// F16 bits of values that are F16 values already.
HWY_INLINE hn::Vec<DI> F16Bits(VF value) {
  const DF d;
  const DI di;
  const auto bits = hn::BitCast(di, value), magnitude = hn::BitCast(di, hn::Abs(value));
  const auto sign = hn::And(hn::ShiftRight<16>(bits), hn::Set(di, 0x8000));
  const auto normal = hn::ShiftRight<13>(hn::Sub(magnitude, hn::Set(di, 0x38000000)));
  const auto tiny = hn::ConvertTo(di, hn::Mul(hn::Abs(value), hn::Set(d, 0x1p24f)));
  const auto is_tiny = hn::Lt(magnitude, hn::Set(di, 0x38800000));
  return hn::Or(sign, hn::IfThenElse(is_tiny, tiny, normal));
}

HWY_INLINE VF RoundVectorToBf16(VF x) {
  const DF d;
  const DU du;
  const auto bits = hn::BitCast(du, x);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
  return hn::BitCast(
      d, hn::And(hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7fffu))), hn::Set(du, 0xffff0000u)));
}

}  // namespace HWY_NAMESPACE
}  // namespace sinq::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
