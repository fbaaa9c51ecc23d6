#include "tests/reference/reference_activations.h"

#include <algorithm>
#include <cmath>

#include "kernels/deterministic_math.h"
#include "tests/reference/reference_numbers.h"

namespace sinq::kernels {
namespace {

class Search {
 public:
  Search(const MatrixView& in, const std::vector<float>& w, const QuantParams& params, int group,
         const std::vector<TileBalance>& balances)
      : in_(in), x_(*in.activations), w_(w), params_(params), group_(group), balances_(balances) {}

  std::vector<float> Run() const {
    std::vector<float> best;
    double least = 0;
    for (int i = 0; i < 20; ++i) {
      const std::vector<float> c = Candidate(static_cast<double>(i) / 20);
      const double error = ErrorOf(c);
      if (!best.empty() && !(error < least) && !std::isnan(least)) continue;
      best = c;
      least = error;
    }
    return best;
  }

 private:
  bool upstream() const { return params_.profile == Profile::kUpstream; }
  size_t At(int64_t row, int64_t col) const { return static_cast<size_t>(row * in_.cols + col); }

  float InputMagnitude(int64_t k) const {
    if (x_.samples.empty()) return std::sqrt(std::max(x_.second_moments[At(k, k)], 0.0f));
    double sum = 0;
    for (int64_t token = 0; token < x_.tokens; ++token)
      sum += std::abs(static_cast<double>(x_.samples[At(token, k)]));
    return static_cast<float>(sum / static_cast<double>(x_.tokens));
  }

  float WeightMagnitude(int64_t k) const {
    double sum = 0;
    for (int64_t first = 0; first < in_.rows; first += 32) {
      float block = 0;
      for (int64_t i = first; i < std::min(in_.rows, first + 32); ++i)
        block += std::abs(w_[At(i, k)]);
      sum += static_cast<double>(block);
    }
    return static_cast<float>(sum / static_cast<double>(in_.rows));
  }

  std::vector<float> Candidate(double alpha) const {
    std::vector<float> factors;
    for (int64_t k = 0; k < in_.cols; ++k) {
      const float c = std::max(Power(InputMagnitude(k), alpha), 1e-4f);
      factors.push_back(std::max(c / (Power(WeightMagnitude(k), 1 - alpha) + 1e-4f), 1e-4f));
    }
    const auto [low, high] = std::minmax_element(factors.begin(), factors.end());
    const float middle = std::sqrt(*high * *low);
    for (float& c : factors) c /= middle;
    return factors;
  }

  // w' - w of row n.
  std::vector<float> Difference(const std::vector<float>& c, int64_t n) const {
    std::vector<float> difference;
    for (int64_t first = 0; first < in_.cols; first += group_) {
      const TileBalance& balance = balances_[static_cast<size_t>(first / group_)];
      AppendGroup(c, n, first, balance, difference);
    }
    return difference;
  }

  void AppendGroup(const std::vector<float>& c, int64_t n, int64_t first,
                   const TileBalance& balance, std::vector<float>& difference) const {
    const float r = upstream() ? balance.r[static_cast<size_t>(n)] : 1.0f;
    std::vector<float> y, back;
    for (int k = 0; k < group_; ++k) {
      const float t = balance.t[static_cast<size_t>(k)] / c[static_cast<size_t>(first + k)];
      const float f = 1.0f / t * PowerOfTwo(balance.exponent);
      y.push_back(w_[At(n, first + k)] * f * Rcp(r));
      back.push_back(t * PowerOfTwo(-balance.exponent));
    }
    const auto [low, high] = std::minmax_element(y.begin(), y.end());
    const float m = TopCode(params_.bits);
    const float s = std::max(*high - *low, upstream() ? 1e-4f : 0.0f) / m;
    const float z = -Rne(*low * Rcp(s));
    for (int k = 0; k < group_; ++k) {
      const float q = Rne(Clamp(std::fma(y[static_cast<size_t>(k)], Rcp(s), z), 0.0f, m));
      const float value = (q - z) * (s * r) * back[static_cast<size_t>(k)];
      difference.push_back(value - w_[At(n, first + k)]);
    }
  }

  double RowError(const std::vector<float>& difference) const {
    const bool moments = x_.samples.empty();
    const absl::Span<const float> x = moments ? x_.second_moments : x_.samples;
    double error = 0;
    for (int64_t row = 0; row < (moments ? in_.cols : x_.tokens); ++row) {
      float output = 0;
      for (int64_t k = 0; k < in_.cols; ++k)
        output = std::fma(x[At(row, k)], difference[static_cast<size_t>(k)], output);
      const double o = static_cast<double>(output);
      if (moments) {
        error += o * static_cast<double>(difference[static_cast<size_t>(row)]);
      } else {
        error += params_.method == Method::kAsinqL2 ? o * o : std::abs(o);
      }
    }
    return error;
  }

  double ErrorOf(const std::vector<float>& c) const {
    return BlockSum(in_.rows, [&](int64_t n) { return RowError(Difference(c, n)); });
  }

  const MatrixView& in_;
  const ActivationView& x_;
  const std::vector<float>& w_;
  const QuantParams& params_;
  const int group_;
  const std::vector<TileBalance>& balances_;
};

bool AllFinite(absl::Span<const float> values) {
  return std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); });
}

absl::Status Check(const MatrixView& in) {
  const absl::Status wrong = absl::InvalidArgumentError("activations are missing or wrong");
  if (in.activations == nullptr) return wrong;
  const ActivationView& x = *in.activations;
  if (x.samples.empty() == x.second_moments.empty()) return wrong;
  const size_t rows = static_cast<size_t>(x.samples.empty() ? in.cols : x.tokens);
  const absl::Span<const float> values = x.samples.empty() ? x.second_moments : x.samples;
  if (values.size() != rows * static_cast<size_t>(in.cols) || !AllFinite(values)) return wrong;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<float>> ReferenceColumnFactor(const MatrixView& in,
                                                         const std::vector<float>& w,
                                                         const QuantParams& params, int group,
                                                         const std::vector<TileBalance>& balances) {
  if (absl::Status status = Check(in); !status.ok()) return status;
  return Search(in, w, params, group, balances).Run();
}

}  // namespace sinq::kernels
