// w' - w of one candidate of the activation-aware search on a CUDA device: README.md section 10,
// step 3.
#ifndef SINQ_KERNELS_ACTIVATION_CUDA_CUH_
#define SINQ_KERNELS_ACTIVATION_CUDA_CUH_

#include "kernels/cuda_primitives.cuh"
#include "kernels/cuda_weights.cuh"

namespace sinq::kernels {

// What the codes of a candidate are made with.
struct CandidateRule {
  float top;          // 2^b - 1
  float range_floor;  // least range of a group
};

// Factors of the columns of one group, in shared memory.
template <int kGroup>
struct ColumnFactors {
  float forward[kGroup];   // y = (w * forward) * rcp(r)
  float backward[kGroup];  // w' = ((q - z) * (s * r)) * backward
};

// By one thread of each column: t is the column's scale, c the candidate's factor, 2^p the tile's.
template <int kGroup>
__device__ void SetColumnFactors(ColumnFactors<kGroup>& factors, int column, float t, float c,
                                 int exponent) {
  const float scaled = Div(t, c);
  factors.forward[column] = Mul(Div(1.0f, scaled), PowerOfTwo(exponent));
  factors.backward[column] = Mul(scaled, PowerOfTwo(-exponent));
}

// Scale and zero of a group in the space of y.
struct CandidateFit {
  float inverse, zero, back;  // back = s * r
};
// By a quad for each group; valid in all four threads. All threads of the warp must take part;
// `present` is false for a quad without a group.
template <WeightDtype kDtype, int kGroup>
__device__ CandidateFit FitCandidate(const WeightCursor<kDtype>& weights, bool present,
                                     const ColumnFactors<kGroup>& factors, float r,
                                     const CandidateRule& rule) {
  float low = INFINITY, high = -INFINITY;
  const float inverse_r = Reciprocal(r);
#pragma unroll
  for (int first = 4 * (LaneInWarp() % kQuadThreads); first < kGroup; first += 16) {
    if (!present) break;
    const Four w = weights.Values(weights.Raw(0, first));
    for (int i = 0; i < 4; ++i) {
      const float y = Mul(Mul(w.value[i], factors.forward[first + i]), inverse_r);
      low = Min(low, y);
      high = Max(high, y);
    }
  }
  low = QuadMin(low);
  high = QuadMax(high);
  const float scale = Div(Max(Sub(high, low), rule.range_floor), rule.top);
  CandidateFit fit;
  fit.inverse = Reciprocal(scale);
  fit.zero = -RoundEven(Mul(low, fit.inverse));
  fit.back = Mul(scale, r);
  return fit;
}

// w' - w.
__device__ inline float CandidateMiss(float w, float forward, float backward, float inverse_r,
                                      const CandidateFit& fit, const CandidateRule& rule) {
  const float y = Mul(Mul(w, forward), inverse_r);
  const float q = RoundSmall(Clamp(Fma(y, fit.inverse, fit.zero), 0.0f, rule.top));
  return Sub(Mul(Mul(Sub(q, fit.zero), fit.back), backward), w);
}

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_ACTIVATION_CUDA_CUH_
