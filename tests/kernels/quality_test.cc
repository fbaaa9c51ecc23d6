// What profile default promises beyond agreeing with itself: constant groups come back, the search
// for scale and zero is as good as the exhaustive one, and the unit of the weights does not matter.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "gtest/gtest.h"
#include "kernels/half.h"
#include "tests/reference/golden_case.h"
#include "tests/reference/reference.h"
#include "tests/reference/reference_fit.h"
#include "tests/reference/run_backend.h"

namespace sinq::kernels {
namespace {

std::vector<std::byte> BytesOf(const std::vector<float>& values) {
  std::vector<std::byte> bytes(4 * values.size());
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

MatrixView ViewOf(const std::vector<std::byte>& bytes, int64_t rows, int64_t cols) {
  return {bytes.data(), rows, cols, WeightDtype::kF32, {}};
}

// (Q - z) * s * t as a reader computes it; F16 auxiliaries.
std::vector<float> Dequantize(const QuantizedPlanes& out, const QuantParams& params, int64_t rows,
                              int64_t cols, int group) {
  const std::vector<int> codes =
      UnpackCodes(out.Plane(PlaneKind::kCodes).data(), params.bits, rows, cols, group);
  const std::vector<float> scale = out.F16Plane(PlaneKind::kScale),
                           zero = out.F16Plane(PlaneKind::kZero);
  const std::vector<float> t = out.F16Plane(PlaneKind::kColumnScale);
  std::vector<float> values;
  for (size_t i = 0; i < codes.size(); ++i) {
    const size_t e = i / static_cast<size_t>(group);
    const float z = zero[zero.size() == 1 ? 0 : e];
    values.push_back((static_cast<float>(codes[i]) - z) * scale[e] *
                     t[i % static_cast<size_t>(cols)]);
  }
  return values;
}

bool IsConstant(const std::vector<float>& w, size_t first, size_t group) {
  return std::all_of(w.begin() + static_cast<std::ptrdiff_t>(first),
                     w.begin() + static_cast<std::ptrdiff_t>(first + group),
                     [&](float x) { return x == w[first]; });
}

// Returns how many constant groups there were.
int ExpectConstantGroupsComeBack(const std::vector<float>& w, int64_t rows, int64_t cols,
                                 const QuantParams& params) {
  const std::vector<std::byte> bytes = BytesOf(w);
  const QuantizedPlanes out = RunBackend(*MakeCpuBackend(), ViewOf(bytes, rows, cols), params);
  EXPECT_TRUE(out.status.ok()) << out.status;
  if (!out.status.ok()) return 0;
  const int group = EffectiveGroupSize(cols, params.group_size);
  const std::vector<float> back = Dequantize(out, params, rows, cols, group);
  int constant = 0;
  for (size_t first = 0; first < w.size(); first += static_cast<size_t>(group)) {
    if (!IsConstant(w, first, static_cast<size_t>(group))) continue;
    ++constant;
    for (size_t i = first; i < first + static_cast<size_t>(group); ++i) {
      EXPECT_LE(std::abs(back[i] - w[i]), 1e-3f * std::abs(w[i]) + 1e-7f)
          << "weight " << i << " " << w[i] << " bits " << params.bits;
      if (testing::Test::HasFailure()) return constant;
    }
  }
  return constant;
}

TEST(ConstantGroupTest, GoldenConstantsComeBack) {
  for (const char* name : {"const_b4", "const_b3", "noz_b4_const", "zero_b4"}) {
    const GoldenCase golden = LoadGolden(SINQ_GOLDEN_DIR, name);
    for (const bool symmetric : {false, true}) {
      for (const Method method : {Method::kSinq, Method::kRtn}) {
        const QuantParams params{method,
                                 Profile::kDefault,
                                 AuxStorage::kF16,
                                 golden.params.bits,
                                 golden.params.group_size,
                                 symmetric};
        EXPECT_GT(
            ExpectConstantGroupsComeBack(golden.Floats("W"), golden.rows(), golden.cols(), params),
            0)
            << name;
      }
    }
  }
}

TEST(ConstantGroupTest, AnyConstantAmongOrdinaryRowsComesBack) {
  std::vector<float> w = LoadGolden(SINQ_GOLDEN_DIR, "sinq_b4_g64").Floats("W");
  w.resize(64 * 128);
  const float constants[] = {0.0625f, -0.3f, 1e-4f, -7.77f, 0.0f, 3.14159f};
  for (size_t c = 0; c < 6; ++c)
    std::fill_n(w.begin() + static_cast<std::ptrdiff_t>((c * 9 + 2) * 128), 128, constants[c]);
  for (const int bits : {2, 3, 4, 5, 6, 8}) {
    for (const bool symmetric : {false, true}) {
      const QuantParams params{Method::kSinq, Profile::kDefault, AuxStorage::kF16, bits, 64,
                               symmetric};
      EXPECT_EQ(ExpectConstantGroupsComeBack(w, 64, 128, params), 12);
    }
  }
}

// ---------------------------------------------------------------- the search

struct Fit {
  double scale, zero, error;
};

double GroupError(const std::vector<float>& y, double scale, double zero, double top) {
  double error = 0;
  for (const float value : y) {
    const double q = std::clamp(std::nearbyint(scale == 0 ? zero : value / scale + zero), 0.0, top);
    error += (value - (q - zero) * scale) * (value - (q - zero) * scale);
  }
  return error;
}

double Storable(double zero, AuxStorage aux, double top) {
  if (aux == AuxStorage::kF16) return static_cast<double>(NearestF16(static_cast<float>(zero)));
  return std::clamp(std::nearbyint(zero * 16) / 16, 0.0, top);
}

struct Moments {
  double q = 0, qq = 0, qy = 0, y = 0;
};

Moments MomentsOf(const std::vector<float>& y, double scale, double zero, double top) {
  Moments m;
  for (const float value : y) {
    const double q = std::clamp(std::nearbyint(scale == 0 ? zero : value / scale + zero), 0.0, top);
    m.q += q;
    m.qq += q * q;
    m.qy += q * value;
    m.y += value;
  }
  return m;
}

// With the codes fixed: least squares for scale and offset, the zero made storable, least squares
// for the scale again.
Fit Step(const std::vector<float>& y, const Fit& from, AuxStorage aux, double top) {
  const Moments m = MomentsOf(y, from.scale, from.zero, top);
  const double n = static_cast<double>(y.size()), det = n * m.qq - m.q * m.q;
  double scale = det > 0 ? (n * m.qy - m.q * m.y) / det : 0;
  if (!(scale > 0)) scale = from.scale;
  const double zero = Storable(-((m.y - scale * m.q) / n) / scale, aux, top);
  const double den = m.qq - 2 * zero * m.q + n * zero * zero;
  const double refined = den > 0 ? (m.qy - zero * m.y) / den : 0;
  if (refined > 0) scale = refined;
  return {scale, zero, GroupError(y, scale, zero, top)};
}

Fit Range(const std::vector<float>& y, double shrink, AuxStorage aux, double top) {
  double low = static_cast<double>(*std::min_element(y.begin(), y.end())),
         high = static_cast<double>(*std::max_element(y.begin(), y.end()));
  // What the storage asks for: a zero within the codes, or one that F16 holds with enough digits.
  if (aux == AuxStorage::kU8 || std::max(std::abs(low), std::abs(high)) > 4 * (high - low)) {
    low = std::min(low, 0.0);
    high = std::max(high, 0.0);
  }
  const double scale = shrink * (high - low) / top;
  if (scale == 0) return {0, 0, GroupError(y, 0, 0, top)};
  const double zero = Storable(-shrink * low / scale, aux, top);
  return {scale, zero, GroupError(y, scale, zero, top)};
}

// Three ranges, each followed by two steps; the smallest error of the nine.
double FullAsymmetric(const std::vector<float>& y, AuxStorage aux, double top) {
  double best = std::numeric_limits<double>::infinity();
  for (const double shrink : {1.0, 0.9, 0.8}) {
    Fit fit = Range(y, shrink, aux, top);
    best = std::min(best, fit.error);
    for (int step = 0; step < 2 && fit.scale != 0; ++step) {
      fit = Step(y, fit, aux, top);
      best = std::min(best, fit.error);
    }
  }
  return best;
}

// The largest value goes to the lowest code; eight reaches, one step for the scale after each.
double FullSymmetric(const std::vector<float>& y, int bits) {
  const double half = 1 << (bits - 1), top = 2 * half - 1;
  float extreme = 0;
  for (const float value : y) extreme = std::abs(value) > std::abs(extreme) ? value : extreme;
  double best = std::numeric_limits<double>::infinity();
  for (const double shrink : {1.15, 1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7}) {
    double scale = -static_cast<double>(extreme) * shrink / half;
    best = std::min(best, GroupError(y, scale, half, top));
    const Moments m = MomentsOf(y, scale, half, top);
    const double den = m.qq - 2 * half * m.q + half * half * static_cast<double>(y.size());
    if (den > 0) scale = (m.qy - half * m.y) / den;
    best = std::min(best, GroupError(y, scale, half, top));
  }
  return best;
}

// The balanced groups of a golden input, as the search sees them.
std::vector<std::vector<float>> BalancedGroups(const GoldenCase& golden) {
  QuantParams params = golden.params;
  params.profile = Profile::kDefault;
  const std::vector<float> w = golden.Floats("W");
  std::vector<std::vector<float>> groups;
  for (int64_t first = 0; first < golden.cols(); first += golden.tile) {
    std::vector<float> tile;
    for (int64_t i = 0; i < golden.rows(); ++i) {
      const auto at = w.begin() + static_cast<std::ptrdiff_t>(i * golden.cols() + first);
      tile.insert(tile.end(), at, at + golden.tile);
    }
    const TileBalance balance = ReferenceBalance(tile, golden.rows(), golden.tile, params, {});
    for (int64_t i = 0; i < golden.rows(); ++i) {
      std::vector<float> y;
      for (int k = 0; k < golden.tile; ++k) {
        const float u =
            Rcp(NearestF16(balance.t[static_cast<size_t>(k)])) * std::ldexp(1.0f, balance.exponent);
        y.push_back(tile[static_cast<size_t>(i * golden.tile + k)] * u);
      }
      groups.push_back(y);
    }
  }
  return groups;
}

double Decibel(double ratio) { return 10 * std::log10(ratio); }

struct Totals {
  double ours = 0, full = 0, range = 0;
};

Totals TotalsOf(const GoldenCase& golden, AuxStorage aux, bool symmetric) {
  QuantParams params{Method::kSinq,      Profile::kDefault,        aux,
                     golden.params.bits, golden.params.group_size, symmetric};
  QuantParams range = params;
  range.method = Method::kRtn;
  const double top = (1 << params.bits) - 1;
  Totals totals;
  for (const std::vector<float>& y : BalancedGroups(golden)) {
    const ReferenceGroup fit = ReferenceFit(y, params, aux, ScaleRule::kLeastError),
                         plain = ReferenceFit(y, range, aux);
    const double ours = GroupError(y, fit.scale, fit.zero, top),
                 minmax = GroupError(y, plain.scale, plain.zero, top);
    if (!symmetric) {
      // An exactly representable group leaves only the rounding of s in fp32.
      const double noise =
          1e-12 * static_cast<double>(std::inner_product(y.begin(), y.end(), y.begin(), 0.0));
      EXPECT_LE(ours, minmax * (1 + 1e-4) + noise) << golden.name;
    }
    totals.ours += ours;
    totals.range += minmax;
    totals.full += symmetric ? FullSymmetric(y, params.bits) : FullAsymmetric(y, aux, top);
  }
  return totals;
}

class SearchTest : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Golden, SearchTest, testing::ValuesIn(GoldenNames(SINQ_GOLDEN_DIR)),
                         [](const testing::TestParamInfo<std::string>& info) {
                           return info.param;
                         });

// Weights of models that were trained on such a grid: what min/max would give back is given back.
TEST(SymmetricSearchTest, ValuesOnASymmetricGridAreExact) {
  for (const int bits : {2, 3, 4, 8}) {
    const int top = (1 << (bits - 1)) - 1;
    for (const int largest : {1, top}) {
      std::vector<float> y;
      for (int k = 0; k < 64; ++k)
        y.push_back(0.25f * static_cast<float>(k * 7 % (2 * largest + 1) - largest));
      const QuantParams params{Method::kSinq, Profile::kDefault, AuxStorage::kF32, bits, 64, true};
      const ReferenceGroup fit = ReferenceFit(y, params, AuxStorage::kF32);
      const double error = GroupError(y, fit.scale, fit.zero, (1 << bits) - 1);
      EXPECT_LE(error, 1e-10) << bits << " bits, up to " << largest;
    }
  }
}

TEST_P(SearchTest, IsAsGoodAsTheFullOneAndNeverWorseThanMinMax) {
  const GoldenCase golden = LoadGolden(SINQ_GOLDEN_DIR, GetParam());
  for (const AuxStorage aux : {AuxStorage::kU8, AuxStorage::kF16}) {
    for (const bool symmetric : {false, true}) {
      const Totals totals = TotalsOf(golden, aux, symmetric);
      if (totals.full == 0) continue;
      EXPECT_LE(Decibel(totals.ours / totals.full), 0.05)
          << AuxName(aux) << (symmetric ? " symmetric" : "");
      EXPECT_LE(totals.ours, totals.range * (1 + 1e-6))
          << AuxName(aux) << (symmetric ? " symmetric" : "");
    }
  }
}

// ---------------------------------------------------------------- the unbiased scale

// Over all groups: y * y', y * y and the squared error, y' being y as it is coded.
struct Projection {
  double along = 0, power = 0, error = 0;
  double Shortfall() const { return 1 - along / power; }
};

Projection ProjectionOf(const std::vector<std::vector<float>>& groups, const QuantParams& params,
                        ScaleRule rule) {
  const double top = (1 << params.bits) - 1;
  Projection sums;
  for (const std::vector<float>& y : groups) {
    const ReferenceGroup fit = ReferenceFit(y, params, params.aux, rule);
    const double scale = static_cast<double>(fit.scale), zero = static_cast<double>(fit.zero);
    const Moments m = MomentsOf(y, scale, zero, top);
    sums.along += scale * (m.qy - zero * m.y);
    sums.power += std::inner_product(y.begin(), y.end(), y.begin(), 0.0);
    sums.error += GroupError(y, scale, zero, top);
  }
  return sums;
}

// The fit with the least error shortens the weights by its relative error. What is stored gives
// more than half of that back (not all: codes are the nearest ones for the new scale) and costs
// little more than the square of it.
TEST(UnbiasedScaleTest, TheWeightsKeepTheirLength) {
  const std::vector<std::vector<float>> groups =
      BalancedGroups(LoadGolden(SINQ_GOLDEN_DIR, "sinq_b4_wide"));
  for (const int bits : {2, 3, 4}) {
    for (const AuxStorage aux : {AuxStorage::kU8, AuxStorage::kF16}) {
      const QuantParams params{Method::kSinq, Profile::kDefault, aux, bits, 64, false};
      const Projection least = ProjectionOf(groups, params, ScaleRule::kLeastError),
                       stored = ProjectionOf(groups, params, ScaleRule::kUnbiased);
      EXPECT_NEAR(least.Shortfall() / (least.error / least.power), 1, 0.2) << bits;
      EXPECT_GT(stored.Shortfall(), 0) << bits;
      EXPECT_LT(stored.Shortfall(), 0.5 * least.Shortfall()) << bits;
      EXPECT_LT(stored.error / least.error, 1 + 2 * least.error / least.power) << bits;
    }
  }
}

// ---------------------------------------------------------------- default against upstream

// What the outputs miss: sum of |X (W' - W)|, or ||W' - W|| without samples.
double ErrorOf(const GoldenCase& golden, const QuantParams& params) {
  const absl::StatusOr<std::vector<PlaneSpec>> specs =
      PlanesOf(params, golden.rows(), golden.cols());
  std::vector<std::vector<std::byte>> planes;
  std::vector<absl::Span<std::byte>> spans;
  for (const PlaneSpec& spec : *specs) planes.emplace_back(spec.size_bytes);
  for (std::vector<std::byte>& plane : planes) spans.push_back(absl::MakeSpan(plane));
  ReferenceOptions options;
  options.kurtosis_gate = golden.gate_enabled;
  const absl::StatusOr<ReferenceTensor> tensor =
      ReferenceQuantize(golden.View(), params, options, spans);
  EXPECT_TRUE(tensor.ok()) << tensor.status();
  if (!tensor.ok()) return 0;
  if (golden.samples.empty()) return tensor->stats.relative_error;
  const size_t cols = static_cast<size_t>(golden.cols());
  double error = 0;
  for (size_t x = 0; x < golden.samples.size(); x += cols) {
    for (size_t n = 0; n < tensor->w.size(); n += cols) {
      double output = 0;
      for (size_t k = 0; k < cols; ++k) {
        output += static_cast<double>(golden.samples[x + k]) *
                  (static_cast<double>(tensor->dequantized[n + k]) - tensor->w[n + k]);
      }
      error += std::abs(output);
    }
  }
  return error;
}

// HQQ is the same algorithm in both profiles, so rounding decides; and profile default does not
// balance tiles with a constant group.
double Allowance(const GoldenCase& golden) {
  if (RoundingOf(golden.params.method) != Rounding::kHqq) return 1e-9;
  return golden.input == "const" ? 0.03 : 0.003;
}

class ProfileTest : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Golden, ProfileTest, testing::ValuesIn(GoldenNames(SINQ_GOLDEN_DIR)),
                         [](const testing::TestParamInfo<std::string>& info) {
                           return info.param;
                         });

TEST_P(ProfileTest, DefaultIsNoWorseThanUpstream) {
  const GoldenCase golden = LoadGolden(SINQ_GOLDEN_DIR, GetParam());
  QuantParams params = golden.params;
  if (!Validate(params).ok()) return;  // nothing to compare with
  const double upstream = ErrorOf(golden, params);
  params.profile = Profile::kDefault;
  EXPECT_LE(ErrorOf(golden, params), upstream * (1 + Allowance(golden)));
}

// The authors' rule needs no stored zero here, ours has it rounded.
TEST(CodebookTest, TheSearchBeatsTheAuthorsRule) {
  for (const char* name : {"nf4", "nf3", "sinq_b4_wide", "outlier_b4_nogate", "onesided_b4"}) {
    const GoldenCase golden = LoadGolden(SINQ_GOLDEN_DIR, name);
    for (const Method method : {Method::kSinqNf4, Method::kSinqNf3}) {
      for (const AuxStorage aux : {AuxStorage::kU8, AuxStorage::kBf16}) {
        // 8-bit zeros are kept within -1 .. 1, so that one group cannot coarsen the grid of all.
        if (golden.input == "onesided" && aux == AuxStorage::kU8) continue;
        QuantParams params = golden.params;
        params.method = method;
        params.bits = method == Method::kSinqNf4 ? 4 : 3;
        double ours = 0, theirs = 0;
        for (const std::vector<float>& y : BalancedGroups(golden)) {
          const Rounding rounding = RoundingOf(method);
          ours += ScoreError(y, ReferenceFit(y, params, aux), rounding, params.bits);
          theirs += ScoreError(y, UpstreamFit(y, params), rounding, params.bits);
        }
        EXPECT_LT(ours, theirs) << name << " " << MethodName(method) << " " << AuxName(aux);
      }
    }
  }
}

// Random signs spread an outlier over its group.
TEST(HadamardTest, OutliersCostLess) {
  const GoldenCase golden = LoadGolden(SINQ_GOLDEN_DIR, "outlier_b4_nogate");
  QuantParams params{Method::kRtn, Profile::kDefault, AuxStorage::kF16, 4, 64, false};
  params.layout = Layout::kDense;
  const double plain = ErrorOf(golden, params);
  params.method = Method::kHadamard;
  EXPECT_LT(ErrorOf(golden, params), 0.9 * plain);
}

// ---------------------------------------------------------------- integer zeros

// A group in 3 .. 4 has its zero far outside of the codes: it must be fitted with 0 in its range.
// With the old scale and a clamped zero all codes saturate, an error of about 60 %.
TEST(IntegerZeroTest, OneSidedGroupsAreFittedAgain) {
  for (const float sign : {1.0f, -1.0f}) {
    std::vector<float> w(64 * 128);
    for (size_t i = 0; i < w.size(); ++i)
      w[i] = sign * (3.0f + static_cast<float>(i * 7919 % 1000) / 1000.0f);
    const std::vector<std::byte> bytes = BytesOf(w);
    for (const Layout layout :
         {Layout::kCompressedTensors, Layout::kAwq, Layout::kGptq, Layout::kGptqV2}) {
      for (const Method method : {Method::kSinq, Method::kRtn}) {
        QuantParams params{method, Profile::kDefault, AuxStorage::kF16, 4, 64, false};
        params.layout = layout;
        const QuantizedPlanes out = RunBackend(*MakeCpuBackend(), ViewOf(bytes, 64, 128), params);
        ASSERT_TRUE(out.status.ok()) << out.status;
        // A step of 4 / 14 at most, evenly missed, beside 3.5.
        EXPECT_LT(out.stats.relative_error, 4.0 / 14 / std::sqrt(12) / 3.5 * 1.2)
            << static_cast<int>(layout) << " " << sign;
      }
    }
  }
}

// ---------------------------------------------------------------- scale invariance

TEST(ScaleInvarianceTest, APowerOfTwoLeavesTheCodes) {
  const GoldenCase golden = LoadGolden(SINQ_GOLDEN_DIR, "sinq_b4_wide");
  const int64_t rows = golden.rows(), cols = golden.cols();
  for (const bool symmetric : {false, true}) {
    for (const int bits : {3, 4, 8}) {
      const QuantParams params{Method::kSinq, Profile::kDefault, AuxStorage::kF16, bits, 64,
                               symmetric};
      std::vector<std::byte> expected;
      for (const int power : {0, -10, -4, -1, 1, 5, 12}) {
        std::vector<float> w = golden.Floats("W");
        for (float& value : w) value = std::ldexp(value, power);
        const std::vector<std::byte> bytes = BytesOf(w);
        const QuantizedPlanes out =
            RunBackend(*MakeCpuBackend(), ViewOf(bytes, rows, cols), params);
        ASSERT_TRUE(out.status.ok()) << out.status;
        if (power == 0) expected = out.Plane(PlaneKind::kCodes);
        EXPECT_EQ(out.Plane(PlaneKind::kCodes) == expected, true)
            << "times 2^" << power << " bits " << bits;
      }
    }
  }
}

}  // namespace
}  // namespace sinq::kernels
