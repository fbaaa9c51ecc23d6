// Sizes of the element types that safetensors knows.
#ifndef SINQ_SERVER_SOURCE_SAFETENSORS_DTYPE_H_
#define SINQ_SERVER_SOURCE_SAFETENSORS_DTYPE_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sinq {

// Bits per element of "BF16", "F8_E4M3", ...; nothing for a name that the format does not have.
std::optional<int> DtypeBits(absl::string_view dtype);

// Bytes of a tensor: bits * product(shape) / 8. Nothing if a product does not fit 64 bits (also
// when a later dimension is 0), a dimension is negative, or the bits are not whole bytes.
std::optional<uint64_t> CheckedTensorBytes(int bits_per_element, const std::vector<int64_t>& shape);

}  // namespace sinq

#endif  // SINQ_SERVER_SOURCE_SAFETENSORS_DTYPE_H_
