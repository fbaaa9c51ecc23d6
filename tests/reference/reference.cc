#include "tests/reference/reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/pack.h"
#include "tests/reference/reference_activations.h"
#include "tests/reference/reference_fit.h"
#include "tests/reference/reference_numbers.h"
#include "tests/reference/reference_store.h"

namespace sinq::kernels {
namespace {

// ---------------------------------------------------------------- 3. the gate of profile upstream

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

// ---------------------------------------------------------------- tiles

struct Place {
  int64_t first_row, rows, first_col;
};

std::vector<Place> PlacesOf(int64_t rows, int64_t cols, int group, Tiling tiling) {
  const int64_t height = tiling == Tiling::k2D ? group : rows;
  std::vector<Place> places;
  for (int64_t i = 0; i < rows; i += height) {
    for (int64_t k = 0; k < cols; k += group) places.push_back({i, height, k});
  }
  return places;
}

bool HoldsColumnScale(Layout layout) { return layout == Layout::kSinq || layout == Layout::kDense; }

PlaneDtype DenseDtypeOf(WeightDtype dtype) {
  if (dtype == WeightDtype::kF32) return PlaneDtype::kF32;
  return dtype == WeightDtype::kF16 ? PlaneDtype::kF16 : PlaneDtype::kBf16;
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
    params_.aux = EffectiveAux(params_, in.rows, in.cols);
    if (absl::Status status = ReadAll(in, out_.w); !status.ok()) return status;
    groups_per_row_ = in.cols / out_.group;
    places_ = PlacesOf(in.rows, in.cols, out_.group, params_.tiling);
    Gate();
    if (absl::Status status = ChooseFactor(in); !status.ok()) return status;
    Resize();
    for (size_t tile = 0; tile < places_.size(); ++tile) OneTile(places_[tile]);
    out_.stats.mean_rounds = static_cast<double>(rounds_) / static_cast<double>(places_.size());
    if (upstream()) CodeUpstream();
    if (absl::Status status = Store(); !status.ok()) return status;
    if (!upstream()) CodeDefault();
    Dequantize();
    Write(in.dtype);
    SumErrors();
    SumCloseRows();
    return out_;
  }

 private:
  bool upstream() const { return params_.profile == Profile::kUpstream; }
  bool balances() const { return Balances(params_.method) && MakesColumnScale(params_); }
  Rounding rounding() const { return RoundingOf(params_.method); }
  bool is_hadamard() const { return rounding() == Rounding::kHadamard; }
  bool is_square() const { return params_.tiling == Tiling::k2D; }
  size_t E(int64_t i, int64_t j) const { return static_cast<size_t>(i * groups_per_row_ + j); }
  size_t At(int64_t i, int64_t k) const { return static_cast<size_t>(i * out_.cols + k); }
  size_t ColumnAt(int64_t i, int64_t k) const {
    return static_cast<size_t>(is_square() ? i / out_.group * out_.cols + k : k);
  }
  float W(int64_t i, int64_t k) const { return out_.w[At(i, k)]; }

  absl::Span<std::byte> Plane(PlaneKind kind) const {
    for (size_t p = 0; p < specs_.size(); ++p) {
      if (specs_[p].kind == kind) return planes_[p];
    }
    return {};
  }

  void Resize() {
    const size_t groups = static_cast<size_t>(out_.rows * groups_per_row_);
    const int64_t bands = is_square() ? out_.rows / out_.group : 1;
    out_.t.resize(static_cast<size_t>(bands * out_.cols));
    out_.scale.resize(groups);
    out_.zero.resize(groups);
    exact_.resize(groups);
    out_.codes.resize(out_.w.size());
  }

  // The single zero of the symmetric layout has no place for per-group zeros, so a closed gate
  // leaves `symmetric` as it is.
  void Gate() {
    const bool has_book = rounding() == Rounding::kNf4 || rounding() == Rounding::kNf3;
    if (!upstream() || !Balances(params_.method) || has_book) return;
    out_.stats.kurtosis = KurtosisOf(out_.w, out_.rows, out_.cols);
    if (!options_.kurtosis_gate || !(out_.stats.kurtosis > 5)) return;
    out_.stats.kurtosis_gate_closed = true;
    params_.method = Method::kRtn;
  }

  TileBalance BalanceOf(const Place& place) const {
    const std::vector<float> tile =
        CutTile(out_.w, out_.cols, place.first_row, place.rows, place.first_col, out_.group);
    return balances() ? ReferenceBalance(tile, place.rows, out_.group, params_, options_)
                      : ReferenceUnbalanced(tile, place.rows, out_.group, params_);
  }

  absl::Status ChooseFactor(const MatrixView& in) {
    if (!NeedsActivations(params_.method)) return absl::OkStatus();
    std::vector<TileBalance> balances;
    for (const Place& place : PlacesOf(out_.rows, out_.cols, out_.group, Tiling::k1D))
      balances.push_back(BalanceOf(place));
    absl::StatusOr<std::vector<float>> factor =
        ReferenceColumnFactor(in, out_.w, params_, out_.group, balances);
    if (!factor.ok()) return factor.status();
    out_.factor = *std::move(factor);
    return absl::OkStatus();
  }

  void OneTile(const Place& place) {
    TileBalance balance = BalanceOf(place);
    for (size_t k = 0; k < balance.t.size() && !out_.factor.empty(); ++k) {
      const float c = out_.factor[static_cast<size_t>(place.first_col) + k];
      balance.t[k] = Clamp(balance.t[k] / c, PowerOfTwo(-14), PowerOfTwo(15));
    }
    for (int k = 0; k < out_.group; ++k)
      out_.t[ColumnAt(place.first_row, place.first_col + k)] = balance.t[static_cast<size_t>(k)];
    FitTile(place, balance);
    TensorStats& stats = out_.stats;
    stats.imbalance_before = std::max<double>(stats.imbalance_before, balance.imbalance_before);
    stats.imbalance_after = std::max<double>(stats.imbalance_after, balance.imbalance_after);
    rounds_ += balance.rounds;
    ++stats.tiles_by_rounds[static_cast<size_t>(balance.rounds)];
    out_.balances.push_back(balance);
  }

  // y of row `i` in the tile at `place`.
  std::vector<float> BalancedGroup(const Place& place, const TileBalance& balance,
                                   int64_t i) const {
    std::vector<float> y;
    for (int k = 0; k < out_.group; ++k) {
      const float w = W(place.first_row + i, place.first_col + k);
      const float t = balance.t[static_cast<size_t>(k)];
      if (upstream()) {
        y.push_back(w * Rcp(t) * Rcp(balance.r[static_cast<size_t>(i)]));
      } else {
        const int exponent = ScalesGroups(params_) ? 0 : balance.exponent;
        y.push_back(w * (Rcp(NearestStored(t, params_.aux)) * PowerOfTwo(exponent)));
      }
    }
    return is_hadamard() ? Hadamard(y) : y;
  }

  // Multiplies the group by its own 2^p; p.
  static int ScaleGroup(std::vector<float>& y) {
    float a = 0;
    for (const float value : y) a = std::max(a, std::abs(value));
    const int exponent = a > 0 ? std::clamp(-std::ilogb(a), -126, 126) : 0;
    for (float& value : y) value *= PowerOfTwo(exponent);
    return exponent;
  }

  void FitTile(const Place& place, const TileBalance& balance) {
    std::vector<std::vector<float>> ys;
    for (int64_t i = 0; i < place.rows; ++i) ys.push_back(BalancedGroup(place, balance, i));
    HqqTile hqq;
    if (rounding() == Rounding::kHqq) hqq = HqqFit(ys, params_);
    for (int64_t i = 0; i < place.rows; ++i) {
      const size_t at = static_cast<size_t>(i),
                   e = E(place.first_row + i, place.first_col / out_.group);
      const int exponent =
          ScalesGroups(params_) ? ScaleGroup(ys[at]) : balance.exponent;
      ReferenceGroup fit;
      if (rounding() == Rounding::kHqq) {
        fit = hqq.groups[at];
        exact_[e] = {hqq.inverse[at], hqq.code_zero[at]};
      } else {
        fit = exact_[e] =
            upstream() ? UpstreamFit(ys[at], params_) : ReferenceFit(ys[at], params_, params_.aux);
      }
      const float factor = upstream() ? balance.r[at] : PowerOfTwo(-exponent);
      out_.scale[e] = WithoutNegativeZero(fit.scale) * factor;
      out_.zero[e] = WithoutNegativeZero(fit.zero);
    }
  }

  void CodeUpstream() {
    for (size_t tile = 0; tile < places_.size(); ++tile) {
      const Place& place = places_[tile];
      for (int64_t i = 0; i < place.rows; ++i) {
        const std::vector<float> y = BalancedGroup(place, out_.balances[tile], i);
        for (int k = 0; k < out_.group; ++k) {
          const size_t e = E(place.first_row + i, place.first_col / out_.group);
          out_.codes[At(place.first_row + i, place.first_col + k)] =
              CodeOfUpstream(y[static_cast<size_t>(k)], exact_[e]);
        }
      }
    }
  }

  int CodeOfUpstream(float y, const ReferenceGroup& group) const {
    if (rounding() != Rounding::kHqq) return UpstreamCode(y, group, params_);
    return static_cast<int>(Rne(Clamp(y * group.scale + group.zero, 0.0f, TopCode(params_.bits))));
  }

  void CentreExponents() {
    if (!HoldsColumnScale(params_.layout) || !params_.own_column_scale || is_hadamard()) return;
    float largest = 0, largest_t = 0;
    for (const float s : out_.stored_scale) largest = std::max(largest, std::abs(s));
    for (const float t : out_.stored_t) largest_t = std::max(largest_t, t);
    if (largest == 0) return;
    const int e = FloorHalf(std::ilogb(largest) - std::ilogb(largest_t));
    for (float& t : out_.stored_t) t *= PowerOfTwo(e);
    for (float& s : out_.stored_scale) s *= PowerOfTwo(-e);
  }

  // Where group e is stored.
  size_t StorageIndex(size_t e) const {
    if (!is_square()) return e;
    const size_t per_row = static_cast<size_t>(groups_per_row_),
                 g = static_cast<size_t>(out_.group);
    const size_t i = e / per_row, j = e % per_row;
    return (i / g * per_row + j) * g + i % g;
  }
  std::vector<float> InStorageOrder(const std::vector<float>& values) const {
    std::vector<float> stored(values.size());
    for (size_t e = 0; e < values.size(); ++e) stored[StorageIndex(e)] = values[e];
    return stored;
  }
  std::vector<float> InRowOrder(const std::vector<float>& stored) const {
    std::vector<float> values(stored.size());
    for (size_t e = 0; e < values.size(); ++e) values[e] = stored[StorageIndex(e)];
    return values;
  }

  absl::Status Store() {
    out_.stored_t = out_.t;
    out_.stored_scale = out_.scale;
    if (!upstream()) {
      for (float& t : out_.stored_t) t = NearestStored(t, params_.aux);
      CentreExponents();
    }
    std::vector<float> scale = InStorageOrder(out_.stored_scale), zero = InStorageOrder(out_.zero);
    const absl::Status status =
        HoldsColumnScale(params_.layout) ? StoreNative(scale, zero) : StoreForeign(scale, zero);
    out_.stored_scale = InRowOrder(scale);
    out_.stored_zero = InRowOrder(zero);
    return status;
  }

  absl::Status StoreNative(std::vector<float>& scale, std::vector<float>& zero) {
    absl::Status status =
        StoreRounded(out_.stored_t, params_.aux, "column scale", Plane(PlaneKind::kColumnScale));
    if (!status.ok()) return status;
    const bool u8 = params_.aux == AuxStorage::kU8;
    status = u8 ? StoreAux(scale, 32, params_.profile,
                           {Plane(PlaneKind::kScaleCode), Plane(PlaneKind::kScaleStep),
                            Plane(PlaneKind::kScaleMin)})
                : StoreRounded(scale, params_.aux, "scale", Plane(PlaneKind::kScale));
    if (!status.ok()) return status;
    if (!u8 || params_.symmetric)
      return StoreRounded(zero, params_.aux, "zero", Plane(PlaneKind::kZero));
    return StoreAux(
        zero, zero.size(), params_.profile,
        {Plane(PlaneKind::kZeroCode), Plane(PlaneKind::kZeroStep), Plane(PlaneKind::kZeroMin)});
  }

  PackShape Shape() const { return {params_, out_.rows, out_.cols, out_.group}; }

  absl::Status StoreForeign(std::vector<float>& scale, std::vector<float>& zero) {
    const size_t width = params_.aux == AuxStorage::kF32 ? 4 : 2;
    std::vector<std::byte> bits(width * scale.size());
    absl::Status status = StoreRounded(scale, params_.aux, "scale", absl::MakeSpan(bits));
    if (!status.ok()) return status;
    for (const float s : scale) scale_bits_.push_back(F16Bits(s));
    if (params_.layout == Layout::kGgufQ4_1) return StoreMinima(scale, zero);
    if (Plane(PlaneKind::kScale).empty()) return absl::OkStatus();
    PlaceGroupValues(Shape(), bits.data(), width, Plane(PlaneKind::kScale));
    if (Plane(PlaneKind::kZero).empty()) return absl::OkStatus();
    if (params_.layout == Layout::kHqq)
      return StoreRounded(zero, params_.aux, "zero", Plane(PlaneKind::kZero));
    PackZeros(Shape(), zero.data(), Plane(PlaneKind::kZero));
    return absl::OkStatus();
  }

  absl::Status StoreMinima(const std::vector<float>& scale, std::vector<float>& zero) {
    std::vector<float> minimum;
    for (size_t e = 0; e < zero.size(); ++e) minimum.push_back(-zero[e] * scale[e]);
    absl::Status status = StoreRounded(minimum, AuxStorage::kF16, "minimum", {});
    if (!status.ok()) return status;
    for (size_t e = 0; e < zero.size(); ++e) {
      minimum_bits_.push_back(F16Bits(minimum[e]));
      zero[e] = WithoutNegativeZero(-minimum[e] * Rcp(scale[e]));
    }
    return absl::OkStatus();
  }

  // Final codes of one group of profile default.
  void CodeDefault() {
    for (int64_t i = 0; i < out_.rows; ++i) {
      for (int64_t j = 0; j < groups_per_row_; ++j) {
        std::vector<float> y;
        for (int64_t k = j * out_.group; k < (j + 1) * out_.group; ++k)
          y.push_back(W(i, k) * Rcp(out_.stored_t[ColumnAt(i, k)]));
        if (is_hadamard()) y = Hadamard(y);
        for (int k = 0; k < out_.group; ++k) {
          const float v = std::fma(y[static_cast<size_t>(k)], Rcp(out_.stored_scale[E(i, j)]),
                                   out_.stored_zero[E(i, j)]);
          out_.codes[At(i, j * out_.group + k)] = NearestCode(v, rounding(), params_.bits);
        }
      }
    }
  }

  // w' of section 7.
  void Dequantize() {
    out_.dequantized.resize(out_.w.size());
    for (int64_t i = 0; i < out_.rows; ++i) {
      for (int64_t j = 0; j < groups_per_row_; ++j) {
        std::vector<float> values;
        for (int64_t k = j * out_.group; k < (j + 1) * out_.group; ++k) {
          const float level = LevelOf(out_.codes[At(i, k)], rounding());
          values.push_back((level - out_.stored_zero[E(i, j)]) * out_.stored_scale[E(i, j)]);
          if (!is_hadamard()) values.back() *= out_.stored_t[ColumnAt(i, k)];
        }
        if (is_hadamard()) values = Hadamard(values);
        std::copy(values.begin(), values.end(),
                  out_.dequantized.begin() + static_cast<std::ptrdiff_t>(At(i, j * out_.group)));
      }
    }
  }

  void Write(WeightDtype dtype) {
    if (params_.layout == Layout::kSinq || params_.layout == Layout::kHqq) {
      return PackNative(out_.codes, params_.bits, out_.rows * groups_per_row_, out_.group,
                        Plane(PlaneKind::kCodes));
    }
    if (params_.layout == Layout::kDense) return WriteDense(dtype);
    const std::vector<uint8_t> codes(out_.codes.begin(), out_.codes.end());
    const absl::Span<std::byte> blocks = Plane(PlaneKind::kBlocks);
    if (blocks.empty()) {
      PackCodes(Shape(), codes.data(), 0, out_.rows, Plane(PlaneKind::kCodes));
    } else {
      PackBlocks(Shape(), codes.data(), scale_bits_.data(), minimum_bits_.data(), 0, out_.rows,
                 blocks);
    }
  }

  void WriteDense(WeightDtype dtype) {
    const AuxStorage storage = dtype == WeightDtype::kF32   ? AuxStorage::kF32
                               : dtype == WeightDtype::kF16 ? AuxStorage::kF16
                                                            : AuxStorage::kBf16;
    float largest = std::numeric_limits<float>::max();
    if (storage == AuxStorage::kF16) largest = 65504.0f;
    if (storage == AuxStorage::kBf16) largest = std::ldexp(255.0f, 120);
    std::vector<float> values = out_.dequantized;
    for (float& value : values) value = Clamp(value, -largest, largest);
    // Nothing overflows after the clamp.
    StoreRounded(values, storage, "weight", Plane(PlaneKind::kDense)).IgnoreError();
  }

  void SumErrors() {
    double error = 0, power = 0, block_error = 0, block_power = 0;
    for (int64_t i = 0; i < out_.rows; ++i) {
      for (int64_t j = 0; j < groups_per_row_; ++j) {
        const size_t first = At(i, j * out_.group);
        block_error += static_cast<double>(LaneSum(out_.group, [&](float a, int k) {
          const size_t at = first + static_cast<size_t>(k);
          const float d = out_.dequantized[at] - out_.w[at];
          return std::fma(d, d, a);
        }));
        block_power += static_cast<double>(LaneSum(out_.group, [&](float a, int k) {
          const float w = out_.w[first + static_cast<size_t>(k)];
          return std::fma(w, w, a);
        }));
      }
      if (i % 32 != 31 && i + 1 != out_.rows) continue;
      error += block_error;
      power += block_power;
      block_error = block_power = 0;
    }
    out_.stats.relative_error = power == 0 ? 0 : std::sqrt(error / power);
  }

  // Sum over one group of term(a, at), the accumulator a and the place of the value.
  template <class Term>
  double GroupSum(int64_t i, int64_t j, const Term& term) const {
    const size_t first = At(i, j * out_.group);
    return static_cast<double>(LaneSum(
        out_.group, [&](float a, int k) { return term(a, first + static_cast<size_t>(k)); }));
  }

  float Miss(size_t at) const { return out_.dequantized[at] - out_.w[at]; }

  // What is coded, and what the code stands for.
  std::pair<float, float> Balanced(int64_t i, int64_t j, size_t at) const {
    if (is_hadamard()) return {out_.w[at], out_.dequantized[at]};
    const size_t column = ColumnAt(i, static_cast<int64_t>(at) % out_.cols);
    const float t = upstream() ? out_.t[column] : out_.stored_t[column];
    const float level = LevelOf(out_.codes[at], rounding());
    return {out_.w[at] * Rcp(t),
            (level - out_.stored_zero[E(i, j)]) * out_.stored_scale[E(i, j)]};
  }

  // Over every eighth row: term(i, j, a, at) as for GroupSum.
  template <class Term>
  double CloseSum(const Term& term) const {
    double sum = 0, block = 0;
    for (int64_t i = 0; i < out_.rows; ++i) {
      for (int64_t j = 0; j < groups_per_row_ && i % 8 == 0; ++j)
        block += GroupSum(i, j, [&](float a, size_t at) { return term(i, j, a, at); });
      if (i % 32 != 31 && i != out_.rows - 1) continue;
      sum += block;
      block = 0;
    }
    return sum;
  }

  void SumCloseRows() {
    const double error = CloseSum([&](int64_t, int64_t, float a, size_t at) {
      return std::fma(Miss(at), Miss(at), a);
    });
    const double power = CloseSum([&](int64_t, int64_t, float a, size_t at) {
      return std::fma(out_.w[at], out_.w[at], a);
    });
    const double overlap = CloseSum([&](int64_t, int64_t, float a, size_t at) {
      return std::fma(Miss(at), out_.w[at], a);
    });
    const double balanced_error = CloseSum([&](int64_t i, int64_t j, float a, size_t at) {
      const auto [y, h] = Balanced(i, j, at);
      return std::fma(h - y, h - y, a);
    });
    const double balanced_power = CloseSum([&](int64_t i, int64_t j, float a, size_t at) {
      const float y = Balanced(i, j, at).first;
      return std::fma(y, y, a);
    });
    out_.stats.balanced_error =
        balanced_power == 0 ? 0 : std::sqrt(balanced_error / balanced_power);
    const double product = power * (power + 2 * overlap + error);
    out_.stats.cosine = product > 0 ? (power + overlap) / std::sqrt(product) : 0;
    float largest = 0;
    for (size_t at = 0; at < out_.w.size(); ++at) largest = std::max(largest, std::abs(Miss(at)));
    out_.stats.max_abs_error = largest;
  }

  QuantParams params_;  // aux is effective; the gate may change the method
  const ReferenceOptions options_;
  const absl::Span<const PlaneSpec> specs_;
  const absl::Span<const absl::Span<std::byte>> planes_;
  int64_t groups_per_row_ = 0, rounds_ = 0;
  std::vector<Place> places_;
  std::vector<ReferenceGroup> exact_;  // upstream: what the codes are made with
  std::vector<uint16_t> scale_bits_, minimum_bits_;
  ReferenceTensor out_;
};

}  // namespace

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
  const absl::StatusOr<std::vector<PlaneSpec>> specs =
      PlanesOf(params, in.rows, in.cols, DenseDtypeOf(in.dtype));
  if (!specs.ok()) return specs.status();
  return Work(params, options, *specs, planes).Run(in);
}

}  // namespace sinq::kernels
