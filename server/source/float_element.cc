#include "server/source/float_element.h"

#include <cmath>
#include <cstdint>
#include <cstring>

namespace sinq {
namespace {

float HalfToFloat(uint16_t half) {
  const float magnitude =
      (half & 0x7c00) == 0x7c00
          ? ((half & 0x3ff) == 0 ? HUGE_VALF : std::nanf(""))
          : ((half & 0x7c00) == 0 ? std::ldexp(static_cast<float>(half & 0x3ff), -24)
                                  : std::ldexp(static_cast<float>((half & 0x3ff) | 0x400),
                                               ((half >> 10) & 0x1f) - 25));
  return (half & 0x8000) != 0 ? -magnitude : magnitude;
}

}  // namespace

bool IsPlainFloat(absl::string_view dtype) {
  return dtype == "F32" || dtype == "F16" || dtype == "BF16";
}

size_t FloatElementBytes(absl::string_view dtype) { return dtype == "F32" ? 4 : 2; }

float FloatElementAt(const std::byte* data, absl::string_view dtype, size_t index) {
  float value = 0;
  if (dtype == "F32") {
    std::memcpy(&value, data + 4 * index, sizeof value);
    return value;
  }
  uint16_t bits = 0;
  std::memcpy(&bits, data + 2 * index, sizeof bits);
  if (dtype == "F16") return HalfToFloat(bits);
  // A BF16 is the upper half of the F32 of the same value.
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

}  // namespace sinq
