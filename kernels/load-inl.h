// Weights out of the matrix: widening, folded scales, scanning.
#if defined(SINQ_KERNELS_LOAD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SINQ_KERNELS_LOAD_INL_H_
#undef SINQ_KERNELS_LOAD_INL_H_
#else
#define SINQ_KERNELS_LOAD_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/half.h"
#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sinq::kernels {
namespace HWY_NAMESPACE {

// BF16 weights as integers; through `copy` where they do not lie at an even address.
HWY_INLINE const uint16_t* Bf16Row(const MatrixView& in, int64_t row, int64_t col, int count,
                                   uint16_t* copy) {
  const std::byte* from = in.data + 2 * static_cast<size_t>(row * in.cols + col);
  if (reinterpret_cast<uintptr_t>(from) % alignof(uint16_t) == 0)
    return reinterpret_cast<const uint16_t*>(from);
  std::memcpy(copy, from, 2 * static_cast<size_t>(count));
  return copy;
}

// Folded scales (README.md section 8). `count` is a multiple of 16.
HWY_INLINE void FoldRow(const MatrixView& in, int64_t row, int64_t col, int count,
                        float* HWY_RESTRICT values) {
  const DF d;
  const bool has_row = !in.row_factor.empty(), has_column = !in.column_factor.empty();
  const VF row_factor = hn::Set(d, has_row ? in.row_factor[static_cast<size_t>(row)] : 1.0f);
  for (int k = 0; k < count; k += static_cast<int>(kLanes)) {
    VF value = hn::LoadU(d, values + k);
    if (has_row) value = hn::Mul(value, row_factor);
    if (has_column) value = hn::Mul(value, hn::LoadU(d, in.column_factor.data() + col + k));
    hn::StoreU(value, d, values + k);
  }
}

HWY_INLINE void WidenRow(const MatrixView& in, int64_t row, int64_t col, int count,
                         float* HWY_RESTRICT out) {
  const DF d;
  const size_t at = static_cast<size_t>(row * in.cols + col);
  if (in.dtype == WeightDtype::kF32) {
    std::memcpy(out, in.data + 4 * at, 4 * static_cast<size_t>(count));
  } else if (in.dtype == WeightDtype::kF16) {
    const hn::Rebind<hwy::float16_t, DF> d16;
    const hn::Rebind<uint16_t, DF> du16;
    HWY_ALIGN uint16_t bits[kMaxGroup];
    std::memcpy(bits, in.data + 2 * at, 2 * static_cast<size_t>(count));
    if constexpr (kHasF16Conversion) {
      for (int k = 0; k < count; k += static_cast<int>(kLanes)) {
        hn::StoreU(hn::PromoteTo(d, hn::BitCast(d16, hn::Load(du16, bits + k))), d, out + k);
      }
    } else {
      for (int k = 0; k < count; ++k) out[k] = F16ToFloat(bits[k]);
    }
  } else if (in.dtype == WeightDtype::kBf16) {
    HWY_ALIGN uint16_t copy[kMaxGroup];
    const uint16_t* bits = Bf16Row(in, row, col, count, copy);
    for (int k = 0; k < count; k += static_cast<int>(kLanes))
      hn::StoreU(LoadWeights(d, bits + k), d, out + k);
  } else {
    const auto* codes = reinterpret_cast<const uint8_t*>(in.data) + at;
    const int64_t blocks_per_row = (in.cols + kFp8BlockSize - 1) / kFp8BlockSize;
    for (int k = 0; k < count; ++k) {
      const float value = E4m3ToFloat(codes[k]);
      out[k] = in.block_scales.empty()
                   ? value
                   : value * in.block_scales[static_cast<size_t>(
                                 row / kFp8BlockSize * blocks_per_row + (col + k) / kFp8BlockSize)];
    }
  }
  if (in.is_folded()) FoldRow(in, row, col, count, out);
}

// Bits of magnitudes order like the magnitudes themselves, so a tile is scanned as integers.
template <class Bits>
class RowScanner {
 public:
  using D = hn::CappedTag<Bits, kVirtualLanes>;
  explicit RowScanner(Bits infinity) : infinity_(infinity) {}

  // Copies a row and looks at it on the way. `count` is a multiple of 16.
  HWY_INLINE void Copy(const Bits* HWY_RESTRICT from, int count, int64_t index,
                       Bits* HWY_RESTRICT to, TileScan& scan) {
    const D d;
    const auto magnitude = hn::Set(d, kMagnitude), first = hn::Set(d, from[0]);
    const auto largest_finite = hn::Set(d, static_cast<Bits>(infinity_ - 1));
    auto top = hn::Zero(d), unlike = hn::Zero(d);
    for (size_t k = 0; k < static_cast<size_t>(count); k += hn::Lanes(d)) {
      const auto bits = hn::LoadU(d, from + k);
      hn::StoreU(bits, d, to + k);
      top = hn::Max(top, hn::And(bits, magnitude));
      unlike = hn::Or(unlike, hn::Xor(bits, first));
    }
    largest_ = hn::Max(largest_, top);
    const bool constant = hn::AllTrue(d, hn::Eq(unlike, hn::Zero(d)));
    if (constant && (from[0] & kMagnitude) != 0) scan.has_constant_group = true;
    const bool finite = hn::AllTrue(d, hn::Eq(hn::Max(top, largest_finite), largest_finite));
    if (!finite && scan.bad_row < 0) scan.bad_row = index;
  }

  Bits largest() const {
    const D d;
    HWY_ALIGN Bits lanes[kVirtualLanes];
    hn::Store(largest_, d, lanes);
    return *std::max_element(lanes, lanes + hn::Lanes(d));
  }

 private:
  static constexpr Bits kMagnitude = static_cast<Bits>(~Bits{0}) >> 1;
  const Bits infinity_;
  hn::Vec<D> largest_ = hn::Zero(D());
};

// Into the second-level cache: rows whose distance is a multiple of 4 KiB share a few lines of the
// first.
HWY_INLINE void PrefetchLines(const void* from, size_t size_bytes) {
  constexpr size_t kLineBytes = 64;
  const auto* const lines = static_cast<const std::byte*>(from);
  for (size_t at = 0; at < size_bytes; at += kLineBytes) __builtin_prefetch(lines + at, 0, 2);
}

// Rows are far apart, so the hardware does not see the next one coming.
HWY_INLINE void PrefetchRow(const MatrixView& in, int64_t row, TileRange range,
                            size_t element_bytes) {
  constexpr int64_t kRowsAhead = 32;
  if (row + kRowsAhead >= range.first_row + range.rows) return;
  const std::byte* from =
      in.data + element_bytes * static_cast<size_t>((row + kRowsAhead) * in.cols + range.first_col);
  PrefetchLines(from, element_bytes * static_cast<size_t>(range.group));
}

// `range` by value: behind a reference every vector store would have it read again.
HWY_INLINE TileScan LoadBf16Tile(const MatrixView& in, TileRange range, uint16_t* rows) {
  TileScan scan;
  RowScanner<uint16_t> scanner(0x7f80);
  HWY_ALIGN uint16_t copy[kMaxGroup];
  const int64_t last = range.first_row + range.rows;
  for (int64_t i = range.first_row; i < last && scan.bad_row < 0; ++i, rows += range.group) {
    PrefetchRow(in, i, range, 2);
    scanner.Copy(Bf16Row(in, i, range.first_col, range.group, copy), range.group, i, rows, scan);
  }
  scan.largest = Bf16ToFloat(scanner.largest());
  return scan;
}

TileScan LoadTile(const MatrixView& in, const TileRange& range, void* out) {
  if (TilesAreBf16(in)) return LoadBf16Tile(in, range, static_cast<uint16_t*>(out));
  TileScan scan;
  RowScanner<uint32_t> scanner(0x7f800000);
  auto* rows = static_cast<uint32_t*>(out);
  HWY_ALIGN float values[kMaxGroup];
  HWY_ALIGN uint32_t bits[kMaxGroup];
  const int64_t last = range.first_row + range.rows;
  for (int64_t i = range.first_row; i < last && scan.bad_row < 0; ++i, rows += range.group) {
    PrefetchRow(in, i, range, BytesPerElement(in.dtype));
    WidenRow(in, i, range.first_col, range.group, values);
    std::memcpy(bits, values, 4 * static_cast<size_t>(range.group));
    scanner.Copy(bits, range.group, i, rows, scan);
  }
  scan.largest = std::bit_cast<float>(scanner.largest());
  return scan;
}

// The first of rows [first, last) with a NaN or infinity, or `last`.
HWY_INLINE int64_t FindBadRow(const MatrixView& in, int64_t first, int64_t last) {
  HWY_ALIGN float values[kMaxGroup];
  for (; first < last; ++first) {
    for (int64_t col = 0; col < in.cols; col += kVirtualLanes) {
      WidenRow(in, first, col, kVirtualLanes, values);
      const bool is_finite =
          std::all_of(values, values + kVirtualLanes, [](float v) { return std::isfinite(v); });
      if (!is_finite) return first;
    }
  }
  return last;
}

}  // namespace HWY_NAMESPACE
}  // namespace sinq::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
