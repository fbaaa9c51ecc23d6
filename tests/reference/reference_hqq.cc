// README.md section 9.2.
#include <algorithm>
#include <cmath>

#include "kernels/deterministic_math.h"
#include "tests/reference/reference_fit.h"
#include "tests/reference/reference_numbers.h"

namespace sinq::kernels {
namespace {

constexpr int kRounds = 20;

struct Group {
  float a = 0;
  std::vector<float> zeros;  // z_0 .. z_20
};

Group Start(const std::vector<float>& y, const QuantParams& params) {
  float low = *std::min_element(y.begin(), y.end()), high = *std::max_element(y.begin(), y.end());
  const float m = TopCode(params.bits);
  Group group;
  if (params.profile == Profile::kUpstream) {
    const float range = high - low;
    group.a = Clamp(range <= 1e-4f ? 1.0f : m / range, 1e-5f, 2e4f);
  } else {
    StorableRange(params, low, high);
    group.a = m * Rcp(high - low);
    if (!(group.a > 0)) group.a = 1;
  }
  group.zeros.push_back(-(low * group.a));
  return group;
}

float Shrunk(float e) {
  const float size = Clamp(std::abs(e), 1e-5f, 1e5f);
  const float h = size < 0.17f ? 0.0f : AtLeast(size - 0.1f * Power(size, -0.3), 0.0f);
  return std::copysign(h, e);
}

// One round; returns the error of the group with the zero before it.
float Advance(const std::vector<float>& y, float m, Group& group) {
  const float z = group.zeros.back();
  float error = 0, total = 0;
  for (const float value : y) {
    const float q = Rne(Clamp(value * group.a + z, 0.0f, m));
    const float e = value - (q - z) / group.a;
    error += std::abs(e);
    total += q - (value - Shrunk(e)) * group.a;
  }
  group.zeros.push_back(total * (1.0f / static_cast<float>(y.size())));
  return error;
}

}  // namespace

HqqTile HqqFit(const std::vector<std::vector<float>>& ys, const QuantParams& params) {
  std::vector<Group> groups;
  for (const std::vector<float>& y : ys) groups.push_back(Start(y, params));
  size_t best = 0;
  double least = 0;
  for (size_t round = 1; round <= kRounds; ++round) {
    std::vector<float> errors;
    for (size_t i = 0; i < ys.size(); ++i)
      errors.push_back(Advance(ys[i], TopCode(params.bits), groups[i]));
    const double error = BlockSum(static_cast<int64_t>(ys.size()),
                                  [&](int64_t i) { return errors[static_cast<size_t>(i)]; });
    if (best != 0 && !(error < least)) continue;
    best = round;
    least = error;
  }
  HqqTile tile;
  for (size_t i = 0; i < ys.size(); ++i) {
    const Group& group = groups[i];
    ReferenceGroup fit{1.0f / group.a, group.zeros[best]};
    if (params.profile == Profile::kDefault) {
      fit.zero = Zeta(fit.zero, params);
      const auto [low, high] = std::minmax_element(ys[i].begin(), ys[i].end());
      if (*low == *high) fit = ReferenceFit(ys[i], params, params.aux);
    }
    tile.groups.push_back(fit);
    tile.inverse.push_back(group.a);
    tile.code_zero.push_back(group.zeros[kRounds - 1]);
  }
  return tile;
}

}  // namespace sinq::kernels
