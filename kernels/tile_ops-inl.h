// Inner loops of the CPU backend; compiled once per SIMD target. The arithmetic is README.md's,
// operation by operation.
#if defined(SINQ_KERNELS_TILE_OPS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SINQ_KERNELS_TILE_OPS_INL_H_
#undef SINQ_KERNELS_TILE_OPS_INL_H_
#else
#define SINQ_KERNELS_TILE_OPS_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernels/half.h"
#include "kernels/layout.h"
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

// 1/x where x != 0, else 0.
HWY_INLINE VF Reciprocal(VF x) {
  const DF d;
  return hn::IfThenZeroElse(hn::Eq(x, hn::Zero(d)), hn::Div(hn::Set(d, 1.0f), x));
}

// ---------------------------------------------------------------- sums over the virtual lanes

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

// ---------------------------------------------------------------- loading

// BF16 weights as integers; through `copy` where they do not lie at an even address.
HWY_INLINE const uint16_t* Bf16Row(const MatrixView& in, int64_t row, int64_t col, int count,
                                   uint16_t* copy) {
  const std::byte* from = in.data + 2 * static_cast<size_t>(row * in.cols + col);
  if (reinterpret_cast<uintptr_t>(from) % alignof(uint16_t) == 0)
    return reinterpret_cast<const uint16_t*>(from);
  std::memcpy(copy, from, 2 * static_cast<size_t>(count));
  return copy;
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

// Rows are far apart, so the hardware does not see the next one coming.
HWY_INLINE void PrefetchRow(const MatrixView& in, int64_t row, int64_t first_col, int group,
                            size_t element_bytes) {
  constexpr int64_t kRowsAhead = 16;
  constexpr size_t kLineBytes = 64;
  if (row + kRowsAhead >= in.rows) return;
  const std::byte* from =
      in.data + element_bytes * static_cast<size_t>((row + kRowsAhead) * in.cols + first_col);
  for (size_t at = 0; at < element_bytes * static_cast<size_t>(group); at += kLineBytes)
    hwy::Prefetch(from + at);
}

HWY_INLINE TileScan LoadBf16Tile(const MatrixView& in, int64_t first_col, int group,
                                 uint16_t* rows) {
  TileScan scan;
  RowScanner<uint16_t> scanner(0x7f80);
  HWY_ALIGN uint16_t copy[kMaxGroup];
  for (int64_t i = 0; i < in.rows && scan.bad_row < 0; ++i, rows += group) {
    PrefetchRow(in, i, first_col, group, 2);
    scanner.Copy(Bf16Row(in, i, first_col, group, copy), group, i, rows, scan);
  }
  scan.largest = Bf16ToFloat(scanner.largest());
  return scan;
}

TileScan LoadTile(const MatrixView& in, int64_t first_col, int group, void* out) {
  if (in.dtype == WeightDtype::kBf16)
    return LoadBf16Tile(in, first_col, group, static_cast<uint16_t*>(out));
  TileScan scan;
  RowScanner<uint32_t> scanner(0x7f800000);
  auto* rows = static_cast<uint32_t*>(out);
  HWY_ALIGN float values[kMaxGroup];
  HWY_ALIGN uint32_t bits[kMaxGroup];
  for (int64_t i = 0; i < in.rows && scan.bad_row < 0; ++i, rows += group) {
    PrefetchRow(in, i, first_col, group,
                in.dtype == WeightDtype::kF32   ? 4
                : in.dtype == WeightDtype::kF16 ? 2
                                                : 1);
    WidenRow(in, i, first_col, group, values);
    std::memcpy(bits, values, 4 * static_cast<size_t>(group));
    scanner.Copy(bits, group, i, rows, scan);
  }
  scan.largest = std::bit_cast<float>(scanner.largest());
  return scan;
}

// ---------------------------------------------------------------- moments of a row

using DD = hn::CappedTag<double, kVirtualLanes>;
constexpr size_t kDoubleLanes =
    HWY_MIN(HWY_MAX_BYTES / sizeof(double), static_cast<size_t>(kVirtualLanes));
constexpr size_t kDoubleParts = kVirtualLanes / kDoubleLanes;

HWY_INLINE void StoreLaneSum(const hn::Vec<DD>* parts, double* sum) {
  const DD d;
  HWY_ALIGN double lanes[kVirtualLanes];
  for (size_t p = 0; p < kDoubleParts; ++p) hn::Store(parts[p], d, lanes + p * kDoubleLanes);
  for (size_t half = kVirtualLanes / 2; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  *sum += lanes[0];
}

void AddMoments(const MatrixView& in, int64_t row, double* sums) {
  const DD d;
  const hn::Rebind<float, DD> narrow;
  hn::Vec<DD> s1[kDoubleParts], s2[kDoubleParts], s3[kDoubleParts], s4[kDoubleParts];
  for (size_t p = 0; p < kDoubleParts; ++p) s1[p] = s2[p] = s3[p] = s4[p] = hn::Zero(d);
  for (int64_t col = 0; col < in.cols; col += kMaxGroup) {
    HWY_ALIGN float values[kMaxGroup];
    const int count = static_cast<int>(std::min<int64_t>(kMaxGroup, in.cols - col));
    WidenRow(in, row, col, count, values);
    for (int k = 0; k < count; k += kVirtualLanes) {
      for (size_t p = 0; p < kDoubleParts; ++p) {
        const auto w =
            hn::PromoteTo(d, hn::Load(narrow, values + static_cast<size_t>(k) + p * kDoubleLanes));
        const auto w2 = hn::Mul(w, w);
        s1[p] = hn::Add(s1[p], w);
        s2[p] = hn::Add(s2[p], w2);
        s3[p] = hn::Add(s3[p], hn::Mul(w2, w));
        s4[p] = hn::Add(s4[p], hn::Mul(w2, w2));
      }
    }
  }
  StoreLaneSum(s1, sums);
  StoreLaneSum(s2, sums + 1);
  StoreLaneSum(s3, sums + 2);
  StoreLaneSum(s4, sums + 3);
}

// ---------------------------------------------------------------- statistics

struct RowPartials {
  HWY_ALIGN float sum[kRowBlock * kVirtualLanes];
  HWY_ALIGN float square[kRowBlock * kVirtualLanes];
};

// Sums of `kVectors` vectors of columns over one block of rows. `fresh`: the rows' partial sums
// start here.
template <size_t kVectors, bool kHasV, class T>
HWY_INLINE void SumChunk(const T* HWY_RESTRICT w, size_t stride, int rows,
                         const float* HWY_RESTRICT u, const float* HWY_RESTRICT v, bool fresh,
                         const RowOrder& order, RowPartials& partials, float* HWY_RESTRICT col_sum,
                         float* HWY_RESTRICT col_square) {
  const DF d;
  VF scale[kVectors], sum[kVectors], square[kVectors];
  for (size_t c = 0; c < kVectors; ++c) {
    scale[c] = hn::LoadU(d, u + c * kLanes);
    sum[c] = hn::Zero(d);
    square[c] = hn::Zero(d);
  }
  constexpr size_t kUsed = kVectors < kParts ? kVectors : kParts;
  for (int i = 0; i < rows; ++i, w += stride) {
    const size_t at = static_cast<size_t>((i & ~15) + order.slot[i & 15]) * kVirtualLanes;
    VF row_sum[kUsed], row_square[kUsed];
    for (size_t p = 0; p < kUsed; ++p) {
      row_sum[p] = fresh ? hn::Zero(d) : hn::Load(d, partials.sum + at + p * kLanes);
      row_square[p] = fresh ? hn::Zero(d) : hn::Load(d, partials.square + at + p * kLanes);
    }
    for (size_t c = 0; c < kVectors; ++c) {
      VF x = hn::Mul(LoadWeights(d, w + c * kLanes), scale[c]);
      if constexpr (kHasV) x = hn::Mul(x, hn::Set(d, v[i]));
      row_sum[c % kUsed] = hn::Add(row_sum[c % kUsed], x);
      row_square[c % kUsed] = Fma(x, x, row_square[c % kUsed]);
      sum[c] = hn::Add(sum[c], x);
      square[c] = Fma(x, x, square[c]);
    }
    for (size_t p = 0; p < kUsed; ++p) {
      hn::Store(row_sum[p], d, partials.sum + at + p * kLanes);
      hn::Store(row_square[p], d, partials.square + at + p * kLanes);
    }
  }
  for (size_t c = 0; c < kVectors; ++c) {
    hn::StoreU(sum[c], d, col_sum + c * kLanes);
    hn::StoreU(square[c], d, col_square + c * kLanes);
  }
}

HWY_INLINE void StoreRowStd(const float* sum, const float* square, int group, float* out) {
  const DF d;
  const VF inverse_n = hn::Set(d, 1.0f / static_cast<float>(group));  // a power of two: exact
  const VF n_minus_1 = hn::Set(d, static_cast<float>(group - 1));
  for (size_t i = 0; i < kVirtualLanes; i += kLanes) {
    const VF s1 = hn::Load(d, sum + i);
    const VF centred = hn::Sub(hn::Load(d, square + i), hn::Mul(hn::Mul(s1, s1), inverse_n));
    hn::StoreU(hn::Sqrt(hn::Max(hn::Div(centred, n_minus_1), hn::Zero(d))), d, out + i);
  }
}

template <size_t kVectors, bool kHasV, class T>
HWY_INLINE void StatsOf(const T* w, int64_t rows, int group, const float* u, const float* v,
                        const TileStats& out) {
  const RowOrder order = MakeRowOrder();
  double sum[kMaxGroup] = {}, square[kMaxGroup] = {};
  HWY_ALIGN float block_sum[kMaxGroup], block_square[kMaxGroup];
  RowPartials partials;
  // Absent rows of the last block, and lanes beyond a short chunk, add nothing.
  std::memset(&partials, 0, sizeof(partials));
  const int step = static_cast<int>(kVectors * kLanes);
  for (int64_t first = 0; first < rows; first += kRowBlock) {
    const int count = static_cast<int>(std::min<int64_t>(kRowBlock, rows - first));
    const T* block = w + static_cast<size_t>(first * group);
    for (int col = 0; col < group; col += step) {
      SumChunk<kVectors, kHasV>(block + col, static_cast<size_t>(group), count, u + col,
                                kHasV ? v + first : nullptr, col == 0, order, partials,
                                block_sum + col, block_square + col);
    }
    for (int k = 0; k < group; ++k) {
      sum[k] += static_cast<double>(block_sum[k]);
      square[k] += static_cast<double>(block_square[k]);
    }
    for (int half = 0; half < count; half += kVirtualLanes) {
      HWY_ALIGN float row_sum[kVirtualLanes], row_square[kVirtualLanes];
      ReduceRows(partials.sum + half * kVirtualLanes, row_sum);
      ReduceRows(partials.square + half * kVirtualLanes, row_square);
      StoreRowStd(row_sum, row_square, group, out.row_std + first + half);
    }
  }
  const double n = static_cast<double>(rows);
  for (int k = 0; k < group; ++k) {
    const double variance = (square[k] - sum[k] * sum[k] / n) / (n - 1);
    out.col_std[k] = static_cast<float>(std::sqrt(std::max(variance, 0.0)));
    out.col_square_sum[k] = square[k];
  }
}

template <bool kHasV, class T>
HWY_INLINE void StatsOfGroup(const T* w, const Tile& tile, const float* u, const float* v,
                             const TileStats& out) {
  const size_t vectors = static_cast<size_t>(tile.group) / kLanes;
  if (vectors >= kChunkVectors)
    return StatsOf<kChunkVectors, kHasV>(w, tile.rows, tile.group, u, v, out);
  if (vectors == 2) return StatsOf<2, kHasV>(w, tile.rows, tile.group, u, v, out);
  StatsOf<1, kHasV>(w, tile.rows, tile.group, u, v, out);
}

void Stats(const Tile& tile, const float* u, const float* v, const TileStats& out) {
  if (tile.is_bf16) {
    const auto* w = static_cast<const uint16_t*>(tile.data);
    return v ? StatsOfGroup<true>(w, tile, u, v, out) : StatsOfGroup<false>(w, tile, u, v, out);
  }
  const auto* w = static_cast<const float*>(tile.data);
  return v ? StatsOfGroup<true>(w, tile, u, v, out) : StatsOfGroup<false>(w, tile, u, v, out);
}

void Extremes(const float* values, int64_t count, float* smallest, float* largest) {
  const DF d;
  VF low = hn::Set(d, values[0]), high = low;
  int64_t i = 0;
  for (; i + static_cast<int64_t>(kLanes) <= count; i += static_cast<int64_t>(kLanes)) {
    const VF value = hn::LoadU(d, values + i);
    low = hn::Min(low, value);
    high = hn::Max(high, value);
  }
  *smallest = hn::GetLane(hn::MinOfLanes(d, low));
  *largest = hn::GetLane(hn::MaxOfLanes(d, high));
  for (; i < count; ++i) {
    *smallest = std::min(*smallest, values[i]);
    *largest = std::max(*largest, values[i]);
  }
}

void Update(const float* std, int64_t count, float tau, float factor, float* scale,
            float* reciprocal) {
  const DF d;
  const VF one = hn::Set(d, 1.0f);
  for (int64_t i = 0; i < count; i += static_cast<int64_t>(kLanes)) {
    const VF deviation = Clamp(hn::LoadU(d, std + i), hn::Set(d, 1e-3f), hn::Set(d, 1e3f));
    const VF step = Clamp(hn::Div(deviation, hn::Set(d, tau)), hn::Set(d, 0.7f), hn::Set(d, 2.0f));
    const VF next = Clamp(hn::Mul(hn::LoadU(d, scale + i), step), hn::Set(d, 0.74081822f),
                          hn::Set(d, 22026.466f));
    hn::StoreU(next, d, scale + i);
    hn::StoreU(hn::Mul(hn::Div(one, next), hn::Set(d, factor)), d, reciprocal + i);
  }
}

// ---------------------------------------------------------------- scale and zero of each group;
// lane = row

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

struct Sums {
  VF error;     // sum of (code - exact code)^2
  VF codes;     // sum of q
  VF squares;   // sum of q^2
  VF products;  // sum of q*y
};

// Codes y with (scale, zero) and sums up what the next step needs.
HWY_INLINE Sums Score(const float* HWY_RESTRICT y, int group, VF scale, VF zero, VF top) {
  const DF d;
  const VF inverse = Reciprocal(scale);
  Sums sums{hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)};
  for (int k = 0; k < group; ++k) {
    const VF value = hn::Load(d, y + static_cast<size_t>(k) * kLanes);
    const VF exact = Fma(value, inverse, zero);
    const VF q = hn::Round(Clamp(exact, hn::Zero(d), top));
    const VF miss = hn::Sub(exact, q);
    sums.error = Fma(miss, miss, sums.error);
    sums.codes = hn::Add(sums.codes, q);
    sums.squares = Fma(q, q, sums.squares);
    sums.products = Fma(q, value, sums.products);
  }
  sums.error = hn::Mul(sums.error, hn::Mul(scale, scale));
  return sums;
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

struct Fit {
  VF scale, zero;
  Sums sums;
};

HWY_INLINE void KeepBetter(Fit& best, const Fit& next) {
  const auto better = hn::Lt(next.sums.error, best.sums.error);
  best.scale = hn::IfThenElse(better, next.scale, best.scale);
  best.zero = hn::IfThenElse(better, next.zero, best.zero);
  best.sums.error = hn::IfThenElse(better, next.sums.error, best.sums.error);
  best.sums.codes = hn::IfThenElse(better, next.sums.codes, best.sums.codes);
  best.sums.squares = hn::IfThenElse(better, next.sums.squares, best.sums.squares);
  best.sums.products = hn::IfThenElse(better, next.sums.products, best.sums.products);
}

// zeta of README.md section 4.
HWY_INLINE VF StorableZero(VF zero, const FitParams& params, VF top) {
  const DF d;
  if (!params.zero_in_range) return RoundVectorToF16(zero);
  const VF sixteenths = hn::Mul(hn::Round(hn::Mul(zero, hn::Set(d, 16.0f))), hn::Set(d, 0.0625f));
  return Clamp(sixteenths, hn::Zero(d), top);
}

HWY_INLINE VF IfPositive(VF value, VF otherwise) {
  const DF d;
  return hn::IfThenElse(hn::Gt(value, hn::Zero(d)), value, otherwise);
}

// One least-squares step from the codes behind `sums`; returns the new scale and sets the new zero.
HWY_INLINE VF LeastSquares(const Sums& sums, VF scale, VF total, int group, const FitParams& params,
                           VF top, VF* zero) {
  const DF d;
  const VF n = hn::Set(d, static_cast<float>(group));
  const VF det = hn::Sub(hn::Mul(n, sums.squares), hn::Mul(sums.codes, sums.codes));
  const VF num = hn::Sub(hn::Mul(n, sums.products), hn::Mul(sums.codes, total));
  const VF slope = IfPositive(hn::Mul(num, Reciprocal(IfPositive(det, hn::Zero(d)))), scale);
  const VF offset = hn::Mul(hn::Sub(total, hn::Mul(slope, sums.codes)),
                            hn::Set(d, 1.0f / static_cast<float>(group)));
  const VF z = StorableZero(hn::Neg(hn::Mul(offset, Reciprocal(slope))), params, top);
  const VF product = Fma(hn::Neg(z), total, sums.products);
  const VF twice = hn::Mul(hn::Set(d, -2.0f), sums.codes);
  const VF square = Fma(z, Fma(n, z, twice), sums.squares);
  *zero = z;
  return IfPositive(hn::Mul(product, Reciprocal(IfPositive(square, hn::Zero(d)))), slope);
}

HWY_INLINE VF SumOf(const float* y, int group) {
  const DF d;
  VF total = hn::Zero(d);
  for (int k = 0; k < group; ++k)
    total = hn::Add(total, hn::Load(d, y + static_cast<size_t>(k) * kLanes));
  return total;
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

// The range [lo, hi] times `shrink`, coded.
HWY_INLINE Fit RangeFit(const float* y, int group, VF low, VF high, float shrink,
                        const FitParams& params, VF top) {
  const DF d;
  const VF lo = hn::Mul(hn::Set(d, shrink), low), hi = hn::Mul(hn::Set(d, shrink), high);
  const float inverse_top = 1.0f / static_cast<float>((1 << params.bits) - 1);
  const VF scale = hn::Mul(hn::Sub(hi, lo), hn::Set(d, inverse_top));
  const VF zero = StorableZero(hn::Neg(hn::Mul(lo, Reciprocal(scale))), params, top);
  return {scale, zero, Score(y, group, scale, zero, top)};
}

HWY_INLINE Fit StepFit(const float* y, int group, const Fit& from, VF total,
                       const FitParams& params, VF top) {
  VF zero;
  const VF scale = LeastSquares(from.sums, from.scale, total, group, params, top, &zero);
  return {scale, zero, Score(y, group, scale, zero, top)};
}

// One value in the whole group: a step of its size beside a zero of 0 or 1 holds it as exactly as
// the stored scale does, and never with a scale that is a small part of it.
HWY_INLINE void FitConstants(VF low, VF high, Fit& fit) {
  const DF d;
  const VF none = hn::Zero(d);
  const auto constant = hn::And(hn::Eq(low, high), hn::Ne(low, none));
  const VF zero = hn::IfThenElse(hn::Gt(low, none), none, hn::Set(d, 1.0f));
  fit.scale = hn::IfThenElse(constant, hn::Abs(low), fit.scale);
  fit.zero = hn::IfThenElse(constant, zero, fit.zero);
}

HWY_INLINE Fit SearchAsymmetric(const float* y, int group, VF low, VF high,
                                const FitParams& params) {
  const DF d;
  const VF top = hn::Set(d, static_cast<float>((1 << params.bits) - 1));
  Fit best = RangeFit(y, group, low, high, 1.0f, params, top);
  if (!params.refine) return best;
  const VF total = SumOf(y, group);
  Fit step = StepFit(y, group, best, total, params, top);
  for (const float shrink : {0.9f, 0.8f}) {
    const Fit range = RangeFit(y, group, low, high, shrink, params, top);
    KeepBetter(best, range);
    KeepBetter(step, StepFit(y, group, range, total, params, top));
  }
  KeepBetter(best, step);
  KeepBetter(best, StepFit(y, group, step, total, params, top));
  return best;
}

HWY_INLINE Fit FitAsymmetric(const float* y, int group, const FitParams& params) {
  const DF d;
  const VF none = hn::Zero(d);
  VF low, high;
  RangeOf(y, group, &low, &high);
  const VF reach = hn::Max(hn::Abs(low), hn::Abs(high));
  const auto include_zero = params.zero_in_range
                                ? hn::Eq(reach, reach)
                                : hn::Gt(reach, hn::Mul(hn::Set(d, 4.0f), hn::Sub(high, low)));
  Fit fit = SearchAsymmetric(y, group, hn::IfThenElse(include_zero, hn::Min(low, none), low),
                             hn::IfThenElse(include_zero, hn::Max(high, none), high), params);
  FitConstants(low, high, fit);
  return fit;
}

// The candidates of README.md section 4.1, all with the zero in the middle.
HWY_INLINE Fit SearchSymmetric(const float* y, int group, VF extreme, VF middle, float half) {
  const DF d;
  const VF top = hn::Set(d, 2.0f * half - 1.0f);
  const auto shrunk = [&](float shrink) {
    const VF scale =
        hn::Mul(hn::Mul(hn::Neg(extreme), hn::Set(d, shrink)), hn::Set(d, 1.0f / half));
    return Fit{scale, middle, Score(y, group, scale, middle, top)};
  };
  Fit best = shrunk(1.15f);
  for (const float shrink : {1.0f, 0.95f, 0.9f, 0.85f, 0.8f, 0.75f, 0.7f})
    KeepBetter(best, shrunk(shrink));
  const VF n = hn::Set(d, static_cast<float>(group));
  const VF product = Fma(hn::Neg(middle), SumOf(y, group), best.sums.products);
  const VF square =
      Fma(middle, Fma(n, middle, hn::Mul(hn::Set(d, -2.0f), best.sums.codes)), best.sums.squares);
  const VF refined = hn::Mul(product, Reciprocal(IfPositive(square, hn::Zero(d))));
  const VF scale = hn::IfThenElse(hn::Eq(refined, hn::Zero(d)), best.scale, refined);
  KeepBetter(best, {scale, middle, Score(y, group, scale, middle, top)});
  return best;
}

HWY_INLINE Fit FitSymmetric(const float* y, int group, const FitParams& params) {
  const DF d;
  const float half = static_cast<float>(1 << (params.bits - 1));
  const VF middle = hn::Set(d, half), none = hn::Zero(d);
  VF low, high;
  RangeOf(y, group, &low, &high);
  // The value of largest magnitude, positive on ties, goes to the lowest code: that takes a scale
  // of the other sign.
  const VF extreme = hn::IfThenElse(hn::Gt(hn::Neg(low), high), low, high);
  Fit fit{hn::Mul(hn::Abs(extreme), hn::Set(d, 1.0f / (half - 1.0f))),
          middle,
          {none, none, none, none}};
  if (params.refine) fit = SearchSymmetric(y, group, extreme, middle, half);
  const auto constant = hn::And(hn::Eq(low, high), hn::Ne(low, none));
  fit.scale = hn::IfThenElse(constant, hn::Neg(low), fit.scale);
  return fit;
}

// Lanes beyond the last row repeat it and are not stored.
HWY_INLINE void StoreRows(VF value, int64_t first, int64_t rows, float* out) {
  const DF d;
  if (first + static_cast<int64_t>(kLanes) <= rows) return hn::StoreU(value, d, out + first);
  HWY_ALIGN float lanes[kLanes];
  hn::Store(value, d, lanes);
  std::copy_n(lanes, rows - first, out + first);
}

template <class T>
HWY_INLINE void FitRows(const T* w, const Tile& tile, const float* u, const FitParams& params,
                        float* scale, float* zero) {
  HWY_ALIGN float y[kMaxGroup * kLanes];
  for (int64_t i = 0; i < tile.rows; i += static_cast<int64_t>(kLanes)) {
    const int rows =
        static_cast<int>(std::min<int64_t>(static_cast<int64_t>(kLanes), tile.rows - i));
    TransposeRows(w + static_cast<size_t>(i * tile.group), rows, tile.group, u, y);
    const Fit fit = params.symmetric ? FitSymmetric(y, tile.group, params)
                                     : FitAsymmetric(y, tile.group, params);
    // Adding 0 turns -0, about which instruction sets disagree, into 0.
    StoreRows(hn::Add(fit.scale, hn::Zero(DF())), i, tile.rows, scale);
    StoreRows(hn::Add(fit.zero, hn::Zero(DF())), i, tile.rows, zero);
  }
}

void FitTile(const Tile& tile, const float* u, const FitParams& params, float* scale, float* zero) {
  if (tile.is_bf16)
    return FitRows(static_cast<const uint16_t*>(tile.data), tile, u, params, scale, zero);
  FitRows(static_cast<const float*>(tile.data), tile, u, params, scale, zero);
}

template <class T>
HWY_INLINE void FitUpstreamRows(const T* w, const Tile& tile, const float* u, const float* v,
                                int bits, bool symmetric, float* scale, float* zero) {
  const DF d;
  HWY_ALIGN float y[kMaxGroup * kLanes];
  HWY_ALIGN float factor[kLanes];
  const float half = static_cast<float>((1 << (bits - 1)) - 1);
  for (int64_t i = 0; i < tile.rows; i += static_cast<int64_t>(kLanes)) {
    const int rows =
        static_cast<int>(std::min<int64_t>(static_cast<int64_t>(kLanes), tile.rows - i));
    TransposeRows(w + static_cast<size_t>(i * tile.group), rows, tile.group, u, y);
    for (size_t lane = 0; lane < kLanes; ++lane)
      factor[lane] = v[std::min<int64_t>(i + static_cast<int64_t>(lane), tile.rows - 1)];
    VF low, high;
    RangeOf(y, tile.group, &low, &high);
    // v > 0, so the extremes of y*v are the extremes of y times v.
    const VF row = hn::Load(d, factor);
    low = hn::Mul(low, row);
    high = hn::Mul(high, row);
    VF s, z;
    if (symmetric) {
      const VF reach = hn::Max(hn::Abs(low), hn::Abs(high));
      s = hn::Div(hn::Max(reach, hn::Set(d, 1e-5f)), hn::Set(d, half - 1.0f));
      z = hn::Set(d, half);
    } else {
      s = hn::Div(hn::Max(hn::Sub(high, low), hn::Set(d, 1e-4f)),
                  hn::Set(d, static_cast<float>((1 << bits) - 1)));
      z = hn::Neg(hn::Round(hn::Div(low, s)));
    }
    StoreRows(s, i, tile.rows, scale);
    StoreRows(hn::Add(z, hn::Zero(d)), i, tile.rows, zero);
  }
}

void FitUpstream(const Tile& tile, const float* u, const float* v, int bits, bool symmetric,
                 float* scale, float* zero) {
  if (tile.is_bf16)
    return FitUpstreamRows(static_cast<const uint16_t*>(tile.data), tile, u, v, bits, symmetric,
                           scale, zero);
  FitUpstreamRows(static_cast<const float*>(tile.data), tile, u, v, bits, symmetric, scale, zero);
}

// ---------------------------------------------------------------- 8-bit scales and zeros

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

// F16's infinity from 65520 on, as a reader gets it.
HWY_INLINE VF ReadBackF16(VF x) {
  const DF d;
  const VF infinity = hn::CopySign(hn::Set(d, std::numeric_limits<float>::infinity()), x);
  return hn::IfThenElse(hn::Ge(hn::Abs(x), hn::Set(d, 65520.0f)), infinity, RoundVectorToF16(x));
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

bool StoreF16Values(float* values, int64_t count, std::byte* out) {
  const DF d;
  const hn::Rebind<uint16_t, DI> d16;
  VF largest = hn::Zero(d);
  int64_t i = 0;
  for (; i + static_cast<int64_t>(kLanes) <= count; i += static_cast<int64_t>(kLanes)) {
    // Adding 0 turns -0, about which instruction sets disagree, into 0.
    const VF value = hn::LoadU(d, values + i);
    const VF rounded = hn::Add(RoundVectorToF16(value), hn::Zero(d));
    largest = hn::Max(largest, hn::Abs(value));
    HWY_ALIGN uint16_t bits[kLanes];
    hn::Store(hn::DemoteTo(d16, F16Bits(rounded)), d16, bits);
    std::memcpy(out + 2 * i, bits, sizeof(bits));
    hn::StoreU(rounded, d, values + i);
  }
  float top = hn::GetLane(hn::MaxOfLanes(d, largest));
  for (; i < count; ++i) {
    top = std::max(top, std::abs(values[i]));
    values[i] = RoundToF16(values[i]) + 0.0f;
    const uint16_t bits = FloatToF16(values[i]);
    std::memcpy(out + 2 * i, &bits, sizeof(bits));
  }
  return top < 65520.0f;
}

HWY_INLINE VF GridLanes(const float* grid, size_t at, bool shared) {
  const DF d;
  return shared ? hn::Set(d, grid[0]) : hn::LoadU(d, grid + at);
}

HWY_INLINE void EncodeAuxLanes(float* values, const AuxGrids& grids, size_t at, uint8_t* codes) {
  const DF d;
  const DI di;
  const hn::Rebind<uint8_t, DI> d8;
  const VF value = hn::LoadU(d, values);
  const VF step = GridLanes(grids.step, at, grids.shared);
  const VF exact = hn::Div(hn::Sub(value, GridLanes(grids.minimum, at, grids.shared)), step);
  const VF rounded = Clamp(hn::Round(exact), hn::Zero(d), hn::Set(d, 255.0f));
  const VF code = hn::IfThenZeroElse(hn::Eq(step, hn::Zero(d)), rounded);
  hn::StoreU(hn::DemoteTo(d8, hn::ConvertTo(di, code)), d8, codes);
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

// ---------------------------------------------------------------- codes, packing, error figures

struct ErrorPartials {
  HWY_ALIGN float error[kVirtualLanes * kVirtualLanes];
  HWY_ALIGN float power[kVirtualLanes * kVirtualLanes];
};

// Shifts the group's codes into `words` and leaves its error sums in the lanes of `slot`.
template <bool kDivide, class T>
HWY_INLINE void EncodeGroup(const T* HWY_RESTRICT w, const EncodeParams& p, int64_t col, size_t e,
                            size_t slot, ErrorPartials& partials, int32_t* HWY_RESTRICT words) {
  const DF d;
  const DI di;
  const VF lowest = hn::Set(d, static_cast<float>(p.code_shift_min)),
           highest = hn::Set(d, static_cast<float>(p.code_shift_max));
  const VF offset = hn::Set(d, static_cast<float>(p.code_offset));
  const VF zero = hn::Set(d, p.zero[e]), scale = hn::Set(d, p.scale[e]);
  const VF factor = kDivide ? hn::Set(d, p.row_factor[e]) : Reciprocal(scale);
  const VF stored_zero = hn::Set(d, p.stored_zero[e]), stored_scale = hn::Set(d, p.stored_scale[e]);
  VF error[kParts], power[kParts];
  for (size_t i = 0; i < kParts; ++i) error[i] = power[i] = hn::Zero(d);
  for (int k = 0; k < p.group; k += kVirtualLanes) {
    for (size_t part = 0; part < kParts; ++part) {
      const size_t at = static_cast<size_t>(k) + part * kLanes;
      const VF weight = LoadWeights(d, w + at);
      const VF y = hn::Mul(weight, hn::LoadU(d, p.column + col + at));
      const VF exact =
          kDivide ? hn::Add(hn::Div(hn::Mul(y, factor), scale), zero) : Fma(y, factor, zero);
      const VF q = hn::Add(hn::Round(Clamp(exact, lowest, highest)), offset);
      const VF value = hn::Mul(hn::Mul(hn::Sub(q, stored_zero), stored_scale),
                               hn::LoadU(d, p.stored_column + col + at));
      const VF miss = hn::Sub(value, weight);
      error[part] = Fma(miss, miss, error[part]);
      power[part] = Fma(weight, weight, power[part]);
      const auto shifted = hn::ShiftLeftSame(hn::Load(di, words + at), p.bits);
      hn::Store(hn::Or(shifted, hn::ConvertTo(di, q)), di, words + at);
    }
  }
  for (size_t part = 0; part < kParts; ++part) {
    hn::Store(error[part], d, partials.error + slot * kVirtualLanes + part * kLanes);
    hn::Store(power[part], d, partials.power + slot * kVirtualLanes + part * kLanes);
  }
}

template <bool kDivide>
HWY_INLINE void EncodeGroupOf(const MatrixView& in, const EncodeParams& p, int64_t row, int64_t col,
                              size_t e, size_t slot, ErrorPartials& partials, int32_t* words) {
  if (in.dtype == WeightDtype::kBf16) {
    HWY_ALIGN uint16_t copy[kMaxGroup];
    return EncodeGroup<kDivide>(Bf16Row(in, row, col, p.group, copy), p, col, e, slot, partials,
                                words);
  }
  HWY_ALIGN float values[kMaxGroup];
  WidenRow(in, row, col, p.group, values);
  EncodeGroup<kDivide>(values, p, col, e, slot, partials, words);
}

HWY_INLINE void StorePacked(const int32_t* HWY_RESTRICT words, size_t count, int word_bytes,
                            std::byte* HWY_RESTRICT out) {
  if (word_bytes == 4) {
    std::memcpy(out, words, 4 * count);
    return;
  }
  auto* bytes = reinterpret_cast<uint8_t*>(out);
  for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<uint8_t>(words[i]);
}

template <bool kDivide>
HWY_INLINE void EncodeRows(const MatrixView& in, const EncodeParams& p, int64_t first, int64_t last,
                           std::byte* packed) {
  const CodePacking& packing = PackingFor(p.bits);
  const int64_t groups_per_row = in.cols / p.group, group_rows = in.rows * groups_per_row;
  const int64_t step = (group_rows + packing.codes_per_word - 1) / packing.codes_per_word;
  const RowOrder order = MakeRowOrder();
  HWY_ALIGN int32_t words[kVirtualLanes * kMaxGroup];
  ErrorPartials partials;
  for (int64_t q = first; q < last; q += kVirtualLanes) {
    const int64_t count = std::min<int64_t>(kVirtualLanes, last - q);
    std::memset(words, 0, sizeof(words));
    for (int64_t chunk = 0; chunk < packing.codes_per_word; ++chunk) {
      const int64_t base = q + chunk * step;
      const int64_t present = std::clamp<int64_t>(group_rows - base, 0, count);
      std::memset(&partials, 0, sizeof(partials));
      for (int64_t i = 0; i < present; ++i) {
        const int64_t e = base + i, row = e / groups_per_row;
        EncodeGroupOf<kDivide>(in, p, row, (e - row * groups_per_row) * p.group,
                               static_cast<size_t>(e), order.slot[i], partials,
                               words + i * p.group);
      }
      for (int64_t i = present * p.group; i < count * p.group; ++i) words[i] <<= p.bits;
      HWY_ALIGN float error[kVirtualLanes], power[kVirtualLanes];
      ReduceRows(partials.error, error);
      ReduceRows(partials.power, power);
      std::copy_n(error, present, p.error + base);
      std::copy_n(power, present, p.power + base);
    }
    StorePacked(words, static_cast<size_t>(count * p.group), packing.word_bytes,
                packed + static_cast<size_t>(q * p.group * packing.word_bytes));
  }
}

void Encode(const MatrixView& in, const EncodeParams& params, int64_t first, int64_t last,
            std::byte* packed) {
  if (params.divide) return EncodeRows<true>(in, params, first, last, packed);
  EncodeRows<false>(in, params, first, last, packed);
}

const TileOps* GetTileOps() {
  static const TileOps kOps{hwy::TargetName(HWY_TARGET),
                            &LoadTile,
                            &Stats,
                            &Extremes,
                            &Update,
                            &FitTile,
                            &FitUpstream,
                            &AddMoments,
                            &Widen,
                            &EncodeAux,
                            &StoreF16Values,
                            &Encode};
  return &kOps;
}

}  // namespace HWY_NAMESPACE
}  // namespace sinq::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
