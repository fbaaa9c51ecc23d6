// Numbers of README.md section 10 that CPU and CUDA share.
#ifndef SINQ_KERNELS_ACTIVATION_RULES_H_
#define SINQ_KERNELS_ACTIVATION_RULES_H_

namespace sinq::kernels {

inline constexpr int kAlphaSteps = 20;          // alpha = 0, 1/20 .. 19/20
inline constexpr float kLeastFactor = 1e-4f;    // of a candidate c, before it is centred
inline constexpr float kUpstreamRangeFloor = 1e-4f;  // of a group that a candidate quantizes
// t / c stays within these.
inline constexpr float kLeastColumnScale = 0x1p-14f, kLargestColumnScale = 0x1p15f;

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_ACTIVATION_RULES_H_
