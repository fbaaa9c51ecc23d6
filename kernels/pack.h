// Codes, scales and zeros of one tensor into the arrays of the layouts other than the SINQ native
// one (whose packing is fused into the encoder). Integer moves only: nothing is rounded here.
// Byte formats: kernels/README.md section 12. Shapes are those that PlanesOf accepts; planes need
// no alignment. Thread-safe: every function writes only its own rows of the plane.
#ifndef SINQ_KERNELS_PACK_H_
#define SINQ_KERNELS_PACK_H_

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"
#include "kernels/layout.h"
#include "kernels/quant_params.h"

namespace sinq::kernels {

// A tensor [rows, cols] with one scale and zero for each `group` columns; group arrays are indexed
// e = row * (cols / group) + j.
struct PackShape {
  QuantParams params;  // layout, bits, symmetric, aux
  int64_t rows = 0, cols = 0;
  int group = 0;  // the effective group size
};

// Rows that are packed together: PackCodes takes blocks that begin at a multiple of this. Covers
// every layout (8 rows share a word of AWQ; 128 fill a cache line of it).
inline constexpr int64_t kPackRows = 128;

// Packs rows [first_row, first_row + count) into `plane` (the whole plane kCodes of the tensor).
// `codes` [count, cols], one byte each and under 2^bits. `first_row` is a multiple of kPackRows,
// and so is `count` unless the block is the last; blocks of different rows may be packed at the
// same time by different threads. For kCompressedTensors, kAwq, kGptq and kGptqV2. Not for kHqq:
// rows of the two halves share its bytes, so its codes come from the native encoder, like those of
// kSinq.
void PackCodes(const PackShape& shape, const uint8_t* codes, int64_t first_row, int64_t count,
               absl::Span<std::byte> plane);

// The same for the GGUF layouts, whose blocks hold scale (and minimum) beside the codes:
// `scale_bits`, `minimum_bits` are F16 bits by group of the whole tensor (index e); minimum_bits
// (-zero * scale) only for kGgufQ4_1. The symmetric layouts subtract their zero of 2^(bits-1).
void PackBlocks(const PackShape& shape, const uint8_t* codes, const uint16_t* scale_bits,
                const uint16_t* minimum_bits, int64_t first_row, int64_t count,
                absl::Span<std::byte> plane);

// Integer zeros (ZeroRule kInteger and kIntegerFromOne) of the whole tensor into plane kZero:
// packed along rows or columns as the layout wants, z - 1 for kGptq. Symmetric layouts that store
// a zero anyway (AWQ, GPTQ) get 2^(bits-1), and `zero` is not looked at. For kCompressedTensors
// (asymmetric), kAwq, kGptq and kGptqV2.
void PackZeros(const PackShape& shape, const float* zero, absl::Span<std::byte> plane);

// Values of one array by group (scales, or HQQ's real zeros), already rounded and as bits of
// `bytes_each` (2 or 4) bytes, into a plane: transposed to [cols / group, rows] for AWQ and GPTQ.
// `values` needs no alignment.
void PlaceGroupValues(const PackShape& shape, const void* values, size_t bytes_each,
                      absl::Span<std::byte> plane);

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_PACK_H_
