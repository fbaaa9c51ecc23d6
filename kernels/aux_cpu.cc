#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/aux.h"
#include "kernels/half.h"

namespace sinq::kernels {
namespace {

constexpr float kF16Max = 65504.0f;

void PutF16(float value, std::byte* out, size_t index) {
  const uint16_t bits = FloatToF16(value);
  std::memcpy(out + 2 * index, &bits, sizeof bits);
}

absl::Status TooLarge(const char* what, float value) {
  return absl::InvalidArgumentError(
      absl::StrCat("a ", what, " of ", value,
                   " does not fit F16 (largest 65504); exclude this tensor or rescale the model"));
}

struct Grid {
  float minimum = 0, step = 0;                // what the codes are made with
  float stored_minimum = 0, stored_step = 0;  // what F16 holds
};

Grid MakeGrid(float low, float high, Profile profile) {
  if (profile == Profile::kUpstream) {
    const float step = (high - low) / 255.0f;
    return {low, step, RoundToF16(low), RoundToF16(step)};
  }
  const float minimum = F16Below(low);
  const float step = F16Above((high - minimum) / 255.0f);
  return {minimum, step, minimum, step};
}

uint8_t CodeOf(float value, const Grid& grid) {
  if (grid.step == 0) return 0;
  return static_cast<uint8_t>(
      std::clamp(std::nearbyint((value - grid.minimum) / grid.step), 0.0f, 255.0f));
}

}  // namespace

absl::Status QuantizeAux(absl::Span<float> values, size_t strands, Profile profile, uint8_t* codes,
                         std::byte* steps, std::byte* minima) {
  const size_t columns = values.size() / strands;
  for (size_t c = 0; c < columns; ++c) {
    float low = values[c], high = low;
    for (size_t i = 1; i < strands; ++i) {
      low = std::min(low, values[i * columns + c]);
      high = std::max(high, values[i * columns + c]);
    }
    if (!(low >= -kF16Max)) return TooLarge("scale or zero", low);
    if (!(high <= kF16Max)) return TooLarge("scale or zero", high);
    const Grid grid = MakeGrid(low, high, profile);
    PutF16(grid.step, steps, c);
    PutF16(grid.minimum, minima, c);
    for (size_t i = 0; i < strands; ++i) {
      float& value = values[i * columns + c];
      codes[i * columns + c] = CodeOf(value, grid);
      value = RoundToF16(RoundToF16(static_cast<float>(codes[i * columns + c]) * grid.stored_step) +
                         grid.stored_minimum);
    }
  }
  return absl::OkStatus();
}

absl::Status StoreF16(absl::Span<float> values, const char* what, std::byte* out) {
  for (size_t i = 0; i < values.size(); ++i) {
    const float rounded = RoundToF16(values[i]);
    if (!std::isfinite(rounded)) return TooLarge(what, values[i]);
    PutF16(rounded, out, i);
    values[i] = rounded;
  }
  return absl::OkStatus();
}

}  // namespace sinq::kernels
