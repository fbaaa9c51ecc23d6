// Scale and zero of each group in profile default (README.md sections 4, 9.1 and 11).
#if defined(SINQ_KERNELS_FIT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SINQ_KERNELS_FIT_INL_H_
#undef SINQ_KERNELS_FIT_INL_H_
#else
#define SINQ_KERNELS_FIT_INL_H_
#endif

#include "kernels/hadamard-inl.h"
#include "kernels/search_rules.h"
#include "kernels/trial-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sinq::kernels {
namespace HWY_NAMESPACE {

// The scale with which the codes are as long as the values along them: least squares alone would
// make every weight, and so the layer's output, a little too small.
HWY_INLINE VF UnbiasedScale(const Fit& fit, VF squares) {
  const DF d;
  const VF scale = hn::Mul(squares, Reciprocal(fit.product));
  const VF length = hn::Abs(scale), given = hn::Abs(fit.scale);
  const auto same_sign = hn::Gt(hn::Mul(scale, fit.scale), hn::Zero(d));
  const auto is_near = hn::And(hn::Ge(length, hn::Mul(hn::Set(d, 0.8f), given)),
                               hn::Le(length, hn::Mul(hn::Set(d, 1.25f), given)));
  return hn::IfThenElse(hn::And(same_sign, is_near), scale, fit.scale);
}

// README.md section 4.1: the best of `count` codings at first(n, block), of `steps` steps from the
// best refit of those, and the last refit; with the unbiased scale.
template <class Levels, class Rules, class First>
HWY_INLINE void Search(const Blocks& blocks, const Seen (&seen)[kBlocks], const Levels& levels,
                       const Rules& rules, int count, int steps, const First& first,
                       Placement (&found)[kBlocks]) {
  Fit best[kBlocks], next[kBlocks];
  for (int n = 0; n < count + steps; ++n) {
    Placement at[kBlocks];
    for (size_t b = 0; b < kBlocks; ++b)
      at[b] = n < count ? first(n, b) : Placement{next[b].scale, next[b].zero};
    CodeSums sums[kBlocks];
    Code(blocks.y, blocks.group, at, levels, sums);
    for (size_t b = 0; b < kBlocks; ++b) {
      const Trial trial = rules.TrialOf(sums[b], at[b], seen[b].totals);
      if (n == 0) {
        best[b] = trial.coded;
      } else {
        KeepBetter(best[b], trial.coded);
      }
      if (n == 0 || n >= count) {
        next[b] = trial.refit;
      } else {
        KeepBetter(next[b], trial.refit);
      }
    }
  }
  for (size_t b = 0; b < kBlocks; ++b) {
    // No coding has seen the last one: it must be better by more than rounding can make it look.
    const VF squares = seen[b].totals.squares;
    next[b].error = hn::Add(next[b].error, hn::Mul(squares, hn::Set(DF(), kUnseenMargin)));
    KeepBetter(best[b], next[b]);
    found[b] = {UnbiasedScale(best[b], squares), best[b].zero};
  }
}

// The range that even levels cover.
struct EvenRange {
  VF low, high;
  HWY_INLINE Placement Without(const RangeCut& cut, const FitParams& params) const {
    const DF d;
    const float unit = 0.5f / static_cast<float>(1 << params.bits);
    const VF width = hn::Sub(high, low);
    const VF lo = Fma(hn::Set(d, cut.low * unit), width, low);
    const VF hi = Fma(hn::Set(d, -cut.high * unit), width, high);
    const float inverse_top = 1.0f / static_cast<float>((1 << params.bits) - 1);
    const VF scale = hn::Mul(hn::Sub(hi, lo), hn::Set(d, inverse_top));
    return {scale, StorableZero(hn::Neg(hn::Mul(lo, Reciprocal(scale))), params)};
  }
};

// The range that a codebook covers: its levels -1 .. 1 around the mean.
struct BookRange {
  VF mean, reach;
  HWY_INLINE Placement Without(const RangeCut& cut, const FitParams& params) const {
    const float unit = 1.0f / static_cast<float>(1 << params.bits);
    const VF scale = hn::Mul(hn::Set(DF(), 1.0f - cut.low * unit), reach);
    return {scale, StorableZero(hn::Neg(hn::Mul(mean, Reciprocal(scale))), params)};
  }
};

// Ranges, then steps.
template <class Levels, class Range>
HWY_INLINE void SearchAsymmetric(const Blocks& blocks, const Seen (&seen)[kBlocks],
                                 const Range (&whole)[kBlocks], const FitParams& params,
                                 const Levels& levels, Placement (&fits)[kBlocks]) {
  if (!params.refine) {
    for (size_t b = 0; b < kBlocks; ++b) fits[b] = whole[b].Without({}, params);
    return;
  }
  const RangeSearch& search = RangeSearchFor(params.zero_grid, HasCodebook(params.rounding));
  const auto range = [&](int n, size_t b) {
    return whole[b].Without(search.cuts[n], params);
  };
  Search(blocks, seen, levels, AsymmetricRules{blocks.group, params}, search.ranges, search.steps,
         range, fits);
}

// The range as the storage of zeros wants it: around 0 where a zero must lie within the codes, or
// where F16 would lose digits of it.
HWY_INLINE EvenRange StorableRange(VF low, VF high, const FitParams& params) {
  const DF d;
  const VF none = hn::Zero(d);
  const VF reach = hn::Max(hn::Abs(low), hn::Abs(high));
  const auto include_zero = HasRealZeros(params)
                                ? hn::Gt(reach, hn::Mul(hn::Set(d, 4.0f), hn::Sub(high, low)))
                                : hn::Eq(reach, reach);
  EvenRange range{hn::IfThenElse(include_zero, hn::Min(low, none), low),
                  hn::IfThenElse(include_zero, hn::Max(high, none), high)};
  if (params.zero_grid == ZeroGrid::kIntegerFromOne) {
    const float share = 1.0f / static_cast<float>((1 << params.bits) - 2);
    range.low = hn::Min(range.low, hn::Neg(hn::Mul(range.high, hn::Set(d, share))));
  }
  return range;
}

// One value in the whole group, held as exactly as the stored scale is. By a step of its size
// beside a zero of 0 or 1, so that the scale is never a small part of it; but where groups share
// one 8-bit grid of scales, by all steps of the range, whose scale is like that of other groups.
HWY_INLINE void FitConstants(VF low, VF high, const FitParams& params, Placement& fit) {
  const DF d;
  const VF none = hn::Zero(d), one = hn::Set(d, 1.0f), top = TopCode(params);
  const bool has_book = HasCodebook(params.rounding);
  const bool shares_grid = params.zero_grid == ZeroGrid::kSixteenths;
  const VF above = params.zero_grid == ZeroGrid::kIntegerFromOne && !has_book ? one : none;
  const VF below = has_book ? none : shares_grid ? top : one;
  const VF steps = shares_grid ? top : one;
  const auto constant = hn::And(hn::Eq(low, high), hn::Ne(low, none));
  const VF single = hn::IfThenElse(hn::Gt(low, none), above, below);
  fit.scale = hn::IfThenElse(constant, hn::Mul(hn::Abs(low), Reciprocal(steps)), fit.scale);
  fit.zero = hn::IfThenElse(constant, single, fit.zero);
}

HWY_INLINE void FitAsymmetric(const Blocks& blocks, const Seen (&seen)[kBlocks],
                              const FitParams& params, Placement (&fits)[kBlocks]) {
  EvenRange whole[kBlocks];
  for (size_t b = 0; b < kBlocks; ++b) whole[b] = StorableRange(seen[b].low, seen[b].high, params);
  SearchAsymmetric(blocks, seen, whole, params, EvenLevels{TopCode(params)}, fits);
  for (size_t b = 0; b < kBlocks; ++b) FitConstants(seen[b].low, seen[b].high, params, fits[b]);
}

HWY_INLINE void FitToBook(const Blocks& blocks, const Seen (&seen)[kBlocks],
                          const FitParams& params, Placement (&fits)[kBlocks]) {
  const VF share = hn::Set(DF(), 1.0f / static_cast<float>(blocks.group));
  BookRange whole[kBlocks];
  for (size_t b = 0; b < kBlocks; ++b) {
    const VF mean = hn::Mul(seen[b].totals.values, share);
    whole[b] = {mean, hn::Max(hn::Sub(seen[b].high, mean), hn::Sub(mean, seen[b].low))};
  }
  SearchAsymmetric(blocks, seen, whole, params, BookLevels{CodebookOf(params.rounding)}, fits);
  for (size_t b = 0; b < kBlocks; ++b) FitConstants(seen[b].low, seen[b].high, params, fits[b]);
}

// The value of largest magnitude, positive on ties.
HWY_INLINE VF ExtremeOf(const Seen& seen) {
  return hn::IfThenElse(hn::Gt(hn::Neg(seen.low), seen.high), seen.low, seen.high);
}

// Four reaches and one step. The extreme goes to the lowest code, which takes a scale of the other
// sign.
HWY_INLINE void SearchSymmetric(const Blocks& blocks, const Seen (&seen)[kBlocks], int bits,
                                Placement (&fits)[kBlocks]) {
  const DF d;
  const float half = static_cast<float>(1 << (bits - 1));
  const CentredLevels levels{hn::Set(d, -half), hn::Set(d, half - 1.0f)};
  const auto reach = [&](int n, size_t b) -> Placement {
    const VF share = hn::Set(d, ReachOf(n, bits));
    return {hn::Mul(hn::Mul(hn::Neg(ExtremeOf(seen[b])), share), hn::Set(d, 1.0f / half)),
            hn::Set(d, half)};
  };
  Search(blocks, seen, levels, SymmetricRules(), kReaches, kStepsAfterReaches, reach, fits);
}

HWY_INLINE void FitSymmetric(const Blocks& blocks, const Seen (&seen)[kBlocks],
                             const FitParams& params, Placement (&fits)[kBlocks]) {
  const DF d;
  const float half = static_cast<float>(1 << (params.bits - 1));
  const VF share = hn::Set(d, 1.0f / (half - 1.0f));
  for (size_t b = 0; b < kBlocks; ++b)
    fits[b] = {hn::Mul(hn::Abs(ExtremeOf(seen[b])), share), hn::Set(d, half)};
  if (params.refine) SearchSymmetric(blocks, seen, params.bits, fits);
  for (size_t b = 0; b < kBlocks; ++b) {
    const VF low = seen[b].low;
    const auto constant = hn::And(hn::Eq(low, seen[b].high), hn::Ne(low, hn::Zero(d)));
    fits[b].scale = hn::IfThenElse(constant, hn::Neg(low), fits[b].scale);
  }
}

HWY_INLINE void FitGroups(const Blocks& blocks, const FitParams& params,
                          Placement (&fits)[kBlocks]) {
  Seen seen[kBlocks];
  LookAt(blocks, seen);
  if (HasCodebook(params.rounding)) return FitToBook(blocks, seen, params, fits);
  if (params.symmetric) return FitSymmetric(blocks, seen, params, fits);
  FitAsymmetric(blocks, seen, params, fits);
}

// Scales and zeros of transposed groups, which may change. False if a group that is scaled has a
// NaN or infinity.
HWY_INLINE bool FitBlocks(float* y, int group, const FitParams& params,
                          Placement (&fits)[kBlocks]) {
  const DF d;
  Blocks blocks{{}, group};
  VF undo[kBlocks];
  bool is_finite = true;
  for (size_t b = 0; b < kBlocks; ++b) {
    float* const block = BlockOf(y, b);
    if (params.rounding == Rounding::kHadamard) TransformLanes(block, group);
    undo[b] = hn::Set(d, 1.0f);
    blocks.y[b] = block;
    if (!params.scales_groups) continue;
    const auto largest_bits = LargestBits(block, group);
    is_finite = is_finite && AreFinite(largest_bits);
    undo[b] = ScaleGroups(block, group, largest_bits);
  }
  FitGroups(blocks, params, fits);
  for (size_t b = 0; b < kBlocks; ++b) {
    // Adding 0 turns -0, about which instruction sets disagree, into 0.
    fits[b].scale = hn::Mul(hn::Add(fits[b].scale, hn::Zero(d)), undo[b]);
    fits[b].zero = hn::Add(fits[b].zero, hn::Zero(d));
  }
  return is_finite;
}

HWY_INLINE void StoreFits(const Placement (&fits)[kBlocks], int64_t first, int64_t rows,
                          float* scale, float* zero) {
  for (size_t b = 0; b < kBlocks; ++b, first += static_cast<int64_t>(kLanes)) {
    StoreRows(fits[b].scale, first, rows, scale);
    StoreRows(fits[b].zero, first, rows, zero);
  }
}

void FitTile(const Tile& tile, const float* u, const FitParams& params, float* scale, float* zero) {
  ForBlocks<kBlocks>(tile, u, [&](int64_t i, float* y) {
    Placement fits[kBlocks];
    FitBlocks(y, tile.group, params, fits);
    StoreFits(fits, i, tile.rows, scale, zero);
  });
}

// Rows [first, last) of the matrix by blocks, tile after tile: neighbours in memory one after the
// other. `rows_of(i, tile)` gives the block's rows of a tile for TransposeRows.
template <class RowsOf>
HWY_INLINE int64_t FitRowsOf(const MatrixView& in, int group, const FitParams& params,
                             int64_t first, int64_t last, const RowsOf& rows_of, float* scale,
                             float* zero) {
  constexpr int64_t kBlockRows = static_cast<int64_t>(kBlocks * kLanes);
  HWY_ALIGN float y[kBlocks * kMaxGroup * kLanes];
  for (int64_t i = first; i < last; i += kBlockRows) {
    bool is_finite = true;
    for (int64_t tile = 0; tile < in.cols / group; ++tile) {
      const auto rows = rows_of(i, tile);
      for (size_t b = 0; b < kBlocks; ++b)
        TransposeRows(rows, static_cast<int64_t>(b * kLanes), last - i, group, BlockOf(y, b));
      Placement fits[kBlocks];
      is_finite = FitBlocks(y, group, params, fits) && is_finite;
      StoreFits(fits, i, last, scale + tile * in.rows, zero + tile * in.rows);
    }
    if (!is_finite) return FindBadRow(in, i, std::min(i + kBlockRows, last));
  }
  return -1;
}

// BF16 weights that lie at an even address.
HWY_INLINE int64_t FitBf16Rows(const MatrixView& in, int group, const FitParams& params,
                               int64_t first, int64_t last, float* scale, float* zero) {
  HWY_ALIGN float ones[kMaxGroup];
  std::fill_n(ones, group, 1.0f);
  const auto* const w = reinterpret_cast<const uint16_t*>(in.data);
  const size_t cols = static_cast<size_t>(in.cols);
  const auto rows_of = [&](int64_t i, int64_t tile) {
    const size_t col = static_cast<size_t>(tile * group);
    const uint16_t* const from = w + static_cast<size_t>(i) * cols + col;
    PrefetchBlock(from + group, cols, std::min<int64_t>(kBlocks * kLanes, last - i), group);
    return MatrixRows{from, cols,
                      in.row_factor.empty() ? nullptr : in.row_factor.data() + i,
                      in.column_factor.empty() ? ones : in.column_factor.data() + col};
  };
  return FitRowsOf(in, group, params, first, last, rows_of, scale, zero);
}

HWY_INLINE int64_t FitWidenedRows(const MatrixView& in, int group, const FitParams& params,
                                  int64_t first, int64_t last, float* scale, float* zero) {
  HWY_ALIGN float values[kBlocks * kLanes * kMaxGroup];
  HWY_ALIGN float ones[kMaxGroup];
  std::fill_n(ones, group, 1.0f);
  const auto rows_of = [&](int64_t i, int64_t tile) {
    const int64_t count = std::min<int64_t>(kBlocks * kLanes, last - i);
    for (int64_t row = 0; row < count; ++row)
      WidenRow(in, i + row, tile * group, group, values + row * group);
    return TileRows<float>{values, static_cast<size_t>(group), ones};
  };
  return FitRowsOf(in, group, params, first, last, rows_of, scale, zero);
}

int64_t FitRows(const MatrixView& in, int group, const FitParams& params, int64_t first,
                int64_t count, float* scale, float* zero) {
  const bool is_even = reinterpret_cast<uintptr_t>(in.data) % alignof(uint16_t) == 0;
  if (in.dtype == WeightDtype::kBf16 && is_even)
    return FitBf16Rows(in, group, params, first, first + count, scale, zero);
  return FitWidenedRows(in, group, params, first, first + count, scale, zero);
}

template <class Levels>
HWY_INLINE VF SquaredError(const float* y, int group, const Placement& at, const Levels& levels) {
  const float* const block[] = {y};
  const Placement placement[] = {at};
  CodeSums sums[1];
  Code(block, group, placement, levels, sums);
  return ErrorOf(sums[0], at.scale);
}

void ScoreTile(const Tile& tile, const float* u, const FitParams& params, const float* scale,
               const float* zero, float* error, float* power) {
  ForRows(tile, u, [&](int64_t i, float* y) {
    if (params.rounding == Rounding::kHadamard) TransformLanes(y, tile.group);
    const Placement at{RowFactors(scale, i, tile.rows), RowFactors(zero, i, tile.rows)};
    const VF miss = HasCodebook(params.rounding)
                        ? SquaredError(y, tile.group, at, BookLevels{CodebookOf(params.rounding)})
                        : SquaredError(y, tile.group, at, EvenLevels{TopCode(params)});
    StoreRows(miss, i, tile.rows, error);
    StoreRows(TotalsOf(y, tile.group).squares, i, tile.rows, power);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace sinq::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
