#include "server/source/safetensors_dtype.h"

#include <array>
#include <limits>
#include <utility>

namespace sinq {
namespace {

constexpr std::array<std::pair<absl::string_view, int>, 22> kDtypes = {{
    {"BOOL", 8},    {"U8", 8},      {"I8", 8},          {"U16", 16},        {"I16", 16},
    {"F16", 16},    {"BF16", 16},   {"U32", 32},        {"I32", 32},        {"F32", 32},
    {"U64", 64},    {"I64", 64},    {"F64", 64},        {"C64", 64},        {"F8_E4M3", 8},
    {"F8_E5M2", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"F6_E2M3", 6},
    {"F6_E3M2", 6}, {"F4", 4},
}};

}  // namespace

std::optional<int> DtypeBits(absl::string_view dtype) {
  for (const auto& [name, bits] : kDtypes) {
    if (name == dtype) return bits;
  }
  return std::nullopt;
}

std::optional<uint64_t> CheckedTensorBytes(int bits_per_element,
                                           const std::vector<int64_t>& shape) {
  constexpr unsigned __int128 kMax = std::numeric_limits<uint64_t>::max();
  unsigned __int128 elements = 1;
  for (const int64_t dimension : shape) {
    if (dimension < 0) return std::nullopt;
    elements *= static_cast<uint64_t>(dimension);  // both factors fit 64 bits: no wrap in 128
    if (elements > kMax) return std::nullopt;
  }
  const unsigned __int128 bits = elements * static_cast<unsigned>(bits_per_element);
  if (bits % 8 != 0 || bits / 8 > kMax) return std::nullopt;
  return static_cast<uint64_t>(bits / 8);
}

}  // namespace sinq
