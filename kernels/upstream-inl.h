// The authors' rules for scale and zero: profile upstream (README.md sections 3 and 9.1).
#if defined(SINQ_KERNELS_UPSTREAM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SINQ_KERNELS_UPSTREAM_INL_H_
#undef SINQ_KERNELS_UPSTREAM_INL_H_
#else
#define SINQ_KERNELS_UPSTREAM_INL_H_
#endif

#include "kernels/codebook.h"
#include "kernels/groups-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sinq::kernels {
namespace HWY_NAMESPACE {

HWY_INLINE void UpstreamRange(VF low, VF high, const FitParams& params, VF* scale, VF* zero) {
  const DF d;
  if (params.symmetric) {
    const float half = static_cast<float>((1 << (params.bits - 1)) - 1);
    const VF reach = hn::Max(hn::Abs(low), hn::Abs(high));
    *scale = hn::Div(hn::Max(reach, hn::Set(d, 1e-5f)), hn::Set(d, half - 1.0f));
    *zero = hn::Set(d, half);
    return;
  }
  const VF top = hn::Set(d, static_cast<float>((1 << params.bits) - 1));
  *scale = hn::Div(hn::Max(hn::Sub(high, low), hn::Set(d, 1e-4f)), top);
  *zero = hn::Neg(hn::Round(hn::Div(low, *scale)));
}

HWY_INLINE void UpstreamBook(const float* y, int group, VF low, VF high, VF* scale, VF* zero) {
  const DF d;
  const VF mean = hn::Mul(SumOf(y, group), hn::Set(d, 1.0f / static_cast<float>(group)));
  const VF reach = hn::Max(hn::Sub(high, mean), hn::Sub(mean, low));
  *scale = hn::Max(reach, hn::Set(d, 1e-4f));
  *zero = hn::Neg(hn::Div(mean, *scale));
}

void FitUpstream(const Tile& tile, const UpstreamFactors& factors, const FitParams& params,
                 float* scale, float* zero) {
  ForRows(tile, factors.column, [&](int64_t i, float* y) {
    MultiplyRows(y, tile.group, RowFactors(factors.row, i, tile.rows));
    VF low, high, s, z;
    RangeOf(y, tile.group, &low, &high);
    if (HasCodebook(params.rounding)) {
      UpstreamBook(y, tile.group, low, high, &s, &z);
    } else {
      UpstreamRange(low, high, params, &s, &z);
    }
    StoreRows(s, i, tile.rows, scale);
    StoreRows(hn::Add(z, hn::Zero(DF())), i, tile.rows, zero);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace sinq::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
