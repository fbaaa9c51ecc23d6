#include "tests/reference/reference_fit.h"

#include <algorithm>
#include <cmath>

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

struct Score {
  float error, a, b, c;
};

Score ScoreOf(const std::vector<float>& y, float s, float z, const QuantParams& params) {
  const Rounding rounding = RoundingOf(params.method);
  const float i = Rcp(s);
  float d_sum = 0, a = 0, b = 0, c = 0;
  for (const float value : y) {
    const float v = std::fma(value, i, z);
    const float q = LevelOf(NearestCode(v, rounding, params.bits), rounding);
    const float d = v - q;
    d_sum = std::fma(d, d, d_sum);
    a += q;
    b = std::fma(q, q, b);
    c = std::fma(q, value, c);
  }
  return {d_sum * (s * s), a, b, c};
}

struct Candidate {
  ReferenceGroup group;
  Score score;
};

Candidate Better(const Candidate& old, const Candidate& next) {
  return next.score.error < old.score.error ? next : old;
}

ReferenceGroup LeastSquares(const Score& sums, float old_scale, float total, float g,
                            const QuantParams& params) {
  const float det = g * sums.b - sums.a * sums.a;
  const float num = g * sums.c - sums.a * total;
  float s1 = num * Rcp(det);
  if (!(det > 0 && s1 > 0)) s1 = old_scale;
  const float o = (total - s1 * sums.a) * (1.0f / g);
  const float z1 = Zeta(-(o * Rcp(s1)), params);
  const float num2 = std::fma(-z1, total, sums.c);
  const float den2 = std::fma(z1, std::fma(g, z1, -2.0f * sums.a), sums.b);
  const float s2 = num2 * Rcp(den2);
  return {den2 > 0 && s2 > 0 ? s2 : s1, z1};
}

// The ranges R of section 4.1, or of section 9.1.
ReferenceGroup RangeOf(const std::vector<float>& y, float a, const QuantParams& params) {
  if (IsBook(RoundingOf(params.method))) {
    const Centre centre = CentreOf(y);
    const float s = a * centre.reach;
    return {s, Zeta(-(centre.mean * Rcp(s)), params)};
  }
  float lo0 = *std::min_element(y.begin(), y.end()), hi0 = *std::max_element(y.begin(), y.end());
  StorableRange(params, lo0, hi0);
  const float lo = a * lo0, hi = a * hi0;
  const float s = (hi - lo) * (1.0f / TopCode(params.bits));
  return {s, Zeta(-(lo * Rcp(s)), params)};
}

// What the search finds; its scale is not unbiased yet.
Candidate SearchAsymmetric(const std::vector<float>& y, const QuantParams& params) {
  const auto scored = [&](ReferenceGroup group) {
    return Candidate{group, ScoreOf(y, group.scale, group.zero, params)};
  };
  const auto stepped = [&](const Candidate& from) {
    return scored(LeastSquares(from.score, from.group.scale, PlainSum(y),
                               static_cast<float>(y.size()), params));
  };
  const Candidate one = scored(RangeOf(y, 1.0f, params)), nine = scored(RangeOf(y, 0.9f, params)),
                  eight = scored(RangeOf(y, 0.8f, params));
  Candidate step = stepped(one);
  for (const Candidate& range : {nine, eight}) step = Better(step, stepped(range));
  Candidate best = one;
  for (const Candidate& next : {nine, eight, step, stepped(step)}) best = Better(best, next);
  return best;
}

Candidate SearchSymmetric(const std::vector<float>& y, float e, float h,
                          const QuantParams& params) {
  const auto scaled = [&](float s) { return Candidate{{s, h}, ScoreOf(y, s, h, params)}; };
  const auto shrunk = [&](float a) { return scaled(-e * a * (1 / h)); };
  Candidate best = shrunk(1.15f);
  for (const float a : {1.0f, 0.95f, 0.9f, 0.85f, 0.8f, 0.75f, 0.7f})
    best = Better(best, shrunk(a));
  const float g = static_cast<float>(y.size());
  const float num = std::fma(-h, PlainSum(y), best.score.c);
  const float den = std::fma(h, std::fma(g, h, -2.0f * best.score.a), best.score.b);
  float s = den > 0 ? num * Rcp(den) : 0.0f;
  if (s == 0) s = best.group.scale;
  return Better(best, scaled(s));
}

float UnbiasedScale(const std::vector<float>& y, const Candidate& fit) {
  float v = 0;
  for (const float value : y) v = std::fma(value, value, v);
  const float num = std::fma(-fit.group.zero, PlainSum(y), fit.score.c);
  const float s = fit.group.scale, s3 = v * Rcp(num);
  const bool near = 0.8f * std::abs(s) <= std::abs(s3) && std::abs(s3) <= 1.25f * std::abs(s);
  return s3 * s > 0 && near ? s3 : s;
}

ReferenceGroup Chosen(const std::vector<float>& y, const Candidate& best, ScaleRule rule) {
  if (rule == ScaleRule::kLeastError) return best.group;
  return {UnbiasedScale(y, best), best.group.zero};
}

ReferenceGroup FitAsymmetric(const std::vector<float>& y, const QuantParams& params,
                             ScaleRule rule) {
  if (params.method == Method::kRtn) return RangeOf(y, 1.0f, params);
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
  QuantParams params;
  params.method = rounding == Rounding::kNf4   ? Method::kNf4
                  : rounding == Rounding::kNf3 ? Method::kNf3
                                               : Method::kSinq;
  params.bits = bits;
  return ScoreOf(y, group.scale, group.zero, params).error;
}

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
    return {std::abs(y[0]), y[0] > 0 ? lowest : 1.0f};
  }
  return params.symmetric ? FitSymmetric(y, params, rule) : FitAsymmetric(y, params, rule);
}

}  // namespace sinq::kernels
