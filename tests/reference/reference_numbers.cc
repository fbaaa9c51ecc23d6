#include "tests/reference/reference_numbers.h"

#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"

namespace sinq::kernels {
namespace {

constexpr float kF16Max = 65504.0f;

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

float ReadUnfolded(const MatrixView& in, int64_t i, int64_t k) {
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

float ReadElement(const MatrixView& in, int64_t i, int64_t k) {
  float value = ReadUnfolded(in, i, k);
  if (!in.row_factor.empty()) value *= in.row_factor[static_cast<size_t>(i)];
  if (!in.column_factor.empty()) value *= in.column_factor[static_cast<size_t>(k)];
  return value;
}

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

float NearestBf16(float x) {
  if (x == 0 || !std::isfinite(x)) return x;
  const int step = std::max(std::ilogb(x), -126) - 7;
  // In fp64, where neither the scaling nor the largest values lose anything.
  const double rounded =
      std::ldexp(std::nearbyint(std::ldexp(static_cast<double>(x), -step)), step);
  return static_cast<float>(rounded);
}

float NearestStored(float x, AuxStorage aux) {
  if (aux == AuxStorage::kF32) return x;
  return aux == AuxStorage::kBf16 ? NearestBf16(x) : NearestF16(x);
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

std::vector<float> CutTile(const std::vector<float>& w, int64_t cols, int64_t first_row,
                           int64_t rows, int64_t first_col, int group) {
  std::vector<float> tile;
  for (int64_t i = first_row; i < first_row + rows; ++i) {
    for (int k = 0; k < group; ++k)
      tile.push_back(w[static_cast<size_t>(i * cols + first_col + k)]);
  }
  return tile;
}

}  // namespace sinq::kernels
