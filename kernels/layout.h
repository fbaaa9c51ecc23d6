// Sizes and shapes of everything a quantized tensor is stored as. Nobody else computes packed
// sizes. Byte formats: kernels/README.md sections 5, 6 and 12.
#ifndef SINQ_KERNELS_LAYOUT_H_
#define SINQ_KERNELS_LAYOUT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/quant_params.h"

namespace sinq::kernels {

// The group size really used for K = `cols`: `group_size`, halved until it divides `cols`, not
// under 16. 0: none works.
int EffectiveGroupSize(int64_t cols, int group_size);

// How codes of `bits` are packed: `codes_per_word` consecutive chunks of the group rows, first
// chunk most significant.
struct CodePacking {
  const char* name;    // "4bit_u8", "3bit_32", ...
  int codes_per_word;  // C
  int word_bytes;      // 1 or 4
  bool pads_rows;      // false: C must divide the number of group rows
};
const CodePacking& PackingFor(int bits);

// The arrays that make up one quantized tensor.
enum class PlaneKind : uint8_t {
  kCodes,        // W_q
  kColumnScale,  // scale2: [1, K]; tiling 2D: [tiles, 1, g]. F16, or BF16 and F32 as aux says
  kScale,
  kZero,  // aux f16: F16 [R, 1] (2D: [tiles, g, 1]); symmetric: zero is F16 [] (one value)
  kScaleCode,
  kScaleStep,
  kScaleMin,  // aux u8: U8 [32, M/32], F16 [1, M/32], F16 [1, M/32]
  kZeroCode,
  kZeroStep,
  kZeroMin,  // aux u8: U8 [M, 1], F16 [1, 1], F16 [1, 1]; absent when symmetric (kZero instead)
  kBlocks,   // GGUF: U8 [N, bytes per row], scales inside
  kDense,    // the dequantized weights, [N, K] in the input's dtype
};
enum class PlaneDtype : uint8_t { kU8, kI32, kF16, kBf16, kF32 };

struct PlaneSpec {
  PlaneKind kind;
  PlaneDtype dtype;
  std::vector<int64_t> shape;
  uint64_t size_bytes;
};

// What a [rows, cols] tensor quantized with `params` is stored as, in PlaneKind order.
// FailedPrecondition with the reason if this shape cannot be stored so (no group size divides K; 2
// or 4 bits with a number of group rows that does not pack; params.group_size is the requested one
// and is made effective here). aux u8 with M % 32 != 0 falls back to F16 planes: `EffectiveAux`
// tells which is used.
absl::StatusOr<std::vector<PlaneSpec>> NativePlanes(const QuantParams& params, int64_t rows,
                                                    int64_t cols);
// The same for every Layout: NativePlanes for kSinq. `dense` is the dtype of plane kDense: that of
// the input, BF16 for FP8. FailedPrecondition names the rule of the format that the shape breaks
// (for example "in_features must be a multiple of group_size").
absl::StatusOr<std::vector<PlaneSpec>> PlanesOf(const QuantParams& params, int64_t rows,
                                                int64_t cols, PlaneDtype dense = PlaneDtype::kBf16);
AuxStorage EffectiveAux(const QuantParams& params, int64_t rows, int64_t cols);

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_LAYOUT_H_
