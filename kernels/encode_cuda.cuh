// From a weight to its code and what the code stands for, on a CUDA device: README.md sections 3, 4
// and 9. Shared by the kernels that write codes and those that look at their errors.
#ifndef SINQ_KERNELS_ENCODE_CUDA_CUH_
#define SINQ_KERNELS_ENCODE_CUDA_CUH_

#include "kernels/codebook.h"  // HasCodebook
#include "kernels/cuda_primitives.cuh"
#include "kernels/cuda_steps.h"
#include "kernels/cuda_weights.cuh"
#include "kernels/dense_cuda.cuh"
#include "kernels/tile_ops.h"  // Coding

namespace sinq::kernels {

struct EncodeArguments {
  DeviceArrays arrays;
  EncodeRange range;
  PackedRows packed;
  int64_t groups_per_row, groups, cols;
  int64_t square_rows;  // rows that share their column scales, 0: all do
  int bits, word_bytes;
  float lowest, highest;  // clamp range of the rounded value before `offset` is added
  int offset;
  bool is_dense;       // values go out, not codes
  DenseRule dense;
  float levels[16], bounds[15];  // of a codebook
};

// ---------------------------------------------------------------- device

// What codes one group.
struct GroupRule {
  float zero, scale, factor;  // factor: rcp(scale), in profile upstream 1/r
  float stored_zero, stored_scale;
};

constexpr bool IsUpstream(Coding coding) {
  return coding == Coding::kDivide || coding == Coding::kBookDivide || coding == Coding::kMultiply;
}
constexpr bool HasBook(Coding coding) {
  return coding == Coding::kBook || coding == Coding::kBookDivide;
}

template <bool kUpstream>
__device__ GroupRule RuleOf(const DeviceArrays& arrays, int64_t e) {
  GroupRule rule;
  rule.stored_zero = arrays.zero[e];
  rule.stored_scale = arrays.scale[e];
  rule.zero = kUpstream ? arrays.exact_zero[e] : rule.stored_zero;
  rule.scale = kUpstream ? arrays.exact_scale[e] : rule.stored_scale;
  rule.factor = kUpstream ? arrays.row_factor[e] : Reciprocal(rule.scale);
  return rule;
}

// What is rounded to a code.
template <Coding kCoding>
__device__ float ExactCode(float y, const GroupRule& rule) {
  if constexpr (kCoding == Coding::kMultiply)
    return Add(Mul(Mul(y, rule.factor), rule.scale), rule.zero);
  if constexpr (IsUpstream(kCoding))
    return Add(Div(Mul(y, rule.factor), rule.scale), rule.zero);
  return Fma(y, rule.factor, rule.zero);
}

// A code and the level it stands for.
struct CodeAndLevel {
  int code;
  float level;
};
template <Coding kCoding>
__device__ CodeAndLevel CodeOf(const EncodeArguments& p, float y, const GroupRule& rule) {
  const float exact = ExactCode<kCoding>(y, rule);
  if constexpr (HasBook(kCoding)) {
    CodeAndLevel coded{0, p.levels[0]};
#pragma unroll
    for (int i = 0; i < 15; ++i) {  // bounds beyond the last are infinite
      if (exact > p.bounds[i]) coded = {i + 1, p.levels[i + 1]};
    }
    return coded;
  }
  const float bounded = Clamp(exact, p.lowest, p.highest);
  const int code = RoundSmallToInt(bounded) + p.offset;
  // Not converted from the integer: conversions have a fraction of an addition's rate.
  const float level = RoundSmall(bounded);
  return {code, IsUpstream(kCoding) ? Add(level, static_cast<float>(p.offset)) : level};
}

// ---------------------------------------------------------------- host

inline Coding CodingOf(const CudaTensor& tensor) {
  const bool upstream = tensor.params.profile == Profile::kUpstream;
  const Rounding rounding = RoundingOf(tensor.params.method);
  if (HasCodebook(rounding)) return upstream ? Coding::kBookDivide : Coding::kBook;
  if (!upstream) return Coding::kStored;
  return rounding == Rounding::kHqq ? Coding::kMultiply : Coding::kDivide;
}

// Calls `run` with the coding as a compile-time constant.
template <class Run>
int ForCoding(Coding coding, const Run& run) {
  switch (coding) {
    case Coding::kDivide:
      return run(Constant<Coding::kDivide>());
    case Coding::kMultiply:
      return run(Constant<Coding::kMultiply>());
    case Coding::kBook:
      return run(Constant<Coding::kBook>());
    case Coding::kBookDivide:
      return run(Constant<Coding::kBookDivide>());
    default:
      return run(Constant<Coding::kStored>());
  }
}

// The dearer error figures of the groups of every eighth row in p.range (section 7); a part of
// LaunchEncode (figures_cuda.cu).
[[nodiscard]] int LaunchCloseSums(const CudaTensor& tensor, const EncodeArguments& p,
                                  CudaStream stream);

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_ENCODE_CUDA_CUH_
