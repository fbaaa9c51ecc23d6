// What the searches of README.md section 4.1 try, the same on CPU and CUDA.
#ifndef SINQ_KERNELS_SEARCH_RULES_H_
#define SINQ_KERNELS_SEARCH_RULES_H_

#include "kernels/tile_ops.h"  // ZeroGrid

namespace sinq::kernels {

// Asymmetric: ranges with this much of their ends cut off, then steps. Units: 2^-b of half the
// range, or of a codebook's reach (the first alone).
struct RangeCut {
  float low, high;
};
inline constexpr int kMaxRanges = 4;
struct RangeSearch {
  int ranges, steps;
  RangeCut cuts[kMaxRanges];
};
// Uneven cuts move the levels by a part of a step and so lead to other local minima. For zeros that
// hold such a part; whole ones would round it away, and a codebook covers one reach to both sides.
inline constexpr RangeSearch kUnevenRanges = {
    4, 1, {{0.0f, 0.0f}, {1.2f, 1.2f}, {0.1f, 1.2f}, {1.6f, 0.4f}}};
inline constexpr RangeSearch kEvenRanges = {3, 2, {{0.0f, 0.0f}, {0.65f, 0.65f}, {1.3f, 1.3f}}};
inline constexpr const RangeSearch& RangeSearchFor(ZeroGrid zeros, bool has_codebook) {
  const bool are_whole = zeros == ZeroGrid::kInteger || zeros == ZeroGrid::kIntegerFromOne;
  return are_whole || has_codebook ? kEvenRanges : kUnevenRanges;
}

// Symmetric: scales that take this share of the extreme to the lowest code. The first takes all of
// it to the lowest but one, as min/max does, which is exact for values that lie on such a grid.
inline constexpr int kReaches = 4, kStepsAfterReaches = 1;
inline constexpr float kReachSteps[kReaches - 1] = {0.2f, -0.9f, -2.1f};  // of the others
inline constexpr float ReachOf(int n, int bits) {
  const float half = static_cast<float>(1 << (bits - 1));
  return n == 0 ? half / (half - 1.0f) : 1.0f + kReachSteps[n - 1] * (0.5f / half);
}

// Share of a group's power by which a refit that no coding has seen must be better: more than what
// rounding can do to its error.
inline constexpr float kUnseenMargin = 0x1p-20f;

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_SEARCH_RULES_H_
