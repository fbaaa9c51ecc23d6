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

#include "kernels/load-inl.h"
#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sinq::kernels {
namespace HWY_NAMESPACE {

// y = w * u of the rows of a tile.
template <class T>
struct TileRows {
  const T* HWY_RESTRICT w;
  size_t group;
  const float* HWY_RESTRICT u;

  HWY_INLINE VF Load(size_t row, size_t k) const {
    const DF d;
    return hn::Mul(LoadWeights(d, w + row * group + k), hn::LoadU(d, u + k));
  }
};

// y of kLanes rows from `first` on, transposed: y[k] holds column k of every row. The last of
// `row_count` rows is repeated.
template <class Rows>
HWY_INLINE void TransposeRows(const Rows& rows, int64_t first, int64_t row_count, int group,
                              float* HWY_RESTRICT y) {
  const DF d;
  const hn::Repartition<double, DF> d64;
  HWY_ALIGN float out[4][kLanes];
  for (size_t r = 0; r < kLanes; r += 4) {
    size_t row[4];
    for (size_t i = 0; i < 4; ++i)
      row[i] = static_cast<size_t>(
          std::min<int64_t>(first + static_cast<int64_t>(r + i), row_count - 1));
    for (size_t k = 0; k < static_cast<size_t>(group); k += kLanes) {
      const VF a = rows.Load(row[0], k), b = rows.Load(row[1], k);
      const VF c = rows.Load(row[2], k), e = rows.Load(row[3], k);
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

// Rows of a BF16 matrix, with its folded scales.
struct MatrixRows {
  const uint16_t* HWY_RESTRICT w;
  size_t stride;
  const float* HWY_RESTRICT row_factor;  // nullptr: none
  const float* HWY_RESTRICT column_factor;

  HWY_INLINE VF Load(size_t row, size_t k) const {
    const DF d;
    VF value = LoadWeights(d, w + row * stride + k);
    if (row_factor != nullptr) value = hn::Mul(value, hn::Set(d, row_factor[row]));
    return hn::Mul(value, hn::LoadU(d, column_factor + k));
  }
};

// The same columns of some rows.
HWY_INLINE void PrefetchBlock(const uint16_t* from, size_t stride, int64_t rows, int group) {
  for (int64_t row = 0; row < rows; ++row, from += stride)
    PrefetchLines(from, sizeof(*from) * static_cast<size_t>(group));
}

// Bits of the largest magnitude of each group; a NaN is above all.
HWY_INLINE hn::Vec<DI> LargestBits(const float* y, int group) {
  const DF d;
  const DI di;
  const auto magnitude = hn::Set(di, 0x7fffffff);
  auto largest = hn::Zero(di);
  for (size_t k = 0; k < static_cast<size_t>(group); ++k)
    largest = hn::Max(largest, hn::And(hn::BitCast(di, hn::Load(d, y + k * kLanes)), magnitude));
  return largest;
}

HWY_INLINE bool AreFinite(hn::Vec<DI> largest_bits) {
  const DI di;
  return hn::AllTrue(di, hn::Lt(largest_bits, hn::Set(di, 0x7f800000)));
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

// Multiplies each group by 2^p, its own (README.md section 8.2), and returns 2^-p. `largest_bits`:
// of LargestBits.
HWY_INLINE VF ScaleGroups(float* y, int group, hn::Vec<DI> largest_bits) {
  const DI di;
  const auto exponent = hn::ShiftRight<23>(largest_bits);
  const auto up = hn::Min(hn::Max(hn::Sub(hn::Set(di, 254), exponent), hn::Set(di, 1)),
                          hn::Set(di, 253));
  MultiplyRows(y, group, hn::BitCast(DF(), hn::ShiftLeft<23>(up)));
  return hn::BitCast(DF(), hn::ShiftLeft<23>(hn::Sub(hn::Set(di, 254), up)));
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
  const TileRows<T> rows{w, static_cast<size_t>(tile.group), u};
  HWY_ALIGN float y[blocks * kMaxGroup * kLanes];
  for (int64_t i = 0; i < tile.rows; i += static_cast<int64_t>(blocks * kLanes)) {
    for (size_t b = 0; b < blocks; ++b)
      TransposeRows(rows, i + static_cast<int64_t>(b * kLanes), tile.rows, tile.group,
                    BlockOf(y, b));
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
