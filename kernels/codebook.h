// Codebooks whose levels are not evenly spaced: NF4 (QLoRA, arXiv 2305.14314) and NF3, with the
// digits of the authors' code. README.md section 9.1.
#ifndef SINQ_KERNELS_CODEBOOK_H_
#define SINQ_KERNELS_CODEBOOK_H_

#include <array>

#include "kernels/quant_params.h"

namespace sinq::kernels {

inline constexpr std::array<float, 16> kNf4Levels = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};

inline constexpr std::array<float, 8> kNf3Levels = {
    -1.0f,
    -0.5350227355957031f,
    -0.2469314038753510f,
    0.0f,
    0.1833375245332718f,
    0.3819939494132996f,
    0.6229856610298157f,
    1.0f,
};

// Ascending levels and the bounds between them: a value above bound i has a code above i.
struct Codebook {
  const float* levels = nullptr;
  const float* bounds = nullptr;  // [size - 1]
  int size = 0;
};

template <size_t kSize>
constexpr std::array<float, kSize - 1> BoundsBetween(const std::array<float, kSize>& levels) {
  std::array<float, kSize - 1> bounds{};
  for (size_t i = 0; i + 1 < kSize; ++i) bounds[i] = (levels[i] + levels[i + 1]) * 0.5f;
  return bounds;
}
inline constexpr std::array<float, 15> kNf4Bounds = BoundsBetween(kNf4Levels);
inline constexpr std::array<float, 7> kNf3Bounds = BoundsBetween(kNf3Levels);

constexpr bool HasCodebook(Rounding rounding) {
  return rounding == Rounding::kNf4 || rounding == Rounding::kNf3;
}
// Size 0 for roundings without a codebook.
constexpr Codebook CodebookOf(Rounding rounding) {
  if (rounding == Rounding::kNf4) return {kNf4Levels.data(), kNf4Bounds.data(), 16};
  if (rounding == Rounding::kNf3) return {kNf3Levels.data(), kNf3Bounds.data(), 8};
  return {};
}

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_CODEBOOK_H_
