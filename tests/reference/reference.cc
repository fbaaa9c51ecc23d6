#include "tests/reference/reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"

namespace sinq::kernels {
namespace {

constexpr float kF16Max = 65504.0f;

float PowerOfTwo(int exponent) { return std::ldexp(1.0f, exponent); }
int FloorHalf(int x) { return x >= 0 ? x / 2 : -((1 - x) / 2); }
// The bound also where x is not a number or a zero of the other sign.
float AtLeast(float x, float bound) { return x > bound ? x : bound; }
float Clamp(float x, float low, float high) {
  const float raised = AtLeast(x, low);
  return raised < high ? raised : high;
}
float Rne(float x) { return std::nearbyint(x); }
// Scales and zeros are never stored as -0: instruction sets disagree about its sign.
float WithoutNegativeZero(float x) { return x + 0.0f; }

// ---------------------------------------------------------------- 0. input

float FromBits16(uint16_t bits, int exponent_bits, int mantissa_bits) {
  const int exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const float sign = bits >> (exponent_bits + mantissa_bits) ? -1.0f : 1.0f;
  if (exponent == 0)
    return sign * std::ldexp(static_cast<float>(mantissa), 1 - bias - mantissa_bits);
  return sign * std::ldexp(static_cast<float>((1 << mantissa_bits) + mantissa),
                           exponent - bias - mantissa_bits);
}

float FromF16(uint16_t bits) {
  if ((bits & 0x7c00) != 0x7c00) return FromBits16(bits, 5, 10);
  if ((bits & 0x3ff) != 0) return std::numeric_limits<float>::quiet_NaN();
  return bits & 0x8000 ? -std::numeric_limits<float>::infinity()
                       : std::numeric_limits<float>::infinity();
}

float FromE4m3(uint8_t bits) {
  if ((bits & 0x7f) == 0x7f) return std::numeric_limits<float>::quiet_NaN();
  return FromBits16(bits, 4, 3);
}

float ReadElement(const MatrixView& in, int64_t i, int64_t k) {
  const std::byte* at = in.data + static_cast<size_t>(i * in.cols + k) * BytesPerElement(in.dtype);
  if (in.dtype == WeightDtype::kF32) {
    float value;
    std::memcpy(&value, at, sizeof value);
    return value;
  }
  if (in.dtype == WeightDtype::kF8E4M3) {
    const float value = FromE4m3(static_cast<uint8_t>(*at));
    if (in.block_scales.empty()) return value;
    const int64_t per_row = (in.cols + 127) / 128;
    return value * in.block_scales[static_cast<size_t>(i / 128 * per_row + k / 128)];
  }
  uint16_t bits;
  std::memcpy(&bits, at, sizeof bits);
  if (in.dtype == WeightDtype::kF16) return FromF16(bits);
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

absl::Status ReadAll(const MatrixView& in, std::vector<float>& w) {
  for (int64_t i = 0; i < in.rows; ++i) {
    for (int64_t k = 0; k < in.cols; ++k) {
      w.push_back(ReadElement(in, i, k));
      if (std::isfinite(w.back())) continue;
      return absl::InvalidArgumentError(absl::StrCat("element [", i, ", ", k, "] is ",
                                                     std::isnan(w.back()) ? "NaN" : "infinite",
                                                     "; weights must be finite"));
    }
  }
  return absl::OkStatus();
}

// ---------------------------------------------------------------- 1. sums

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

bool IsSkipped(const std::vector<float>& tile, int64_t n, int g, const QuantParams& params) {
  if (params.method == Method::kRtn || n == 1) return true;
  if (params.profile == Profile::kUpstream) return false;
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

// ---------------------------------------------------------------- 3. profile upstream

double KurtosisOf(const std::vector<float>& w, int64_t n, int64_t cols) {
  double s[4] = {};
  for (int64_t i = 0; i < n; ++i) {
    double lanes[4][16] = {};
    for (int64_t k = 0; k < cols; ++k) {
      const double d = static_cast<double>(w[static_cast<size_t>(i * cols + k)]);
      const double d2 = d * d;
      lanes[0][k % 16] += d;
      lanes[1][k % 16] += d2;
      lanes[2][k % 16] += d2 * d;
      lanes[3][k % 16] += d2 * d2;
    }
    for (int power = 0; power < 4; ++power) {
      for (int half = 8; half > 0; half /= 2) {
        for (int l = 0; l < half; ++l) lanes[power][l] += lanes[power][l + half];
      }
      s[power] += lanes[power][0];
    }
  }
  const double count = static_cast<double>(n) * static_cast<double>(cols);
  const double mean = s[0] / count, m2 = s[1] / count, m3 = s[2] / count, m4 = s[3] / count;
  const double v = std::max(m2 - mean * mean, 1e-6);
  const double fourth = m4 - 4 * mean * m3 + 6 * mean * mean * m2 - 3 * mean * mean * mean * mean;
  return fourth / (v * v);
}

ReferenceGroup FitUpstream(const std::vector<float>& y, const QuantParams& params) {
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
  if (params.symmetric) {
    const int h = (1 << (params.bits - 1)) - 1;
    return static_cast<int>(
               Clamp(Rne(y / group.scale), static_cast<float>(-h - 1), static_cast<float>(h - 1))) +
           h;
  }
  return static_cast<int>(
      Clamp(Rne(y / group.scale + group.zero), 0.0f, static_cast<float>((1 << params.bits) - 1)));
}

// ---------------------------------------------------------------- 4. profile default

struct Score {
  float error, a, b, c;
};

Score ScoreOf(const std::vector<float>& y, float s, float z, float m) {
  const float i = Rcp(s);
  float d_sum = 0, a = 0, b = 0, c = 0;
  for (const float value : y) {
    const float v = std::fma(value, i, z);
    const float q = Rne(Clamp(v, 0.0f, m));
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

float PlainSum(const std::vector<float>& y) {
  float sum = 0;
  for (const float value : y) sum += value;
  return sum;
}

float Zeta(float z, AuxStorage aux, float m) {
  if (aux == AuxStorage::kF16) return NearestF16(z);
  return Clamp(Rne(z * 16.0f) / 16.0f, 0.0f, m);
}

ReferenceGroup LeastSquares(const Score& sums, float old_scale, float total, float g,
                            AuxStorage aux, float m) {
  const float det = g * sums.b - sums.a * sums.a;
  const float num = g * sums.c - sums.a * total;
  float s1 = num * Rcp(det);
  if (!(det > 0 && s1 > 0)) s1 = old_scale;
  const float o = (total - s1 * sums.a) * (1.0f / g);
  const float z1 = Zeta(-(o * Rcp(s1)), aux, m);
  const float num2 = std::fma(-z1, total, sums.c);
  const float den2 = std::fma(z1, std::fma(g, z1, -2.0f * sums.a), sums.b);
  const float s2 = num2 * Rcp(den2);
  return {den2 > 0 && s2 > 0 ? s2 : s1, z1};
}

ReferenceGroup FitAsymmetric(const std::vector<float>& y, const QuantParams& params,
                             AuxStorage aux) {
  const float m = static_cast<float>((1 << params.bits) - 1);
  float lo0 = *std::min_element(y.begin(), y.end()), hi0 = *std::max_element(y.begin(), y.end());
  const bool far = std::max(std::abs(lo0), std::abs(hi0)) > 4.0f * (hi0 - lo0);
  if (aux == AuxStorage::kU8 || far) {
    lo0 = std::min(lo0, 0.0f);
    hi0 = std::max(hi0, 0.0f);
  }
  const auto scored = [&](ReferenceGroup group) {
    return Candidate{group, ScoreOf(y, group.scale, group.zero, m)};
  };
  const auto ranged = [&](float a) {
    const float lo = a * lo0, hi = a * hi0;
    const float s = (hi - lo) * (1.0f / m);
    return scored({s, Zeta(-(lo * Rcp(s)), aux, m)});
  };
  const auto stepped = [&](const Candidate& from) {
    return scored(LeastSquares(from.score, from.group.scale, PlainSum(y),
                               static_cast<float>(y.size()), aux, m));
  };
  if (params.method == Method::kRtn) return ranged(1.0f).group;
  const Candidate one = ranged(1.0f), nine = ranged(0.9f), eight = ranged(0.8f);
  Candidate step = stepped(one);
  for (const Candidate& range : {nine, eight}) step = Better(step, stepped(range));
  Candidate best = one;
  for (const Candidate& next : {nine, eight, step, stepped(step)}) best = Better(best, next);
  return best.group;
}

ReferenceGroup FitSymmetric(const std::vector<float>& y, const QuantParams& params) {
  const float h = static_cast<float>(1 << (params.bits - 1)), m = 2 * h - 1;
  const float low = *std::min_element(y.begin(), y.end()),
              high = *std::max_element(y.begin(), y.end());
  const float e = -low > high ? low : high;
  if (params.method == Method::kRtn) return {std::abs(e) * (1.0f / (h - 1)), h};
  const auto scaled = [&](float s) { return Candidate{{s, h}, ScoreOf(y, s, h, m)}; };
  const auto shrunk = [&](float a) { return scaled(-e * a * (1 / h)); };
  Candidate best = shrunk(1.15f);
  for (const float a : {1.0f, 0.95f, 0.9f, 0.85f, 0.8f, 0.75f, 0.7f})
    best = Better(best, shrunk(a));
  const float g = static_cast<float>(y.size());
  const float num = std::fma(-h, PlainSum(y), best.score.c);
  const float den = std::fma(h, std::fma(g, h, -2.0f * best.score.a), best.score.b);
  float s = den > 0 ? num * Rcp(den) : 0.0f;
  if (s == 0) s = best.group.scale;
  return Better(best, scaled(s)).group;
}

// ---------------------------------------------------------------- storage

uint16_t F16Bits(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float x = std::abs(value);
  if (x == 0) return sign;
  const int exponent = std::ilogb(x);
  if (exponent < -14) return sign | static_cast<uint16_t>(std::ldexp(x, 24));
  return sign | static_cast<uint16_t>(((exponent + 15) << 10) +
                                      static_cast<int>(std::ldexp(x, 10 - exponent)) - 1024);
}

void Put16(float value, absl::Span<std::byte> out, size_t index) {
  const uint16_t bits = F16Bits(value);
  std::memcpy(out.data() + 2 * index, &bits, sizeof bits);
}

absl::Status TooLarge(const char* what) {
  return absl::InvalidArgumentError(absl::StrCat("a ", what, " does not fit F16"));
}

absl::Status StoreHalf(std::vector<float>& values, const char* what, absl::Span<std::byte> out) {
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = NearestF16(values[i]) + 0.0f;  // no -0
    if (!std::isfinite(values[i])) return TooLarge(what);
    if (2 * i < out.size()) Put16(values[i], out, i);
  }
  return absl::OkStatus();
}

// Largest F16 not above x, by looking at neighbours.
float HalfBelow(float x) {
  const float near = NearestF16(x);
  if (near <= x) return near;
  const int step = std::max(std::ilogb(near), -14) - 10;
  const float down = NearestF16(near - PowerOfTwo(step));
  const float closer = NearestF16(
      near - PowerOfTwo(std::max(step - 1, -24)));  // below a power of two steps are half as wide
  return closer < near && closer <= x ? closer : down;
}

struct Grid {
  float minimum, step;                // what the codes are made with
  float stored_minimum, stored_step;  // what a reader sees
};

Grid GridOf(float low, float high, Profile profile) {
  if (profile == Profile::kUpstream) {
    const float step = (high - low) / 255.0f;
    return {low, step, NearestF16(low), NearestF16(step)};
  }
  const float minimum = HalfBelow(low);
  const float step = -HalfBelow(-((high - minimum) / 255.0f));
  return {minimum, step, minimum, step};
}

struct AuxPlanes {
  absl::Span<std::byte> codes, steps, minima;
};

// 5. quantized auxiliaries: column c of [strands, columns].
absl::Status StoreAux(std::vector<float>& values, size_t strands, Profile profile,
                      const AuxPlanes& out) {
  const size_t columns = values.size() / strands;
  for (size_t c = 0; c < columns; ++c) {
    float low = values[c], high = values[c];
    for (size_t i = 0; i < strands; ++i) {
      low = std::min(low, values[i * columns + c]);
      high = std::max(high, values[i * columns + c]);
    }
    if (!(low >= -kF16Max && high <= kF16Max)) return TooLarge("scale or zero");
    const Grid grid = GridOf(low, high, profile);
    Put16(grid.stored_step, out.steps, c);
    Put16(grid.stored_minimum, out.minima, c);
    for (size_t i = 0; i < strands; ++i) {
      float& v = values[i * columns + c];
      const float code =
          grid.step == 0 ? 0.0f : Clamp(Rne((v - grid.minimum) / grid.step), 0.0f, 255.0f);
      out.codes[i * columns + c] = static_cast<std::byte>(code);
      v = NearestF16(NearestF16(code * grid.stored_step) + grid.stored_minimum);
    }
  }
  return absl::OkStatus();
}

// 6. packing.
void PackCodes(const std::vector<int>& codes, int bits, int64_t group_rows, int g,
               absl::Span<std::byte> out) {
  const CodePacking& packing = PackingFor(bits);
  const int64_t per_word = packing.codes_per_word, step = (group_rows + per_word - 1) / per_word;
  for (int64_t q = 0; q < step; ++q) {
    for (int k = 0; k < g; ++k) {
      uint32_t word = 0;
      for (int64_t c = 0; c < per_word; ++c) {
        const int64_t row = q + c * step;
        const int code = row < group_rows ? codes[static_cast<size_t>(row * g + k)] : 0;
        word |= static_cast<uint32_t>(code) << (bits * static_cast<int>(per_word - 1 - c));
      }
      const size_t width = static_cast<size_t>(packing.word_bytes);
      std::memcpy(out.data() + static_cast<size_t>(q * g + k) * width, &word,
                  width);  // little endian
    }
  }
}

// One call; the stages in the order of README.md.
class Work {
 public:
  Work(const QuantParams& params, const ReferenceOptions& options,
       absl::Span<const PlaneSpec> specs, absl::Span<const absl::Span<std::byte>> planes)
      : params_(params), options_(options), specs_(specs), planes_(planes) {}

  absl::StatusOr<ReferenceTensor> Run(const MatrixView& in) {
    out_.rows = in.rows;
    out_.cols = in.cols;
    out_.group = EffectiveGroupSize(in.cols, params_.group_size);
    aux_ = EffectiveAux(params_, in.rows, in.cols);
    if (absl::Status status = ReadAll(in, out_.w); !status.ok()) return status;
    tiles_ = in.cols / out_.group;
    Gate();
    out_.t.resize(static_cast<size_t>(in.cols));
    out_.scale.resize(static_cast<size_t>(in.rows * tiles_));
    out_.zero.resize(out_.scale.size());
    exact_.resize(out_.scale.size());
    out_.codes.resize(out_.w.size());
    for (int64_t j = 0; j < tiles_; ++j) OneTile(j);
    out_.stats.mean_rounds = static_cast<double>(rounds_) / static_cast<double>(tiles_);
    if (upstream()) CodeUpstream();
    if (absl::Status status = Store(); !status.ok()) return status;
    if (!upstream()) CodeDefault();
    PackCodes(out_.codes, params_.bits, in.rows * tiles_, out_.group, Plane(PlaneKind::kCodes));
    SumErrors();
    return out_;
  }

 private:
  bool upstream() const { return params_.profile == Profile::kUpstream; }
  size_t E(int64_t i, int64_t j) const { return static_cast<size_t>(i * tiles_ + j); }
  float W(int64_t i, int64_t k) const { return out_.w[static_cast<size_t>(i * out_.cols + k)]; }

  absl::Span<std::byte> Plane(PlaneKind kind) const {
    for (size_t p = 0; p < specs_.size(); ++p) {
      if (specs_[p].kind == kind) return planes_[p];
    }
    return {};
  }

  // The single zero of the symmetric layout has no place for per-group zeros, so a closed gate
  // leaves `symmetric` as it is.
  void Gate() {
    if (!upstream() || params_.method != Method::kSinq) return;
    out_.stats.kurtosis = KurtosisOf(out_.w, out_.rows, out_.cols);
    if (!options_.kurtosis_gate || !(out_.stats.kurtosis > 5)) return;
    out_.stats.kurtosis_gate_closed = true;
    params_.method = Method::kRtn;
  }

  void OneTile(int64_t j) {
    const int g = out_.group;
    std::vector<float> tile;
    for (int64_t i = 0; i < out_.rows; ++i) {
      for (int k = 0; k < g; ++k) tile.push_back(W(i, j * g + k));
    }
    const TileBalance balance = ReferenceBalance(tile, out_.rows, g, params_, options_);
    std::copy(balance.t.begin(), balance.t.end(), out_.t.begin() + j * g);
    for (int64_t i = 0; i < out_.rows; ++i) FitGroup(i, j, balance);
    TensorStats& stats = out_.stats;
    stats.imbalance_before = std::max<double>(stats.imbalance_before, balance.imbalance_before);
    stats.imbalance_after = std::max<double>(stats.imbalance_after, balance.imbalance_after);
    rounds_ += balance.rounds;
    ++stats.tiles_by_rounds[static_cast<size_t>(balance.rounds)];
    out_.balances.push_back(balance);
  }

  std::vector<float> UpstreamY(int64_t i, int64_t j, const TileBalance& balance) const {
    std::vector<float> y;
    for (int k = 0; k < out_.group; ++k) {
      y.push_back(W(i, j * out_.group + k) * Rcp(balance.t[static_cast<size_t>(k)]) *
                  Rcp(balance.r[static_cast<size_t>(i)]));
    }
    return y;
  }

  void FitGroup(int64_t i, int64_t j, const TileBalance& balance) {
    const size_t e = E(i, j);
    if (upstream()) {
      exact_[e] = FitUpstream(UpstreamY(i, j, balance), params_);
      out_.scale[e] = exact_[e].scale * balance.r[static_cast<size_t>(i)];
      out_.zero[e] = WithoutNegativeZero(exact_[e].zero);
      return;
    }
    std::vector<float> y;
    for (int k = 0; k < out_.group; ++k) {
      const float u =
          Rcp(NearestF16(balance.t[static_cast<size_t>(k)])) * PowerOfTwo(balance.exponent);
      y.push_back(W(i, j * out_.group + k) * u);
    }
    const ReferenceGroup fit = ReferenceFit(y, params_, aux_);
    out_.scale[e] = WithoutNegativeZero(fit.scale) * PowerOfTwo(-balance.exponent);
    out_.zero[e] = WithoutNegativeZero(fit.zero);
  }

  void CodeUpstream() {
    const int g = out_.group;
    for (int64_t i = 0; i < out_.rows; ++i) {
      for (int64_t j = 0; j < tiles_; ++j) {
        const std::vector<float> y = UpstreamY(i, j, out_.balances[static_cast<size_t>(j)]);
        for (int k = 0; k < g; ++k) {
          out_.codes[static_cast<size_t>(i * out_.cols + j * g + k)] =
              UpstreamCode(y[static_cast<size_t>(k)], exact_[E(i, j)], params_);
        }
      }
    }
  }

  void CentreExponents() {
    float largest = 0, largest_t = 0;
    for (const float s : out_.stored_scale) largest = std::max(largest, std::abs(s));
    for (const float t : out_.stored_t) largest_t = std::max(largest_t, t);
    if (largest == 0) return;
    const int e = FloorHalf(std::ilogb(largest) - std::ilogb(largest_t));
    for (float& t : out_.stored_t) t *= PowerOfTwo(e);
    for (float& s : out_.stored_scale) s *= PowerOfTwo(-e);
  }

  absl::Status Store() {
    out_.stored_t = out_.t;
    out_.stored_scale = out_.scale;
    out_.stored_zero = out_.zero;
    if (!upstream()) {
      for (float& t : out_.stored_t) t = NearestF16(t);
      CentreExponents();
    }
    absl::Status status = StoreHalf(out_.stored_t, "column scale", Plane(PlaneKind::kColumnScale));
    if (status.ok()) status = StoreScales();
    if (status.ok()) status = StoreZeros();
    return status;
  }

  absl::Status StoreScales() {
    if (aux_ == AuxStorage::kF16)
      return StoreHalf(out_.stored_scale, "scale", Plane(PlaneKind::kScale));
    return StoreAux(
        out_.stored_scale, 32, params_.profile,
        {Plane(PlaneKind::kScaleCode), Plane(PlaneKind::kScaleStep), Plane(PlaneKind::kScaleMin)});
  }
  absl::Status StoreZeros() {
    if (aux_ == AuxStorage::kF16 || params_.symmetric)
      return StoreHalf(out_.stored_zero, "zero", Plane(PlaneKind::kZero));
    return StoreAux(
        out_.stored_zero, out_.stored_zero.size(), params_.profile,
        {Plane(PlaneKind::kZeroCode), Plane(PlaneKind::kZeroStep), Plane(PlaneKind::kZeroMin)});
  }

  void CodeDefault() {
    const float m = static_cast<float>((1 << params_.bits) - 1);
    for (int64_t i = 0; i < out_.rows; ++i) {
      for (int64_t k = 0; k < out_.cols; ++k) {
        const size_t e = E(i, k / out_.group);
        const float y = W(i, k) * Rcp(out_.stored_t[static_cast<size_t>(k)]);
        const float v = std::fma(y, Rcp(out_.stored_scale[e]), out_.stored_zero[e]);
        out_.codes[static_cast<size_t>(i * out_.cols + k)] =
            static_cast<int>(Clamp(Rne(v), 0.0f, m));
      }
    }
  }

  float Miss(int64_t i, int64_t k) const {
    const size_t e = E(i, k / out_.group);
    const float q = static_cast<float>(out_.codes[static_cast<size_t>(i * out_.cols + k)]);
    const float back =
        (q - out_.stored_zero[e]) * out_.stored_scale[e] * out_.stored_t[static_cast<size_t>(k)];
    return back - W(i, k);
  }

  void SumErrors() {
    double error = 0, power = 0, block_error = 0, block_power = 0;
    for (int64_t i = 0; i < out_.rows; ++i) {
      for (int64_t j = 0; j < tiles_; ++j) {
        const int64_t first = j * out_.group;
        block_error += static_cast<double>(LaneSum(out_.group, [&](float a, int k) {
          const float d = Miss(i, first + k);
          return std::fma(d, d, a);
        }));
        block_power += static_cast<double>(LaneSum(out_.group, [&](float a, int k) {
          return std::fma(W(i, first + k), W(i, first + k), a);
        }));
      }
      if (i % 32 != 31 && i + 1 != out_.rows) continue;
      error += block_error;
      power += block_power;
      block_error = block_power = 0;
    }
    out_.stats.relative_error = power == 0 ? 0 : std::sqrt(error / power);
  }

  QuantParams params_;
  const ReferenceOptions options_;
  const absl::Span<const PlaneSpec> specs_;
  const absl::Span<const absl::Span<std::byte>> planes_;
  AuxStorage aux_ = AuxStorage::kF16;
  int64_t tiles_ = 0, rounds_ = 0;
  std::vector<ReferenceGroup> exact_;  // upstream: what the codes are made with
  ReferenceTensor out_;
};

}  // namespace

float NearestF16(float x) {
  if (x == 0 || !std::isfinite(x)) return x;
  const int step = std::max(std::ilogb(x), -14) - 10;
  const float rounded = std::ldexp(Rne(std::ldexp(x, -step)), step);
  if (std::abs(rounded) > kF16Max) return std::copysign(std::numeric_limits<float>::infinity(), x);
  // A negative number that rounds to nothing keeps its sign, as in hardware.
  return std::copysign(rounded, x);
}

float Rcp(float x) { return x == 0 ? 0.0f : 1.0f / x; }

TileBalance ReferenceBalance(const std::vector<float>& tile, int64_t rows, int group,
                             const QuantParams& params, const ReferenceOptions& options) {
  TileBalance best;
  best.t.assign(static_cast<size_t>(group), 1.0f);
  best.r.assign(static_cast<size_t>(rows), 1.0f);
  if (IsSkipped(tile, rows, group, params)) return best;
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

ReferenceGroup ReferenceFit(const std::vector<float>& y, const QuantParams& params,
                            AuxStorage aux) {
  const bool empty = std::all_of(y.begin(), y.end(), [](float value) { return value == 0; });
  const float half = static_cast<float>(1 << (params.bits - 1));
  if (empty) return {0.0f, params.symmetric ? half : 0.0f};
  if (std::all_of(y.begin(), y.end(), [&y](float value) { return value == y[0]; })) {
    if (params.symmetric) return {-y[0], half};
    return {std::abs(y[0]), y[0] > 0 ? 0.0f : 1.0f};
  }
  return params.symmetric ? FitSymmetric(y, params) : FitAsymmetric(y, params, aux);
}

std::vector<int> UnpackCodes(const std::byte* packed, int bits, int64_t rows, int64_t cols,
                             int group) {
  const CodePacking& packing = PackingFor(bits);
  const int64_t group_rows = rows * (cols / group);
  const int64_t step = (group_rows + packing.codes_per_word - 1) / packing.codes_per_word;
  std::vector<int> codes;
  for (int64_t row = 0; row < group_rows; ++row) {
    for (int k = 0; k < group; ++k) {
      uint32_t word = 0;
      const size_t width = static_cast<size_t>(packing.word_bytes);
      std::memcpy(&word, packed + static_cast<size_t>(row % step * group + k) * width, width);
      const int shift = bits * (packing.codes_per_word - 1 - static_cast<int>(row / step));
      codes.push_back(static_cast<int>(word >> shift & ((1u << bits) - 1)));
    }
  }
  return codes;
}

absl::StatusOr<ReferenceTensor> ReferenceQuantize(const MatrixView& in, const QuantParams& params,
                                                  const ReferenceOptions& options,
                                                  absl::Span<const absl::Span<std::byte>> planes) {
  if (absl::Status status = Validate(params); !status.ok()) return status;
  const absl::StatusOr<std::vector<PlaneSpec>> specs = NativePlanes(params, in.rows, in.cols);
  if (!specs.ok()) return specs.status();
  return Work(params, options, *specs, planes).Run(in);
}

}  // namespace sinq::kernels
