#include "tests/reference/reference_fit.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "tests/reference/reference_numbers.h"

namespace sinq::kernels {
namespace {

// The authors' digits.
const std::vector<float>& LevelsOf(Rounding rounding) {
  static const std::vector<float> kNf4 = {
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
  static const std::vector<float> kNf3 = {
      -1.0f,
      -0.5350227355957031f,
      -0.246931403875351f,
      0.0f,
      0.1833375245332718f,
      0.3819939494132996f,
      0.6229856610298157f,
      1.0f,
  };
  return rounding == Rounding::kNf4 ? kNf4 : kNf3;
}

bool IsBook(Rounding rounding) { return rounding == Rounding::kNf4 || rounding == Rounding::kNf3; }

float PlainSum(const std::vector<float>& y) {
  float sum = 0;
  for (const float value : y) sum += value;
  return sum;
}

// Mean and largest distance from it.
struct Centre {
  float mean, reach;
};
Centre CentreOf(const std::vector<float>& y) {
  const auto [low, high] = std::minmax_element(y.begin(), y.end());
  const float mean = PlainSum(y) * (1.0f / static_cast<float>(y.size()));
  return {mean, std::max(*high - mean, mean - *low)};
}

// A sum of section 4.1: step(a, k) is what it is after column k.
template <class Step>
float SumInOrder(size_t count, const Step& step) {
  float sum = 0;
  for (size_t k = 0; k < count; ++k) sum = step(sum, k);
  return sum;
}

// Y and V.
struct GroupSums {
  explicit GroupSums(const std::vector<float>& y)
      : values(SumInOrder(y.size(), [&](float a, size_t k) { return a + y[k]; })),
        squares(SumInOrder(y.size(), [&](float a, size_t k) { return std::fma(y[k], y[k], a); })) {}
  float values, squares;
};

// D, A and B of codes q for exact values v.
struct CodeSums {
  CodeSums(const std::vector<float>& v, const std::vector<float>& q)
      : d(SumInOrder(v.size(),
                     [&](float a, size_t k) {
                       const float miss = v[k] - q[k];
                       return std::fma(miss, miss, a);
                     })),
        a(SumInOrder(v.size(), [&](float a, size_t k) { return a + q[k]; })),
        b(SumInOrder(v.size(), [&](float a, size_t k) { return std::fma(q[k], q[k], a); })) {}
  float d, a, b;
};

// A scale and zero with their error and the sum of (Q - z)*y.
struct Candidate {
  ReferenceGroup group;
  float error, product;
};
// A coding that was tried, and the least squares of its codes.
struct Trial {
  Candidate coded, refit;
};

Candidate Better(const Candidate& old, const Candidate& next) {
  return next.error < old.error ? next : old;
}

CodeSums SumsOf(const std::vector<float>& y, const ReferenceGroup& group, Rounding rounding,
                int bits) {
  const float i = Rcp(group.scale);
  std::vector<float> v, q;
  for (const float value : y) {
    v.push_back(std::fma(value, i, group.zero));
    q.push_back(LevelOf(NearestCode(v.back(), rounding, bits), rounding));
  }
  return CodeSums(v, q);
}

Trial CodeAsymmetric(const std::vector<float>& y, const GroupSums& of, const ReferenceGroup& group,
                     const QuantParams& params) {
  const float s = group.scale, z = group.zero, i = Rcp(s), g = static_cast<float>(y.size());
  const CodeSums sums = SumsOf(y, group, RoundingOf(params.method), params.bits);
  const float e = sums.d * (s * s);
  const float t = std::fma(i, std::fma(i, of.squares, 2 * z * of.values), g * (z * z));
  const float x = 0.5f * (t - sums.b - sums.d);
  const float p = std::fma(i, of.values, g * z) - sums.a;
  const float c = s * std::fma(-z, sums.a, sums.b + x);
  const Candidate coded{group, e, std::fma(-z, of.values, c)};

  const float det = g * sums.b - sums.a * sums.a;
  const float num = g * c - sums.a * of.values;
  const float j = det > 0 && num > 0 ? det * Rcp(num) : i;
  const float z2 = Zeta((sums.a - j * of.values) * (1.0f / g), params);
  const float num2 = std::fma(-z2, of.values, c);
  const float den2 = std::fma(z2, std::fma(g, z2, -2.0f * sums.a), sums.b);
  float s2 = num2 * Rcp(den2);
  if (!(den2 > 0 && s2 > 0)) s2 = s;
  const float alpha = s - s2, beta = std::fma(s2, z2, -(s * z));
  const float first = std::fma(alpha, x, beta * p);
  const float second =
      std::fma(alpha, std::fma(alpha, sums.b, 2 * beta * sums.a), g * (beta * beta));
  return {coded, {{s2, z2}, e + std::fma(2 * s, first, second), num2}};
}

Trial CodeSymmetric(const std::vector<float>& y, const GroupSums& of, float s, float h) {
  const float i = Rcp(s);
  std::vector<float> v, q;
  for (const float value : y) {
    v.push_back(value * i);
    q.push_back(Rne(Clamp(v.back(), -h, h - 1)));
  }
  const CodeSums sums(v, q);
  const float x = 0.5f * (i * (i * of.squares) - sums.b - sums.d), part = x * Rcp(sums.b);
  const float product = s * (sums.b + x);
  return {{{s, h}, sums.d * (s * s), product},
          {{std::fma(s, part, s), h}, std::fma(-x, part, sums.d) * (s * s), product}};
}

// The best of the codings `first`, of `steps` steps from their best refit, and the last refit.
template <class Code>
Candidate Search(const std::vector<ReferenceGroup>& first, int steps, float v, const Code& code) {
  const Trial one = code(first[0]);
  Candidate best = one.coded, next = one.refit;
  for (size_t n = 1; n < first.size(); ++n) {
    const Trial trial = code(first[n]);
    best = Better(best, trial.coded);
    next = Better(next, trial.refit);
  }
  for (int step = 0; step < steps; ++step) {
    const Trial trial = code(next.group);
    best = Better(best, trial.coded);
    next = trial.refit;
  }
  return next.error + v * 0x1p-20f < best.error ? next : best;
}

// Parts of the range, or (the first) of a codebook's reach, that a coding leaves out.
using Cut = std::pair<float, float>;

// A range of section 4.1, or of section 9.1.
ReferenceGroup RangeOf(const std::vector<float>& y, const Cut& cut, const QuantParams& params) {
  if (IsBook(RoundingOf(params.method))) {
    const Centre centre = CentreOf(y);
    const float s = (1 - cut.first) * centre.reach;
    return {s, Zeta(-(centre.mean * Rcp(s)), params)};
  }
  float lo0 = *std::min_element(y.begin(), y.end()), hi0 = *std::max_element(y.begin(), y.end());
  StorableRange(params, lo0, hi0);
  const float width = hi0 - lo0;
  const float lo = std::fma(cut.first, width, lo0), hi = std::fma(-cut.second, width, hi0);
  const float s = (hi - lo) * (1.0f / TopCode(params.bits));
  return {s, Zeta(-(lo * Rcp(s)), params)};
}

// What the searches find; the scale is not unbiased yet.
Candidate SearchAsymmetric(const std::vector<float>& y, const QuantParams& params) {
  const GroupSums of(y);
  const bool is_book = IsBook(RoundingOf(params.method));
  const bool is_uneven = Zeta(0.5f, params) == 0.5f && !is_book;
  const std::vector<Cut> cuts =
      is_uneven ? std::vector<Cut>{{0.0f, 0.0f}, {1.2f, 1.2f}, {0.1f, 1.2f}, {1.6f, 0.4f}}
                : std::vector<Cut>{{0.0f, 0.0f}, {0.65f, 0.65f}, {1.3f, 1.3f}};
  const float unit = std::ldexp(is_book ? 1.0f : 0.5f, -params.bits);
  std::vector<ReferenceGroup> ranges;
  for (const Cut& cut : cuts)
    ranges.push_back(RangeOf(y, {cut.first * unit, cut.second * unit}, params));
  return Search(ranges, is_uneven ? 1 : 2, of.squares, [&](const ReferenceGroup& group) {
    return CodeAsymmetric(y, of, group, params);
  });
}

Candidate SearchSymmetric(const std::vector<float>& y, float e, float h,
                          const QuantParams& params) {
  const GroupSums of(y);
  std::vector<float> shares = {h / (h - 1)};
  for (const float c : {0.2f, -0.9f, -2.1f})
    shares.push_back(1 + c * std::ldexp(1.0f, -params.bits));
  std::vector<ReferenceGroup> reaches;
  for (const float a : shares) reaches.push_back({-e * a * (1 / h), h});
  return Search(reaches, 1, of.squares, [&](const ReferenceGroup& group) {
    return CodeSymmetric(y, of, group.scale, h);
  });
}

float UnbiasedScale(const std::vector<float>& y, const Candidate& fit) {
  const float s = fit.group.scale, s3 = GroupSums(y).squares * Rcp(fit.product);
  const bool near = 0.8f * std::abs(s) <= std::abs(s3) && std::abs(s3) <= 1.25f * std::abs(s);
  return s3 * s > 0 && near ? s3 : s;
}

ReferenceGroup Chosen(const std::vector<float>& y, const Candidate& best, ScaleRule rule) {
  if (rule == ScaleRule::kLeastError) return best.group;
  return {UnbiasedScale(y, best), best.group.zero};
}

ReferenceGroup FitAsymmetric(const std::vector<float>& y, const QuantParams& params,
                             ScaleRule rule) {
  if (params.method == Method::kRtn) return RangeOf(y, {}, params);
  return Chosen(y, SearchAsymmetric(y, params), rule);
}

ReferenceGroup FitSymmetric(const std::vector<float>& y, const QuantParams& params,
                            ScaleRule rule) {
  const float h = static_cast<float>(1 << (params.bits - 1));
  const float low = *std::min_element(y.begin(), y.end()),
              high = *std::max_element(y.begin(), y.end());
  const float e = -low > high ? low : high;
  if (params.method == Method::kRtn) return {std::abs(e) * (1.0f / (h - 1)), h};
  return Chosen(y, SearchSymmetric(y, e, h, params), rule);
}

}  // namespace

float LevelOf(int code, Rounding rounding) {
  return IsBook(rounding) ? LevelsOf(rounding)[static_cast<size_t>(code)]
                          : static_cast<float>(code);
}

int NearestCode(float v, Rounding rounding, int bits) {
  if (!IsBook(rounding)) return static_cast<int>(Rne(Clamp(v, 0.0f, TopCode(bits))));
  const std::vector<float>& levels = LevelsOf(rounding);
  int code = 0;
  for (size_t i = 0; i + 1 < levels.size(); ++i) code += (levels[i] + levels[i + 1]) * 0.5f < v;
  return code;
}

float ScoreError(const std::vector<float>& y, const ReferenceGroup& group, Rounding rounding,
                 int bits) {
  return SumsOf(y, group, rounding, bits).d * (group.scale * group.scale);
}

float PowerOf(const std::vector<float>& y) { return GroupSums(y).squares; }

ReferenceGroup UpstreamFit(const std::vector<float>& y, const QuantParams& params) {
  if (IsBook(RoundingOf(params.method))) {
    const Centre centre = CentreOf(y);
    const float s = std::max(centre.reach, 1e-4f);
    return {s, -(centre.mean / s)};
  }
  const auto [low, high] = std::minmax_element(y.begin(), y.end());
  if (params.symmetric) {
    const float h = static_cast<float>((1 << (params.bits - 1)) - 1);
    const float reach = std::max(std::abs(*low), std::abs(*high));
    return {std::max(reach, 1e-5f) / (h - 1), h};
  }
  const float s = std::max(*high - *low, 1e-4f) / static_cast<float>((1 << params.bits) - 1);
  return {s, -Rne(*low / s)};
}

int UpstreamCode(float y, const ReferenceGroup& group, const QuantParams& params) {
  const Rounding rounding = RoundingOf(params.method);
  if (IsBook(rounding)) return NearestCode(y / group.scale + group.zero, rounding, params.bits);
  if (params.symmetric) {
    const int h = (1 << (params.bits - 1)) - 1;
    return static_cast<int>(
               Clamp(Rne(y / group.scale), static_cast<float>(-h - 1), static_cast<float>(h - 1))) +
           h;
  }
  return static_cast<int>(
      Clamp(Rne(y / group.scale + group.zero), 0.0f, static_cast<float>((1 << params.bits) - 1)));
}

float Zeta(float z, const QuantParams& params) {
  const float m = TopCode(params.bits);
  switch (ZeroRuleOf(params)) {
    case ZeroRule::kSixteenths:
      if (IsBook(RoundingOf(params.method))) return Clamp(Rne(z * 256.0f) / 256.0f, -1.0f, 1.0f);
      return Clamp(Rne(z * 16.0f) / 16.0f, 0.0f, m);
    case ZeroRule::kInteger:
      return Clamp(Rne(z), 0.0f, m);
    case ZeroRule::kIntegerFromOne:
      return Clamp(Rne(z), 1.0f, m);
    case ZeroRule::kReal:
      break;
  }
  return params.layout == Layout::kGgufQ4_1 ? z : NearestStored(z, params.aux);
}

void StorableRange(const QuantParams& params, float& low, float& high) {
  const ZeroRule rule = ZeroRuleOf(params);
  const bool far = std::max(std::abs(low), std::abs(high)) > 4.0f * (high - low);
  if (rule != ZeroRule::kReal || far) {
    low = std::min(low, 0.0f);
    high = std::max(high, 0.0f);
  }
  if (rule == ZeroRule::kIntegerFromOne)
    low = std::min(low, -(high * (1.0f / (TopCode(params.bits) - 1))));
}

std::vector<float> Hadamard(std::vector<float> y) {
  const size_t g = y.size();
  for (size_t h = 1; h < g; h *= 2) {
    const std::vector<float> x = y;
    for (size_t i = 0; i < g; ++i) y[i] = i / h % 2 == 0 ? x[i] + x[i + h] : x[i - h] - x[i];
  }
  const float factor = 1.0f / std::sqrt(static_cast<float>(g));
  for (float& value : y) value *= factor;
  return y;
}

ReferenceGroup ReferenceFit(const std::vector<float>& y, const QuantParams& given, AuxStorage aux,
                            ScaleRule rule) {
  QuantParams params = given;
  params.aux = aux;
  const bool empty = std::all_of(y.begin(), y.end(), [](float value) { return value == 0; });
  const bool from_one = ZeroRuleOf(params) == ZeroRule::kIntegerFromOne;
  const float half = static_cast<float>(1 << (params.bits - 1)), lowest = from_one ? 1.0f : 0.0f;
  if (empty) return {0.0f, params.symmetric ? half : lowest};
  if (std::all_of(y.begin(), y.end(), [&y](float value) { return value == y[0]; })) {
    if (params.symmetric) return {-y[0], half};
    if (IsBook(RoundingOf(params.method))) return {std::abs(y[0]), 0.0f};
    const float steps = ZeroRuleOf(params) == ZeroRule::kSixteenths ? TopCode(params.bits) : 1.0f;
    return {std::abs(y[0]) * Rcp(steps), y[0] > 0 ? lowest : steps};
  }
  return params.symmetric ? FitSymmetric(y, params, rule) : FitAsymmetric(y, params, rule);
}

}  // namespace sinq::kernels
