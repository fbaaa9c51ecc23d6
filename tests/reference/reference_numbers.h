// Roundings and sums that every step of the oracle needs (README.md sections 0, 1 and 4).
#ifndef SINQ_TESTS_REFERENCE_REFERENCE_NUMBERS_H_
#define SINQ_TESTS_REFERENCE_REFERENCE_NUMBERS_H_

#include <cmath>
#include <vector>

#include "absl/status/status.h"
#include "kernels/matrix_view.h"
#include "kernels/quant_params.h"

namespace sinq::kernels {

inline float PowerOfTwo(int exponent) { return std::ldexp(1.0f, exponent); }
inline int FloorHalf(int x) { return x >= 0 ? x / 2 : -((1 - x) / 2); }
// The bound also where x is not a number or a zero of the other sign.
inline float AtLeast(float x, float bound) { return x > bound ? x : bound; }
inline float Clamp(float x, float low, float high) {
  const float raised = AtLeast(x, low);
  return raised < high ? raised : high;
}
inline float Rne(float x) { return std::nearbyint(x); }
// Scales and zeros are never stored as -0: instruction sets disagree about its sign.
inline float WithoutNegativeZero(float x) { return x + 0.0f; }
inline float TopCode(int bits) { return static_cast<float>((1 << bits) - 1); }

// x rounded to the nearest F16 value, ties to even; beyond 65504 + half a step: infinity.
float NearestF16(float x);
float NearestBf16(float x);
// x as aux stores it: F16 for u8.
float NearestStored(float x, AuxStorage aux);
// 1/x, 0 for 0.
float Rcp(float x);

// 16 lanes, lane l takes values l, l+16, ..; then the tree. `step(a, k)` is lane sum `a` after
// value k.
template <class Step>
float LaneSum(int count, const Step& step) {
  float lane[16] = {};
  for (int k = 0; k < count; ++k) lane[k % 16] = step(lane[k % 16], k);
  for (int half = 8; half >= 1; half /= 2) {
    for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
  }
  return lane[0];
}

// Adds values 0 .. count - 1 in fp64 in blocks of 32, blocks in order.
template <class Value>
double BlockSum(int64_t count, const Value& value) {
  double total = 0;
  for (int64_t first = 0; first < count; first += 32) {
    double block = 0;
    for (int64_t i = first; i < count && i < first + 32; ++i)
      block += static_cast<double>(value(i));
    total += block;
  }
  return total;
}

// Every element as fp32, folded scales included. InvalidArgument names the first NaN or infinity.
absl::Status ReadAll(const MatrixView& in, std::vector<float>& w);
// Columns first_col .. of rows first_row .., row by row.
std::vector<float> CutTile(const std::vector<float>& w, int64_t cols, int64_t first_row,
                           int64_t rows, int64_t first_col, int group);

}  // namespace sinq::kernels

#endif  // SINQ_TESTS_REFERENCE_REFERENCE_NUMBERS_H_
