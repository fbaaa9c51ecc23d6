// The orthonormal Walsh-Hadamard transform of a group (README.md section 11); its own inverse.
#if defined(SINQ_KERNELS_HADAMARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SINQ_KERNELS_HADAMARD_INL_H_
#undef SINQ_KERNELS_HADAMARD_INL_H_
#else
#define SINQ_KERNELS_HADAMARD_INL_H_
#endif

#include <cmath>

#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sinq::kernels {
namespace HWY_NAMESPACE {

HWY_INLINE float HadamardFactor(int group) { return 1.0f / std::sqrt(static_cast<float>(group)); }

// `y` [group][kLanes]: one group in each lane.
HWY_INLINE void TransformLanes(float* HWY_RESTRICT y, int group) {
  const DF d;
  for (int half = 1; half < group; half *= 2) {
    for (int first = 0; first < group; first += 2 * half) {
      for (int k = first; k < first + half; ++k) {
        float* low = y + static_cast<size_t>(k) * kLanes;
        float* high = low + static_cast<size_t>(half) * kLanes;
        const VF a = hn::Load(d, low), b = hn::Load(d, high);
        hn::Store(hn::Add(a, b), d, low);
        hn::Store(hn::Sub(a, b), d, high);
      }
    }
  }
  const VF factor = hn::Set(d, HadamardFactor(group));
  for (size_t k = 0; k < static_cast<size_t>(group); ++k)
    hn::Store(hn::Mul(hn::Load(d, y + k * kLanes), factor), d, y + k * kLanes);
}

// One group.
HWY_INLINE void TransformGroup(float* HWY_RESTRICT y, int group) {
  for (int half = 1; half < group; half *= 2) {
    for (int first = 0; first < group; first += 2 * half) {
      for (int k = first; k < first + half; ++k) {
        const float a = y[k], b = y[k + half];
        y[k] = a + b;
        y[k + half] = a - b;
      }
    }
  }
  const float factor = HadamardFactor(group);
  for (int k = 0; k < group; ++k) y[k] *= factor;
}

}  // namespace HWY_NAMESPACE
}  // namespace sinq::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
