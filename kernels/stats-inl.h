// Standard deviations of a tile, moments of the tensor (README.md sections 1 - 3).
#if defined(SINQ_KERNELS_STATS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SINQ_KERNELS_STATS_INL_H_
#undef SINQ_KERNELS_STATS_INL_H_
#else
#define SINQ_KERNELS_STATS_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/load-inl.h"
#include "kernels/sums-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sinq::kernels {
namespace HWY_NAMESPACE {

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

}  // namespace HWY_NAMESPACE
}  // namespace sinq::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
