// What the searches of README.md section 4.1 try, the same on CPU and CUDA.
#ifndef SINQ_KERNELS_SEARCH_RULES_H_
#define SINQ_KERNELS_SEARCH_RULES_H_

namespace sinq::kernels {

// Asymmetric: ranges 1 - n * kRangeStep * 2^-b, n = 0 .. kRanges - 1, then steps.
inline constexpr int kRanges = 3, kStepsAfterRanges = 2;
inline constexpr float kRangeStep = 0.65f;

// Symmetric: the scale that takes 1 + kReachSteps[n] * 2^-b of the extreme to the lowest code.
inline constexpr int kReaches = 4, kStepsAfterReaches = 1;
inline constexpr float kReachSteps[kReaches] = {0.8f, -0.4f, -1.2f, -2.4f};

// Share of a group's power by which a refit that no coding has seen must be better: more than what
// rounding can do to its error.
inline constexpr float kUnseenMargin = 0x1p-20f;

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_SEARCH_RULES_H_
