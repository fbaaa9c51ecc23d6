// Conversions between binary32 and the storage types, the same bits on every platform. Round to
// nearest, ties to even.
#ifndef SINQ_KERNELS_HALF_H_
#define SINQ_KERNELS_HALF_H_

#include <bit>
#include <cmath>
#include <cstdint>

namespace sinq::kernels {

constexpr float Bf16ToFloat(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

// To the nearest BF16, ties to even; overflow gives infinity. Not for NaN.
constexpr float RoundToBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return std::bit_cast<float>((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u);
}

// Exact, subnormals, infinities and NaN included.
constexpr float F16ToFloat(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1f;
  const uint32_t mantissa = bits & 0x3ff;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  const uint32_t high = exponent == 31 ? 0xffu << 23 : (exponent + 112) << 23;
  return std::bit_cast<float>(sign | high | (mantissa << 13));
}

// Overflow gives infinity.
constexpr uint16_t FloatToF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;   // NaN
  if (magnitude >= 0x477ff000) return sign | 0x7c00;  // rounds to 65536 or more
  if (magnitude < 0x38800000) {  // below the smallest normal: a multiple of 2^-24
    // Adding 2^-1 makes the float adder round at 2^-24, ties to even.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return sign | static_cast<uint16_t>(std::bit_cast<uint32_t>(shifted) - 0x3f000000);
  }
  const uint32_t odd = (magnitude >> 13) & 1;
  return sign | static_cast<uint16_t>((magnitude - 0x38000000 + 0xfff + odd) >> 13);
}

constexpr float RoundToF16(float value) { return F16ToFloat(FloatToF16(value)); }

// Largest F16 not above / smallest not below `value`; finite inputs within the F16 range.
constexpr float F16Below(float value) {
  const float nearest = RoundToF16(value);
  if (nearest <= value) return nearest;
  const uint16_t bits = FloatToF16(value);
  if ((bits & 0x7fff) == 0) return F16ToFloat(0x8001);
  return F16ToFloat(bits & 0x8000 ? bits + 1 : bits - 1);
}
constexpr float F16Above(float value) { return -F16Below(-value); }

// FP8 E4M3, FN variant: no infinities, 0x7f and 0xff are NaN, largest 448.
constexpr float E4m3ToFloat(uint8_t bits) {
  const int exponent = (bits >> 3) & 0xf;
  const int mantissa = bits & 7;
  float magnitude;
  if (exponent == 15 && mantissa == 7) {
    magnitude = std::bit_cast<float>(0x7fc00000u);
  } else if (exponent == 0) {
    magnitude = static_cast<float>(mantissa) * 0x1p-9f;
  } else {
    magnitude = std::bit_cast<float>(static_cast<uint32_t>(exponent + 120) << 23 |
                                     static_cast<uint32_t>(mantissa) << 20);
  }
  return bits & 0x80 ? -magnitude : magnitude;
}

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_HALF_H_
