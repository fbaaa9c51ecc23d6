// What the searches of README.md section 4.1 try, the same on CPU and CUDA.
#ifndef SINQ_KERNELS_SEARCH_RULES_H_
#define SINQ_KERNELS_SEARCH_RULES_H_

namespace sinq::kernels {

// Asymmetric: ranges with these shares of their ends cut off, in units of 2^-b, then steps.
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
    4, 1, {{0.0f, 0.0f}, {1.1f, 1.1f}, {0.3f, 1.4f}, {1.4f, 0.3f}}};
inline constexpr RangeSearch kEvenRanges = {3, 2, {{0.0f, 0.0f}, {0.65f, 0.65f}, {1.3f, 1.3f}}};

// Symmetric: the scale that takes 1 + kReachSteps[n] * 2^-b of the extreme to the lowest code.
inline constexpr int kReaches = 4, kStepsAfterReaches = 1;
inline constexpr float kReachSteps[kReaches] = {0.8f, -0.4f, -1.2f, -2.4f};

// Share of a group's power by which a refit that no coding has seen must be better: more than what
// rounding can do to its error.
inline constexpr float kUnseenMargin = 0x1p-20f;

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_SEARCH_RULES_H_
