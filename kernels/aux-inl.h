// 8-bit scales and zeros, and F16 ones (README.md sections 4 and 5).
#if defined(SINQ_KERNELS_AUX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SINQ_KERNELS_AUX_INL_H_
#undef SINQ_KERNELS_AUX_INL_H_
#else
#define SINQ_KERNELS_AUX_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/half.h"
#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sinq::kernels {
namespace HWY_NAMESPACE {

void Widen(const float* values, int64_t count, float* low, float* high) {
  const DF d;
  int64_t i = 0;
  for (; i + static_cast<int64_t>(kLanes) <= count; i += static_cast<int64_t>(kLanes)) {
    const VF value = hn::LoadU(d, values + i);
    hn::StoreU(hn::Min(hn::LoadU(d, low + i), value), d, low + i);
    hn::StoreU(hn::Max(hn::LoadU(d, high + i), value), d, high + i);
  }
  for (; i < count; ++i) {
    low[i] = std::min(low[i], values[i]);
    high[i] = std::max(high[i], values[i]);
  }
}

// Rounds to 65536.
constexpr float kF16Overflow = 65520.0f;

// F16's infinity from 65520 on, as a reader gets it.
HWY_INLINE VF ReadBackF16(VF x) {
  const DF d;
  const VF infinity = hn::CopySign(hn::Set(d, std::numeric_limits<float>::infinity()), x);
  return hn::IfThenElse(hn::Ge(hn::Abs(x), hn::Set(d, kF16Overflow)), infinity,
                        RoundVectorToF16(x));
}

bool StoreF16Values(float* values, int64_t count, std::byte* out) {
  const DF d;
  const hn::Rebind<uint16_t, DI> d16;
  const VF limit = hn::Set(d, kF16Overflow);
  auto fits = hn::Eq(limit, limit);
  int64_t i = 0;
  for (; i + static_cast<int64_t>(kLanes) <= count; i += static_cast<int64_t>(kLanes)) {
    // Adding 0 turns -0, about which instruction sets disagree, into 0.
    const VF value = hn::LoadU(d, values + i);
    const VF rounded = hn::Add(RoundVectorToF16(value), hn::Zero(d));
    fits = hn::And(fits, hn::Lt(hn::Abs(value), limit));
    HWY_ALIGN uint16_t bits[kLanes];
    hn::Store(hn::DemoteTo(d16, F16Bits(rounded)), d16, bits);
    std::memcpy(out + 2 * i, bits, sizeof(bits));
    hn::StoreU(rounded, d, values + i);
  }
  bool all_fit = hn::AllTrue(d, fits);
  for (; i < count; ++i) {
    all_fit = all_fit && std::abs(values[i]) < kF16Overflow;
    values[i] = RoundToF16(values[i]) + 0.0f;
    const uint16_t bits = FloatToF16(values[i]);
    std::memcpy(out + 2 * i, &bits, sizeof(bits));
  }
  return all_fit;
}

HWY_INLINE VF GridLanes(const float* grid, size_t at, bool shared) {
  const DF d;
  return shared ? hn::Set(d, grid[0]) : hn::LoadU(d, grid + at);
}

HWY_INLINE void EncodeAuxLanes(float* values, const AuxGrids& grids, size_t at, uint8_t* codes) {
  const DF d;
  const hn::Rebind<uint8_t, DI> d8;
  const VF value = hn::LoadU(d, values);
  const VF step = GridLanes(grids.step, at, grids.shared);
  const VF exact = hn::Div(hn::Sub(value, GridLanes(grids.minimum, at, grids.shared)), step);
  const VF rounded = Clamp(hn::Round(exact), hn::Zero(d), hn::Set(d, 255.0f));
  const VF code = hn::IfThenZeroElse(hn::Eq(step, hn::Zero(d)), rounded);
  hn::StoreU(hn::DemoteTo(d8, SmallToInt(code)), d8, codes);
  const VF product = ReadBackF16(hn::Mul(code, GridLanes(grids.stored_step, at, grids.shared)));
  const VF sum = hn::Add(product, GridLanes(grids.stored_minimum, at, grids.shared));
  hn::StoreU(ReadBackF16(sum), d, values);
}

void EncodeAux(float* values, int64_t count, const AuxGrids& grids, uint8_t* codes) {
  const size_t whole = static_cast<size_t>(count) / kLanes * kLanes;
  for (size_t i = 0; i < whole; i += kLanes) EncodeAuxLanes(values + i, grids, i, codes + i);
  const size_t rest = static_cast<size_t>(count) - whole;
  if (rest == 0) return;
  // The last lanes go through copies that are wide enough.
  HWY_ALIGN float last[kLanes] = {}, grid[4][kLanes] = {};
  uint8_t last_codes[kLanes];
  const float* const from[4] = {grids.minimum, grids.step, grids.stored_minimum, grids.stored_step};
  for (size_t g = 0; g < 4; ++g) {
    for (size_t i = 0; i < rest; ++i) grid[g][i] = from[g][grids.shared ? 0 : whole + i];
  }
  std::copy_n(values + whole, rest, last);
  EncodeAuxLanes(last, {grid[0], grid[1], grid[2], grid[3], false}, 0, last_codes);
  std::copy_n(last, rest, values + whole);
  std::copy_n(last_codes, rest, codes + whole);
}

}  // namespace HWY_NAMESPACE
}  // namespace sinq::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
