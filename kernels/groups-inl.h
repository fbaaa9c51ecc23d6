// The groups of a tile, transposed: one lane of a vector is one group, so that sums need no
// horizontal steps.
#if defined(SINQ_KERNELS_GROUPS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SINQ_KERNELS_GROUPS_INL_H_
#undef SINQ_KERNELS_GROUPS_INL_H_
#else
#define SINQ_KERNELS_GROUPS_INL_H_
#endif

#include <algorithm>
#include <cstring>

#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sinq::kernels {
namespace HWY_NAMESPACE {

// y of kLanes rows, transposed: y[k] holds column k of every row.
template <class T>
HWY_INLINE void TransposeRows(const T* HWY_RESTRICT w, int rows, int group,
                              const float* HWY_RESTRICT u, float* HWY_RESTRICT y) {
  const DF d;
  const hn::Repartition<double, DF> d64;
  HWY_ALIGN float out[4][kLanes];
  for (size_t r = 0; r < kLanes; r += 4) {
    const T* row[4];
    for (size_t i = 0; i < 4; ++i)
      row[i] =
          w + std::min<size_t>(r + i, static_cast<size_t>(rows) - 1) * static_cast<size_t>(group);
    for (size_t k = 0; k < static_cast<size_t>(group); k += kLanes) {
      const VF scale = hn::LoadU(d, u + k);
      const VF a = hn::Mul(LoadWeights(d, row[0] + k), scale),
               b = hn::Mul(LoadWeights(d, row[1] + k), scale);
      const VF c = hn::Mul(LoadWeights(d, row[2] + k), scale),
               e = hn::Mul(LoadWeights(d, row[3] + k), scale);
      const auto ab0 = hn::BitCast(d64, hn::InterleaveLower(d, a, b)),
                 ab1 = hn::BitCast(d64, hn::InterleaveUpper(d, a, b));
      const auto ce0 = hn::BitCast(d64, hn::InterleaveLower(d, c, e)),
                 ce1 = hn::BitCast(d64, hn::InterleaveUpper(d, c, e));
      hn::Store(hn::BitCast(d, hn::InterleaveLower(d64, ab0, ce0)), d, out[0]);
      hn::Store(hn::BitCast(d, hn::InterleaveUpper(d64, ab0, ce0)), d, out[1]);
      hn::Store(hn::BitCast(d, hn::InterleaveLower(d64, ab1, ce1)), d, out[2]);
      hn::Store(hn::BitCast(d, hn::InterleaveUpper(d64, ab1, ce1)), d, out[3]);
      for (size_t block = 0; block < kLanes / 4; ++block) {
        for (size_t i = 0; i < 4; ++i)
          std::memcpy(y + (k + 4 * block + i) * kLanes + r, out[i] + 4 * block, 16);
      }
    }
  }
}

HWY_INLINE VF SumOf(const float* y, int group) {
  const DF d;
  VF total = hn::Zero(d);
  for (int k = 0; k < group; ++k)
    total = hn::Add(total, hn::Load(d, y + static_cast<size_t>(k) * kLanes));
  return total;
}

struct Totals {
  VF values, squares;
};
// In one pass: each sum alone waits for its own last addition.
HWY_INLINE Totals TotalsOf(const float* y, int group) {
  const DF d;
  Totals totals{hn::Zero(d), hn::Zero(d)};
  for (int k = 0; k < group; ++k) {
    const VF value = hn::Load(d, y + static_cast<size_t>(k) * kLanes);
    totals.values = hn::Add(totals.values, value);
    totals.squares = Fma(value, value, totals.squares);
  }
  return totals;
}

HWY_INLINE void RangeOf(const float* y, int group, VF* low, VF* high) {
  const DF d;
  *low = *high = hn::Load(d, y);
  for (int k = 1; k < group; ++k) {
    const VF value = hn::Load(d, y + static_cast<size_t>(k) * kLanes);
    *low = hn::Min(*low, value);
    *high = hn::Max(*high, value);
  }
}

// Row factors v of kLanes rows from `first` on; lanes beyond the last row repeat it.
HWY_INLINE VF RowFactors(const float* v, int64_t first, int64_t rows) {
  HWY_ALIGN float factor[kLanes];
  for (size_t lane = 0; lane < kLanes; ++lane)
    factor[lane] = v[std::min<int64_t>(first + static_cast<int64_t>(lane), rows - 1)];
  return hn::Load(DF(), factor);
}

HWY_INLINE void MultiplyRows(float* y, int group, VF factor) {
  const DF d;
  for (size_t k = 0; k < static_cast<size_t>(group); ++k)
    hn::Store(hn::Mul(hn::Load(d, y + k * kLanes), factor), d, y + k * kLanes);
}

// Lanes beyond the last row repeat it and are not stored.
HWY_INLINE void StoreRows(VF value, int64_t first, int64_t rows, float* out) {
  const DF d;
  if (first + static_cast<int64_t>(kLanes) <= rows) return hn::StoreU(value, d, out + first);
  if (first >= rows) return;
  HWY_ALIGN float lanes[kLanes];
  hn::Store(value, d, lanes);
  std::copy_n(lanes, rows - first, out + first);
}

// Blocks of kLanes rows that are searched side by side: alone, each sum of a block would wait for
// its own last addition, and each step of its search for the one before.
constexpr size_t kBlocks = 2;

// y[b] is [group][kLanes]: the rows from `b * kLanes` on.
struct Blocks {
  const float* y[kBlocks];
  int group;
};

// Block b of what ForBlocks hands out.
HWY_INLINE float* BlockOf(float* y, size_t b) { return y + b * kMaxGroup * kLanes; }

// Calls body(first row, y) for the rows of a tile, kLanes * blocks at a time. Blocks beyond the
// last row repeat it.
template <size_t blocks, class T, class Body>
HWY_INLINE void ForBlocksOf(const T* w, const Tile& tile, const float* u, const Body& body) {
  HWY_ALIGN float y[blocks * kMaxGroup * kLanes];
  for (int64_t i = 0; i < tile.rows; i += static_cast<int64_t>(blocks * kLanes)) {
    for (size_t b = 0; b < blocks; ++b) {
      const int64_t first = std::min<int64_t>(i + static_cast<int64_t>(b * kLanes), tile.rows - 1);
      const int rows =
          static_cast<int>(std::min<int64_t>(static_cast<int64_t>(kLanes), tile.rows - first));
      TransposeRows(w + static_cast<size_t>(first * tile.group), rows, tile.group, u,
                    BlockOf(y, b));
    }
    body(i, y);
  }
}

template <size_t blocks, class Body>
HWY_INLINE void ForBlocks(const Tile& tile, const float* u, const Body& body) {
  if (tile.is_bf16)
    return ForBlocksOf<blocks>(static_cast<const uint16_t*>(tile.data), tile, u, body);
  ForBlocksOf<blocks>(static_cast<const float*>(tile.data), tile, u, body);
}

// One block at a time.
template <class Body>
HWY_INLINE void ForRows(const Tile& tile, const float* u, const Body& body) {
  ForBlocks<1>(tile, u, body);
}

}  // namespace HWY_NAMESPACE
}  // namespace sinq::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
