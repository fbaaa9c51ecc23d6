// README.md sections 1 and 2.
#include <algorithm>
#include <cmath>

#include "tests/reference/reference.h"

namespace sinq::kernels {
namespace {

struct Deviations {
  std::vector<float> row, col;
  std::vector<double> col_square;
};

float RowStd(const float* x, int g) {
  const float s1 = LaneSum(g, [&](float a, int k) { return a + x[k]; });
  const float s2 = LaneSum(g, [&](float a, int k) { return std::fma(x[k], x[k], a); });
  const float mean_square = s1 * s1 / static_cast<float>(g);
  const float v = (s2 - mean_square) / static_cast<float>(g - 1);
  return std::sqrt(AtLeast(v, 0.0f));
}

void ColumnSums(const std::vector<float>& x, int64_t n, int g, int col, double& s1, double& s2) {
  for (int64_t first = 0; first < n; first += 32) {
    float sum = 0, square = 0;
    for (int64_t i = first; i < std::min(n, first + 32); ++i) {
      const float value = x[static_cast<size_t>(i * g + col)];
      sum += value;
      square = std::fma(value, value, square);
    }
    s1 += static_cast<double>(sum);
    s2 += static_cast<double>(square);
  }
}

Deviations Measure(const std::vector<float>& x, int64_t n, int g) {
  Deviations d;
  for (int64_t i = 0; i < n; ++i) d.row.push_back(RowStd(&x[static_cast<size_t>(i * g)], g));
  for (int k = 0; k < g; ++k) {
    double s1 = 0, s2 = 0;
    ColumnSums(x, n, g, k, s1, s2);
    const double count = static_cast<double>(n);
    const double v = (s2 - s1 * s1 / count) / (count - 1);
    d.col.push_back(static_cast<float>(std::sqrt(std::max(v, 0.0))));
    d.col_square.push_back(s2);
  }
  return d;
}

// ---------------------------------------------------------------- 2. balancing

float Smallest(const Deviations& d) {
  return std::min(*std::min_element(d.row.begin(), d.row.end()),
                  *std::min_element(d.col.begin(), d.col.end()));
}

float Imbalance(const Deviations& d) {
  const float largest = std::max(*std::max_element(d.row.begin(), d.row.end()),
                                 *std::max_element(d.col.begin(), d.col.end()));
  return largest / std::max(Smallest(d), 1e-12f);
}

// Profile default leaves tiles with a constant group, and empty ones, as they are.
bool IsSkipped(const std::vector<float>& tile, int64_t n, int g, Profile profile) {
  if (n == 1) return true;
  if (profile == Profile::kUpstream) return false;
  bool all_zero = true;
  for (int64_t i = 0; i < n; ++i) {
    const float* row = &tile[static_cast<size_t>(i * g)];
    const bool constant = std::all_of(row, row + g, [&](float x) { return x == row[0]; });
    if (constant && row[0] != 0) return true;
    if (!constant || row[0] != 0) all_zero = false;
  }
  return all_zero;
}

std::vector<float> Times(const std::vector<float>& tile, float factor) {
  std::vector<float> x = tile;
  for (float& value : x) value *= factor;
  return x;
}

// The deviations of w * 2^p and p itself: 2^p is the power of two nearest to 1/RMS.
Deviations MeasureScaleFree(const std::vector<float>& tile, int64_t n, int g, int& p) {
  float a = 0;
  for (const float w : tile) a = std::max(a, std::abs(w));
  const int p0 = std::clamp(-std::ilogb(a), -126, 126);
  Deviations d = Measure(Times(tile, PowerOfTwo(p0)), n, g);
  double q = 0;
  for (const double square : d.col_square) q += square;
  q /= static_cast<double>(n) * g;
  p = std::clamp(p0 - FloorHalf(std::ilogb(q) + 1), -126, 126);
  for (float& std : d.row) std *= PowerOfTwo(p - p0);
  for (float& std : d.col) std *= PowerOfTwo(p - p0);
  return d;
}

float Updated(float scale, float std, float tau) {
  const float step = Clamp(Clamp(std, 1e-3f, 1e3f) / tau, 0.7f, 2.0f);
  return Clamp(scale * step, 0.74081822f, 22026.466f);
}

std::vector<float> Balanced(const std::vector<float>& tile, int64_t n, int g,
                            const std::vector<float>& t, const std::vector<float>& r, int p) {
  std::vector<float> x;
  for (int64_t i = 0; i < n; ++i) {
    for (int k = 0; k < g; ++k) {
      const float u = Rcp(t[static_cast<size_t>(k)]) * PowerOfTwo(p);
      x.push_back(tile[static_cast<size_t>(i * g + k)] * u * Rcp(r[static_cast<size_t>(i)]));
    }
  }
  return x;
}

}  // namespace

TileBalance ReferenceBalance(const std::vector<float>& tile, int64_t rows, int group,
                             const QuantParams& params, const ReferenceOptions& options) {
  TileBalance best;
  best.t.assign(static_cast<size_t>(group), 1.0f);
  best.r.assign(static_cast<size_t>(rows), 1.0f);
  if (IsSkipped(tile, rows, group, params.profile)) return best;
  Deviations d = params.profile == Profile::kUpstream
                     ? Measure(tile, rows, group)
                     : MeasureScaleFree(tile, rows, group, best.exponent);
  const float tau = (Clamp(Smallest(d), 1e-3f, 1e3f) + 1e-6f) * options.tau_factor;
  best.imbalance_before = best.imbalance_after = Imbalance(d);
  std::vector<float> t = best.t, r = best.r;
  for (int k = 1; k < 16; ++k) {
    for (size_t c = 0; c < t.size(); ++c) t[c] = Updated(t[c], d.col[c], tau);
    for (size_t i = 0; i < r.size(); ++i) r[i] = Updated(r[i], d.row[i], tau);
    d = Measure(Balanced(tile, rows, group, t, r, best.exponent), rows, group);
    ++best.rounds;
    const float imbalance = Imbalance(d);
    if (!(imbalance <= best.imbalance_after)) {
      if (options.freeze) break;
      continue;
    }
    best.imbalance_after = imbalance;
    best.t = t;
    best.r = r;
  }
  return best;
}

TileBalance ReferenceUnbalanced(const std::vector<float>& tile, int64_t rows, int group,
                                const QuantParams& params) {
  TileBalance result;
  result.t.assign(static_cast<size_t>(group), 1.0f);
  result.r.assign(static_cast<size_t>(rows), 1.0f);
  if (params.profile == Profile::kUpstream || params.method == Method::kRtn) return result;
  float a = 0;
  for (const float w : tile) a = std::max(a, std::abs(w));
  if (a > 0) result.exponent = std::clamp(-std::ilogb(a), -126, 126);
  return result;
}

}  // namespace sinq::kernels
