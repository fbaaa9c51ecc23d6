// Final codes, their packing and the error figures on a CUDA device: README.md sections 4, 6 and 7.
//
// Launch shape. A quad of threads takes one packed row: g codes from each of its strands, the first
// in the highest bits. A thread holds the words of the columns of its 4 lanes in registers, shifts
// the next strand's codes in, and stores 4 words at a time at the end, so packing reads and writes
// nothing twice. The error sums of a group are the lanes of section 1 once more; their tree costs
// 16 shuffles for g weights, once, which a detour through shared memory would not repay.
#include "kernels/cuda_launch.h"
#include "kernels/cuda_primitives.cuh"
#include "kernels/cuda_steps.h"
#include "kernels/cuda_weights.cuh"
#include "kernels/layout.h"

namespace sinq::kernels {
namespace {

constexpr int kWarpsPerBlock = 4;

struct EncodeParams {
  DeviceArrays arrays;
  EncodeRange range;
  PackedRows packed;
  int64_t tiles, groups;
  int bits, word_bytes;
  float lowest, highest;  // clamp range of the rounded value before `offset` is added
  int offset;
};

// ================================================================ device

// What codes one group.
struct GroupRule {
  float zero, scale, factor;  // factor: rcp(scale), in profile upstream 1/r
  float stored_zero, stored_scale;
};

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

// The code before `offset` is added.
template <bool kUpstream>
__device__ float ExactCode(float weight, float column, const GroupRule& rule) {
  const float y = Mul(weight, column);
  if constexpr (kUpstream) return Add(Div(Mul(y, rule.factor), rule.scale), rule.zero);
  return Fma(y, rule.factor, rule.zero);
}

struct ErrorLanes {
  float error[4] = {};
  float power[4] = {};
};

// Shifts this thread's codes of a group into `words` and adds to its lanes.
template <WeightDtype kDtype, int kGroup, bool kUpstream>
__device__ void EncodeGroup(const EncodeParams& p, const WeightCursor<kDtype>& weights,
                            const GroupRule& rule, int64_t col, int member, ErrorLanes& lanes,
                            unsigned (&words)[kGroup / 16][4]) {
#pragma unroll
  for (int c = 0; c < kGroup / 16; ++c) {
    const int first = 16 * c + 4 * member;
    const Four four = weights.Values(weights.Raw(0, first));
    for (int i = 0; i < 4; ++i) {
      const float weight = four.value[i];
      const float exact =
          ExactCode<kUpstream>(weight, p.arrays.inverse_column[col + first + i], rule);
      const int code = RoundSmallToInt(Clamp(exact, p.lowest, p.highest)) + p.offset;
      const float q = static_cast<float>(code);
      const float value = Mul(Mul(Sub(q, rule.stored_zero), rule.stored_scale),
                              p.arrays.column[col + first + i]);
      const float miss = Sub(value, weight);
      lanes.error[i] = Fma(miss, miss, lanes.error[i]);
      lanes.power[i] = Fma(weight, weight, lanes.power[i]);
      words[c][i] = words[c][i] << p.bits | static_cast<unsigned>(code);
    }
  }
}

template <int kGroup>
__device__ void StoreWords(const unsigned (&words)[kGroup / 16][4], int word_bytes, int member,
                           char* row) {
  for (int c = 0; c < kGroup / 16; ++c) {
    const unsigned(&w)[4] = words[c];
    char* out = row + (16 * c + 4 * member) * word_bytes;
    if (word_bytes == 4) {
      *reinterpret_cast<uint4*>(out) = make_uint4(w[0], w[1], w[2], w[3]);
    } else {
      *reinterpret_cast<unsigned*>(out) = w[0] | w[1] << 8 | w[2] << 16 | w[3] << 24;
    }
  }
}

template <WeightDtype kDtype, int kGroup, bool kUpstream>
__device__ void EncodePackedRow(const EncodeParams& p, int64_t q) {
  const int member = LaneInWarp() % kQuadThreads;
  const bool present = q < p.range.last;
  unsigned words[kGroup / 16][4] = {};
#pragma unroll 1
  for (int strand = 0; strand < p.packed.strands; ++strand) {
    const int64_t e = q + strand * p.packed.rows;
    const bool has_group = present && e < p.groups;
    ErrorLanes lanes;
    if (has_group) {
      const int64_t row = Quotient(e, p.tiles), col = (e - row * p.tiles) * kGroup;
      const WeightCursor<kDtype> weights(p.range.strands[strand], row, col);
      EncodeGroup<kDtype, kGroup, kUpstream>(p, weights, RuleOf<kUpstream>(p.arrays, e), col,
                                             member, lanes, words);
    } else {
      for (auto& four : words) {
        for (unsigned& word : four) word <<= p.bits;
      }
    }
    const float error = QuadLaneTree(lanes.error), power = QuadLaneTree(lanes.power);
    if (!has_group || member != 0) continue;
    p.arrays.error[e] = error;
    p.arrays.power[e] = power;
  }
  if (!present) return;
  char* codes = static_cast<char*>(p.range.codes);
  StoreWords<kGroup>(words, p.word_bytes, member,
                     codes + (q - p.range.first) * static_cast<int64_t>(p.packed.row_bytes));
}

template <WeightDtype kDtype, int kGroup, bool kUpstream>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarpThreads) EncodeKernel(EncodeParams p) {
  const int64_t rows = p.range.last - p.range.first;
  const int64_t warps = (rows + kQuadsPerWarp - 1) / kQuadsPerWarp;
  for (int64_t warp = GlobalWarp(); warp < warps; warp += GlobalWarps()) {
    EncodePackedRow<kDtype, kGroup, kUpstream>(
        p, p.range.first + warp * kQuadsPerWarp + LaneInWarp() / kQuadThreads);
  }
}

// ================================================================ host

EncodeParams ParamsOf(const CudaTensor& tensor, const EncodeRange& range,
                      const DeviceArrays& arrays) {
  const int bits = tensor.params.bits;
  EncodeParams p{arrays,        range, PackedRowsOf(tensor),
                 tensor.tiles,  tensor.groups,
                 bits,          PackingFor(bits).word_bytes,
                 0.0f,          static_cast<float>((1 << bits) - 1),
                 0};
  if (tensor.params.profile == Profile::kUpstream && tensor.params.symmetric) {
    // Rounded around zero, then moved up: the authors' codes 0 .. 2h - 1 around h.
    const int half = (1 << (bits - 1)) - 1;
    p.lowest = static_cast<float>(-half - 1);
    p.highest = static_cast<float>(half - 1);
    p.offset = half;
  }
  return p;
}

}  // namespace

int LaunchEncode(const CudaTensor& tensor, const EncodeRange& range, const DeviceArrays& arrays,
                 CudaStream stream) {
  const EncodeParams p = ParamsOf(tensor, range, arrays);
  const LaunchShape shape = WarpPerUnit(
      (range.last - range.first + kQuadsPerWarp - 1) / kQuadsPerWarp, kWarpsPerBlock, 0);
  const bool upstream = tensor.params.profile == Profile::kUpstream;
  return ForDtype(range.strands[0].dtype, [&](auto dtype) {
    return ForGroup(tensor.group, [&](auto group) {
      const auto kernel = upstream ? EncodeKernel<dtype.value, group.value, true>
                                   : EncodeKernel<dtype.value, group.value, false>;
      return LaunchKernel(kernel, shape, stream, p);
    });
  });
}

}  // namespace sinq::kernels
