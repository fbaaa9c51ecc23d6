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

// Stores `values` as F16 and replaces them by the stored ones. InvalidArgument naming `what` on
// overflow.
absl::Status StoreF16(const TileOps& ops, absl::Span<float> values, const char* what,
                      std::byte* out);

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_AUX_H_
