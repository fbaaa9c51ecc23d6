// Final codes, their packing and the error figures on a CUDA device: README.md sections 4, 6 and 7;
// dense weights of section 8.3.
//
// Launch shape. A quad of threads takes one packed row: g codes from each of its strands, the first
// in the highest bits. A thread holds the words of the columns of its 4 lanes in registers, shifts
// the next strand's codes in, and stores 4 words at a time at the end, so packing reads and writes
// nothing twice. The error sums of a group are the lanes of section 1 once more; their tree costs
// 16 shuffles for g weights, once, which a detour through shared memory would not repay.
#include <algorithm>
#include <iterator>
#include <limits>

#include "kernels/codebook.h"
#include "kernels/cuda_launch.h"
#include "kernels/cuda_primitives.cuh"
#include "kernels/cuda_steps.h"
#include "kernels/cuda_weights.cuh"
#include "kernels/encode_cuda.cuh"
#include "kernels/hadamard_cuda.h"
#include "kernels/layout.h"

namespace sinq::kernels {
namespace {

constexpr int kWarpsPerBlock = 4;

// ================================================================ device

struct ErrorLanes {
  float error[4] = {};
  float power[4] = {};
  float largest = 0;
};

// Where codes go: shifted into words below those of the strands before, or as the values they stand
// for.
__device__ void Put(const EncodeArguments& p, int code, float value, unsigned& word) {
  word = p.is_dense ? __float_as_uint(value) : word << p.bits | static_cast<unsigned>(code);
}

// This thread's part of a group: into `words` and its lanes.
template <WeightDtype kDtype, int kGroup, Coding kCoding>
__device__ void EncodeGroup(const EncodeArguments& p, const WeightCursor<kDtype>& weights,
                            const GroupRule& rule, int64_t column, int member, ErrorLanes& lanes,
                            unsigned (&words)[kGroup / 16][4]) {
#pragma unroll
  for (int c = 0; c < kGroup / 16; ++c) {
    const int first = 16 * c + 4 * member;
    const Four four = weights.Values(weights.Raw(0, first));
    const Four inverse = LoadFour(p.arrays.inverse_column + column + first);
    const Four t = LoadFour(p.arrays.column + column + first);
    for (int i = 0; i < 4; ++i) {
      const float weight = four.value[i];
      const float y = Mul(weight, inverse.value[i]);
      const CodeAndLevel coded = CodeOf<kCoding>(p, y, rule);
      const float value =
          Mul(Mul(Sub(coded.level, rule.stored_zero), rule.stored_scale), t.value[i]);
      const float miss = Sub(value, weight);
      lanes.error[i] = Fma(miss, miss, lanes.error[i]);
      lanes.power[i] = Fma(weight, weight, lanes.power[i]);
      lanes.largest = Max(lanes.largest, Magnitude(miss));
      Put(p, coded.code, value, words[c][i]);
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

template <int kGroup>
__device__ void StoreDense(const EncodeArguments& p, const unsigned (&words)[kGroup / 16][4],
                           int member, char* row) {
  for (int c = 0; c < kGroup / 16; ++c) {
    unsigned bits[4];
    for (int i = 0; i < 4; ++i) bits[i] = DenseBits(p.dense, __uint_as_float(words[c][i]));
    const int first = 16 * c + 4 * member;
    if (p.dense.dtype == WeightDtype::kF32) {
      *reinterpret_cast<uint4*>(row + 4 * first) =
          make_uint4(bits[0], bits[1], bits[2], bits[3]);
    } else {
      *reinterpret_cast<uint2*>(row + 2 * first) =
          make_uint2(bits[0] | bits[1] << 16, bits[2] | bits[3] << 16);
    }
  }
}

template <WeightDtype kDtype, int kGroup, Coding kCoding>
__device__ void EncodePackedRow(const EncodeArguments& p, int64_t q) {
  const int member = LaneInWarp() % kQuadThreads;
  const bool present = q < p.range.last;
  unsigned words[kGroup / 16][4] = {};
#pragma unroll 1
  for (int strand = 0; strand < p.packed.strands; ++strand) {
    const int64_t e = q + strand * p.packed.rows;
    const bool has_group = present && e < p.groups;
    ErrorLanes lanes;
    if (has_group) {
      const int64_t row = Quotient(e, p.groups_per_row);
      const int64_t col = (e - row * p.groups_per_row) * kGroup;
      const int64_t column =
          p.square_rows == 0 ? col : Quotient(row, p.square_rows) * p.cols + col;
      const WeightCursor<kDtype> weights(p.range.strands[strand], row, col);
      EncodeGroup<kDtype, kGroup, kCoding>(p, weights, RuleOf<IsUpstream(kCoding)>(p.arrays, e),
                                           column, member, lanes, words);
    } else {
      for (auto& four : words) {
        for (unsigned& word : four) word <<= p.bits;
      }
    }
    const float error = QuadLaneTree(lanes.error), power = QuadLaneTree(lanes.power);
    const float largest = QuadMax(lanes.largest);
    if (!has_group || member != 0) continue;
    p.arrays.error[e] = error;
    p.arrays.power[e] = power;
    p.arrays.largest[e] = largest;
  }
  if (!present) return;
  char* out = static_cast<char*>(p.range.codes) +
              (q - p.range.first) * static_cast<int64_t>(p.packed.row_bytes);
  if (p.is_dense) {
    StoreDense<kGroup>(p, words, member, out);
  } else {
    StoreWords<kGroup>(words, p.word_bytes, member, out);
  }
}

template <WeightDtype kDtype, int kGroup, Coding kCoding>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarpThreads) EncodeKernel(EncodeArguments p) {
  const int64_t rows = p.range.last - p.range.first;
  const int64_t warps = (rows + kQuadsPerWarp - 1) / kQuadsPerWarp;
  for (int64_t warp = GlobalWarp(); warp < warps; warp += GlobalWarps()) {
    EncodePackedRow<kDtype, kGroup, kCoding>(
        p, p.range.first + warp * kQuadsPerWarp + LaneInWarp() / kQuadThreads);
  }
}

// ================================================================ host

EncodeArguments ParamsOf(const CudaTensor& tensor, const EncodeRange& range,
                      const DeviceArrays& arrays) {
  const int bits = tensor.params.bits;
  EncodeArguments p{};
  p.arrays = arrays;
  p.range = range;
  p.packed = PackedRowsOf(tensor);
  p.groups_per_row = tensor.groups_per_row;
  p.groups = tensor.groups;
  p.cols = tensor.cols;
  p.square_rows = tensor.params.tiling == Tiling::k2D ? tensor.group : 0;
  p.bits = bits;
  p.word_bytes = IsPackedApart(tensor) ? 1 : PackingFor(bits).word_bytes;
  p.highest = static_cast<float>((1 << bits) - 1);
  p.is_dense = tensor.params.layout == Layout::kDense;
  p.dense = DenseRuleOf(tensor.dense);
  const Codebook book = CodebookOf(RoundingOf(tensor.params.method));
  std::copy_n(book.levels, book.size, p.levels);
  std::fill(std::begin(p.bounds), std::end(p.bounds), std::numeric_limits<float>::infinity());
  std::copy_n(book.bounds, book.size == 0 ? 0 : book.size - 1, p.bounds);
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
  if (RoundingOf(tensor.params.method) == Rounding::kHadamard)
    return LaunchHadamardEncode(tensor, range, arrays, stream);
  const EncodeArguments p = ParamsOf(tensor, range, arrays);
  const LaunchShape shape = WarpPerUnit(
      (range.last - range.first + kQuadsPerWarp - 1) / kQuadsPerWarp, kWarpsPerBlock, 0);
  const int error = ForDtype(range.strands[0].dtype, [&](auto dtype) {
    return ForGroup(tensor.group, [&](auto group) {
      return ForCoding(CodingOf(tensor), [&](auto coding) {
        return LaunchKernel(EncodeKernel<dtype.value, group.value, coding.value>, shape, stream,
                            p);
      });
    });
  });
  return FirstError({error, LaunchCloseSums(tensor, p, stream)});
}

}  // namespace sinq::kernels
