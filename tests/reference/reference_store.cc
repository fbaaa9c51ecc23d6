#include "tests/reference/reference_store.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/layout.h"
#include "tests/reference/reference_numbers.h"

namespace sinq::kernels {
namespace {

constexpr float kF16Max = 65504.0f;

void Put16(float value, absl::Span<std::byte> out, size_t index) {
  const uint16_t bits = F16Bits(value);
  std::memcpy(out.data() + 2 * index, &bits, sizeof bits);
}

void PutStored(float value, AuxStorage aux, absl::Span<std::byte> out, size_t index) {
  if (aux == AuxStorage::kU8 || aux == AuxStorage::kF16) return Put16(value, out, index);
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (aux == AuxStorage::kF32) {
    std::memcpy(out.data() + 4 * index, &bits, 4);
    return;
  }
  bits >>= 16;
  std::memcpy(out.data() + 2 * index, &bits, 2);
}

absl::Status TooLarge(const char* what) {
  return absl::InvalidArgumentError(absl::StrCat("a ", what, " does not fit its storage"));
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

}  // namespace

uint16_t F16Bits(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float x = std::abs(value);
  if (x == 0) return sign;
  const int exponent = std::ilogb(x);
  if (exponent < -14) return sign | static_cast<uint16_t>(std::ldexp(x, 24));
  return sign | static_cast<uint16_t>(((exponent + 15) << 10) +
                                      static_cast<int>(std::ldexp(x, 10 - exponent)) - 1024);
}

absl::Status StoreRounded(std::vector<float>& values, AuxStorage aux, const char* what,
                          absl::Span<std::byte> out) {
  const size_t width = aux == AuxStorage::kF32 ? 4 : 2;
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = WithoutNegativeZero(NearestStored(values[i], aux));
    if (!std::isfinite(values[i])) return TooLarge(what);
    if (width * i < out.size()) PutStored(values[i], aux, out, i);
  }
  return absl::OkStatus();
}

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
    if (!out.steps.empty()) Put16(grid.stored_step, out.steps, c);
    if (!out.minima.empty()) Put16(grid.stored_minimum, out.minima, c);
    for (size_t i = 0; i < strands; ++i) {
      float& v = values[i * columns + c];
      const float code =
          grid.step == 0 ? 0.0f : Clamp(Rne((v - grid.minimum) / grid.step), 0.0f, 255.0f);
      if (!out.codes.empty()) out.codes[i * columns + c] = static_cast<std::byte>(code);
      v = NearestF16(NearestF16(code * grid.stored_step) + grid.stored_minimum);
    }
  }
  return absl::OkStatus();
}

void PackNative(const std::vector<int>& codes, int bits, int64_t group_rows, int g,
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

}  // namespace sinq::kernels
