// Storage of scales and zeros, and packing of codes (README.md sections 4 to 6).
#ifndef SINQ_TESTS_REFERENCE_REFERENCE_STORE_H_
#define SINQ_TESTS_REFERENCE_REFERENCE_STORE_H_

#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/quant_params.h"

namespace sinq::kernels {

// Bits of an F16 value.
uint16_t F16Bits(float value);

// Values as aux stores them, in place; their bits into `out` as far as it reaches.
absl::Status StoreRounded(std::vector<float>& values, AuxStorage aux, const char* what,
                          absl::Span<std::byte> out);

struct AuxPlanes {
  absl::Span<std::byte> codes, steps, minima;  // all empty: only the values are wanted
};
// 5. quantized auxiliaries: column c of [strands, columns].
absl::Status StoreAux(std::vector<float>& values, size_t strands, Profile profile,
                      const AuxPlanes& out);

// 6. packing.
void PackNative(const std::vector<int>& codes, int bits, int64_t group_rows, int g,
                absl::Span<std::byte> out);

}  // namespace sinq::kernels

#endif  // SINQ_TESTS_REFERENCE_REFERENCE_STORE_H_
