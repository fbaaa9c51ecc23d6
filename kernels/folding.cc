#include "kernels/folding.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/deterministic_math.h"
#include "kernels/element.h"
#include "kernels/half.h"

namespace sinq::kernels {
namespace {

constexpr int kMaxColumnCode = 127;

double Plain(VectorFold fold, double w) { return fold == VectorFold::kTimes ? w : 1.0 + w; }

float RoundTo(WeightDtype dtype, float value) {
  if (dtype == WeightDtype::kF16) return RoundToF16(value);
  return dtype == WeightDtype::kBf16 ? RoundToBf16(value) : value;
}

bool IsFiniteIn(WeightDtype dtype, float value) {
  return std::isfinite(value) && std::isfinite(RoundTo(dtype, value));
}

// One row with its factors.
void LoadRow(const MatrixView& in, int64_t row, absl::Span<float> values) {
  const size_t columns = values.size();
  const size_t begin = static_cast<size_t>(row) * columns;
  const float row_factor = in.row_factor.empty() ? 1.0f : in.row_factor[static_cast<size_t>(row)];
  if (in.dtype == WeightDtype::kBf16) {
    for (size_t k = 0; k < columns; ++k)
      values[k] = LoadElement(in.data, begin + k, WeightDtype::kBf16) * row_factor;
  } else if (in.dtype == WeightDtype::kF32) {
    for (size_t k = 0; k < columns; ++k)
      values[k] = LoadElement(in.data, begin + k, WeightDtype::kF32) * row_factor;
  } else {
    for (size_t k = 0; k < columns; ++k)
      values[k] = UnfoldedElementAt(in, row, static_cast<int64_t>(k)) * row_factor;
  }
  if (in.column_factor.empty()) return;
  for (size_t k = 0; k < columns; ++k) values[k] *= in.column_factor[k];
}

void StoreRow(const std::vector<float>& values, int64_t row, std::byte* out, WeightDtype dtype) {
  const size_t begin = static_cast<size_t>(row) * values.size();
  for (size_t k = 0; k < values.size(); ++k) StoreElement(values[k], out, begin + k, dtype);
}

absl::Status NotFinite(int64_t row, const std::vector<float>& values, WeightDtype dtype) {
  size_t column = 0;
  while (IsFiniteIn(dtype, values[column])) ++column;
  return absl::InvalidArgumentError(
      absl::StrCat("element [", row, ", ", column, "] is not finite once folded (its dtype does ",
                   "not hold the product; fold \"off\" leaves it as it is)"));
}

}  // namespace

void ColumnCodes(absl::Span<const float> t, int group_size, absl::Span<int8_t> codes) {
  const size_t group = static_cast<size_t>(group_size);
  std::vector<double> logs(group);
  for (size_t begin = 0; begin < t.size(); begin += group) {
    double sum = 0;
    for (size_t i = 0; i < group; ++i) {
      logs[i] = Log2(t[begin + i]);
      sum += logs[i];
    }
    const double mean = sum / static_cast<double>(group);
    for (size_t i = 0; i < group; ++i) {
      const double code = std::nearbyint(kColumnCodesPerOctave * (logs[i] - mean));
      codes[begin + i] = static_cast<int8_t>(
          std::clamp(code, -static_cast<double>(kMaxColumnCode), double{kMaxColumnCode}));
    }
  }
}

float SharedScale(int64_t sum, int64_t count, bool power_of_two) {
  const double log2 = static_cast<double>(sum) /
                      (static_cast<double>(count) * static_cast<double>(kColumnCodesPerOctave));
  return static_cast<float>(Exp2(power_of_two ? std::nearbyint(log2) : log2));
}

FoldedElement FoldElement(VectorFold fold, float w, float t, WeightDtype dtype) {
  const FoldedElement unchanged{w, 1.0f};
  const double before = Plain(fold, w);
  if (before == 0) return unchanged;
  const double product = before * static_cast<double>(t);
  const float value = RoundTo(
      dtype, static_cast<float>(fold == VectorFold::kTimes ? product : product - 1.0));
  if (!std::isfinite(value)) return unchanged;
  const float scale = static_cast<float>(Plain(fold, value) / before);
  if (!(scale >= 0.5f * t && scale <= 2.0f * t)) return unchanged;
  return {value, scale};
}

float LoadElement(const std::byte* data, size_t at, WeightDtype dtype) {
  return ElementAt({data, 1, static_cast<int64_t>(at) + 1, dtype, {}}, 0, static_cast<int64_t>(at));
}

void StoreElement(float value, std::byte* data, size_t at, WeightDtype dtype) {
  if (dtype == WeightDtype::kF32) {
    std::memcpy(data + 4 * at, &value, sizeof value);
    return;
  }
  const uint16_t bits =
      dtype == WeightDtype::kF16
          ? FloatToF16(value)
          : static_cast<uint16_t>(std::bit_cast<uint32_t>(RoundToBf16(value)) >> 16);
  std::memcpy(data + 2 * at, &bits, sizeof bits);
}

absl::Status FoldMatrix(const MatrixView& in, WeightDtype dtype, absl::Span<std::byte> out) {
  std::vector<float> values(static_cast<size_t>(in.cols));
  for (int64_t row = 0; row < in.rows; ++row) {
    LoadRow(in, row, absl::MakeSpan(values));
    // Kept apart from the stores, so that both loops vectorize.
    bool finite = true;
    for (const float value : values) finite &= IsFiniteIn(dtype, value);
    if (!finite) return NotFinite(row, values, dtype);
    StoreRow(values, row, out.data(), dtype);
  }
  return absl::OkStatus();
}

}  // namespace sinq::kernels
