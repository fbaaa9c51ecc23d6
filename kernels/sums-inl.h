// Row sums in the canonical order: 16 virtual lanes and a tree (README.md section 1).
#if defined(SINQ_KERNELS_SUMS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SINQ_KERNELS_SUMS_INL_H_
#undef SINQ_KERNELS_SUMS_INL_H_
#else
#define SINQ_KERNELS_SUMS_INL_H_
#endif

#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sinq::kernels {
namespace HWY_NAMESPACE {

// Halves of a pair of vectors, added across distance D lanes (8, 4, 2, 1): the canonical tree for
// two rows at once.
HWY_INLINE VF AddHalves8(VF a, VF b) {
  const DF d;
  return hn::Add(hn::ConcatLowerLower(d, b, a), hn::ConcatUpperUpper(d, b, a));
}
HWY_INLINE VF AddHalves4(VF a, VF b) {
  const VF even = hn::OddEvenBlocks(hn::SwapAdjacentBlocks(b), a);
  const VF odd = hn::OddEvenBlocks(b, hn::SwapAdjacentBlocks(a));
  return hn::Add(even, odd);
}
HWY_INLINE VF AddHalves2(VF a, VF b) {
  const DF d;
  const hn::Repartition<double, DF> d64;
  const auto a64 = hn::BitCast(d64, a), b64 = hn::BitCast(d64, b);
  return hn::Add(hn::BitCast(d, hn::InterleaveLower(d64, a64, b64)),
                 hn::BitCast(d, hn::InterleaveUpper(d64, a64, b64)));
}
HWY_INLINE VF AddHalves1(VF a, VF b) {
  const DF d;
  return hn::Add(hn::ConcatEven(d, b, a), hn::ConcatOdd(d, b, a));
}

// Virtual-lane sums of 16 rows -> 16 totals, in the order `order` (see RowOrder).
// `partial`: [16 rows][16 lanes].
HWY_INLINE void ReduceRows(const float* HWY_RESTRICT partial, float* HWY_RESTRICT totals) {
  const DF d;
  VF rows[kVirtualLanes];
  size_t count = kVirtualLanes;
  for (size_t i = 0; i < count; ++i) {
    const float* row = partial + i * kVirtualLanes;
    if constexpr (kParts == 1) {
      rows[i] = hn::Load(d, row);
    } else if constexpr (kParts == 2) {
      rows[i] = hn::Add(hn::Load(d, row), hn::Load(d, row + kLanes));
    } else {
      const VF low = hn::Add(hn::Load(d, row), hn::Load(d, row + 2 * kLanes));
      rows[i] = hn::Add(low, hn::Add(hn::Load(d, row + kLanes), hn::Load(d, row + 3 * kLanes)));
    }
  }
  if constexpr (kLanes == 16) {
    count /= 2;
    for (size_t i = 0; i < count; ++i) rows[i] = AddHalves8(rows[2 * i], rows[2 * i + 1]);
  }
  if constexpr (kLanes >= 8) {
    count /= 2;
    for (size_t i = 0; i < count; ++i) rows[i] = AddHalves4(rows[2 * i], rows[2 * i + 1]);
  }
  count /= 2;
  for (size_t i = 0; i < count; ++i) rows[i] = AddHalves2(rows[2 * i], rows[2 * i + 1]);
  count /= 2;
  for (size_t i = 0; i < count; ++i) rows[i] = AddHalves1(rows[2 * i], rows[2 * i + 1]);
  for (size_t i = 0; i < count; ++i) hn::Store(rows[i], d, totals + i * kLanes);
}

// Pairwise merging leaves the totals permuted. slot[i] is where row i's partials must lie so that
// its total comes out at i.
struct RowOrder {
  uint8_t slot[kVirtualLanes];
};
HWY_INLINE RowOrder MakeRowOrder() {
  HWY_ALIGN float partial[kVirtualLanes * kVirtualLanes] = {};
  HWY_ALIGN float totals[kVirtualLanes];
  for (int i = 0; i < kVirtualLanes; ++i) partial[i * kVirtualLanes] = static_cast<float>(i);
  ReduceRows(partial, totals);
  RowOrder order;
  for (int i = 0; i < kVirtualLanes; ++i) order.slot[i] = static_cast<uint8_t>(totals[i]);
  return order;
}

}  // namespace HWY_NAMESPACE
}  // namespace sinq::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
