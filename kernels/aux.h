// 8-bit scales and zeros (the authors' rtn8, "quantAux"): README.md section 5.
#ifndef SINQ_KERNELS_AUX_H_
#define SINQ_KERNELS_AUX_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/quant_params.h"
#include "kernels/tile_ops.h"

namespace sinq::kernels {

// Quantizes `values` seen as [strands rows, count/strands columns], one grid per column, writes X
// [count] and the F16 arrays step and minimum [count/strands], and replaces each value by what a
// reader reconstructs. `strands` divides `count`. InvalidArgument if a value or a step does not fit
// F16.
absl::Status QuantizeAux(const TileOps& ops, absl::Span<float> values, size_t strands,
                         Profile profile, uint8_t* codes, std::byte* steps, std::byte* minima);

// Stores `values` as F16, BF16 or F32 (u8: F16) and replaces them by the stored ones.
// InvalidArgument naming `what` on overflow.
absl::Status StoreValues(const TileOps& ops, absl::Span<float> values, AuxStorage aux,
                         const char* what, std::byte* out);
// Bytes of one value stored so.
constexpr size_t StoredBytes(AuxStorage aux) { return aux == AuxStorage::kF32 ? 4 : 2; }
// One value rounded to what StoreValues stores.
float RoundToStored(float value, AuxStorage aux);

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_AUX_H_
