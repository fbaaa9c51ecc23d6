#include "tests/kernels/test_matrices.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <random>

#include "absl/strings/str_cat.h"
#include "kernels/half.h"

namespace sinq::kernels {
namespace {

template <class T>
void Append(std::vector<std::byte>& bytes, T value) {
  const auto* raw = reinterpret_cast<const std::byte*>(&value);
  bytes.insert(bytes.end(), raw, raw + sizeof value);
}

TestMatrix Fp8(int64_t rows, int64_t cols, uint32_t seed) {
  std::mt19937 random(seed);
  TestMatrix m{rows, cols, WeightDtype::kF8E4M3, {}, {}};
  for (int64_t i = 0; i < rows * cols; ++i) {
    uint8_t code = static_cast<uint8_t>(random());
    if ((code & 0x7f) == 0x7f) code = 0x38;
    m.bytes.push_back(static_cast<std::byte>(code));
  }
  const int64_t blocks = ((rows + 127) / 128) * ((cols + 127) / 128);
  for (int64_t b = 0; b < blocks; ++b)
    m.block_scales.push_back(1e-4f * (1.0f + static_cast<float>(random() % 1000) / 333.0f));
  return m;
}

}  // namespace

MatrixView TestMatrix::View() const {
  MatrixView view{bytes.data(), rows, cols, dtype, block_scales, row_factor, column_factor};
  if (!samples.empty() || !second_moments.empty()) view.activations = &activations;
  return view;
}

TestMatrix StoreMatrix(int64_t rows, int64_t cols, WeightDtype dtype,
                       const std::vector<float>& values) {
  TestMatrix m{rows, cols, dtype, {}, {}};
  for (const float value : values) {
    if (dtype == WeightDtype::kF32) Append(m.bytes, value);
    if (dtype == WeightDtype::kF16) Append(m.bytes, FloatToF16(value));
    if (dtype == WeightDtype::kBf16)
      Append(m.bytes, static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16));
  }
  return m;
}

std::vector<float> LayerLikeValues(int64_t rows, int64_t cols, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> col_spread, values;
  for (int64_t k = 0; k < cols; ++k) col_spread.push_back(0.02f * std::exp(0.7f * normal(random)));
  for (int64_t i = 0; i < rows; ++i) {
    const float row_spread = std::exp(0.5f * normal(random));
    for (int64_t k = 0; k < cols; ++k) {
      const float outlier = random() % 97 == 0 ? 6.0f : 1.0f;
      values.push_back(normal(random) * row_spread * col_spread[static_cast<size_t>(k)] * outlier);
    }
  }
  return values;
}

TestMatrix MakeTestMatrix(int64_t rows, int64_t cols, WeightDtype dtype, uint32_t seed) {
  if (dtype == WeightDtype::kF8E4M3) return Fp8(rows, cols, seed);
  return StoreMatrix(rows, cols, dtype, LayerLikeValues(rows, cols, seed));
}

void FoldScales(TestMatrix& m, bool rows, bool columns, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  const auto factor = [&] { return std::exp2(std::clamp(normal(random), -2.0f, 2.0f)); };
  for (int64_t i = 0; rows && i < m.rows; ++i) m.row_factor.push_back(factor());
  for (int64_t k = 0; columns && k < m.cols; ++k) m.column_factor.push_back(factor());
}

void GiveSamples(TestMatrix& m, int64_t tokens, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> spread;
  for (int64_t k = 0; k < m.cols; ++k) spread.push_back(std::exp(0.8f * normal(random)));
  for (int64_t i = 0; i < tokens * m.cols; ++i)
    m.samples.push_back(normal(random) * spread[static_cast<size_t>(i % m.cols)]);
  m.activations = {m.samples, tokens, {}};
}

void GiveMoments(TestMatrix& m, uint32_t seed) {
  constexpr int64_t kTokens = 9;
  GiveSamples(m, kTokens, seed);
  const auto sample = [&](int64_t token, int64_t k) {
    return m.samples[static_cast<size_t>(token * m.cols + k)];
  };
  for (int64_t a = 0; a < m.cols; ++a) {
    for (int64_t b = 0; b < m.cols; ++b) {
      float sum = 0;
      for (int64_t token = 0; token < kTokens; ++token) sum += sample(token, a) * sample(token, b);
      m.second_moments.push_back(sum / kTokens);
    }
  }
  m.samples.clear();
  m.activations = {{}, 0, m.second_moments};
}

std::vector<SpecialMatrix> SpecialMatrices() {
  const std::vector<float> plain = LayerLikeValues(64, 128, 77);
  std::vector<SpecialMatrix> all;
  const auto made = [&](const char* name, auto&& change) {
    SpecialMatrix special{name, plain};
    for (size_t i = 0; i < plain.size(); ++i) special.values[i] = change(i, plain[i]);
    all.push_back(special);
  };
  made("zeros", [](size_t, float) { return 0.0f; });
  made("negative zeros", [](size_t i, float) { return i % 3 ? -0.0f : 0.0f; });
  made("zero rows", [](size_t i, float w) { return i / 128 % 4 == 1 ? 0.0f : w; });
  made("zero and negative zero in a one-sided row",
       [](size_t i, float w) { return i % 5 ? std::abs(w) : (i % 2 ? -0.0f : 0.0f); });
  made("zero columns", [](size_t i, float w) { return i % 7 == 1 ? 0.0f : w; });
  made("constant", [](size_t, float) { return 0.0625f; });
  made("negative constant", [](size_t, float) { return -3.0f; });
  made("constant groups", [](size_t i, float w) { return i / 128 % 5 == 2 ? 0.3f : w; });
  made("one-sided", [](size_t, float w) { return std::abs(w) + 0.5f; });
  made("one-sided far", [](size_t i, float w) { return i / 128 == 3 ? w + 30.0f : w; });
  made("negative one-sided", [](size_t, float w) { return -std::abs(w) - 0.01f; });
  made("outlier", [](size_t i, float w) { return i == 777 ? 50.0f : w; });
  made("single non-zero", [](size_t i, float) { return i == 4000 ? 1.5f : 0.0f; });
  made("large", [](size_t, float w) { return w * 1e5f; });
  made("tiny", [](size_t, float w) { return w * 1e-6f; });
  made("1e30", [](size_t, float w) { return w * 1e30f; });
  made("1e-30", [](size_t, float w) { return w * 1e-30f; });
  made("denormal", [](size_t, float w) { return w * 1e-38f; });
  made("smallest denormals", [](size_t i, float) { return static_cast<float>(i % 5) * 0x1p-149f; });
  made("3e38", [](size_t i, float w) { return i % 2 ? 3e38f : w; });
  made("mixed scales", [](size_t i, float w) { return i % 2 ? w * 1e15f : w * 1e-15f; });
  return all;
}

std::string DescribeCase(const MatrixView& in, const QuantParams& p) {
  return absl::StrCat(in.rows, "x", in.cols, " dtype ", static_cast<int>(in.dtype), " bits ",
                      p.bits, " group ", p.group_size, p.symmetric ? " symmetric " : " asymmetric ",
                      AuxName(p.aux), " ", ProfileName(p.profile), " ", MethodName(p.method), " ",
                      TilingName(p.tiling), " layout ", static_cast<int>(p.layout),
                      p.own_column_scale ? "" : " no column scale");
}

}  // namespace sinq::kernels
