// The errors of all column factors of the activation-aware methods on a CUDA device: README.md
// section 10, steps 3 and 4.
//
// Launch shape. This is a product of matrices, 20 N K T multiplications for T samples, whose every
// output is one chain of fma over K: so a thread holds the chains of 8 samples and 4 rows in
// registers, from the first column to the last, and nothing is ever added across threads. A block
// of four warps takes one candidate and the 32 rows that section 1 adds up, and 128 samples at a
// time. It makes the differences of one group of columns in shared memory itself (a quad of threads
// for each row), which costs a sixth of what the block then does with them and saves storing 20 N K
// differences; samples pass through shared memory 16 columns at a time, transposed. A step of one
// column is 3 loads of 16 bytes from shared memory for 32 fma.
// Strides of 36 and 132 words keep the transposing stores at two conflicts. Neighbouring blocks
// take the candidates of the same rows, so that these come out of the L2 cache, as the samples do.
// 27 KiB of shared memory (46 with second moments, whose outputs meet the differences again).
#include "kernels/activation_cuda.cuh"
#include "kernels/activation_rules.h"
#include "kernels/cuda_launch.h"
#include "kernels/cuda_steps.h"
#include "kernels/tile_ops.h"  // OutputNorm

namespace sinq::kernels {
namespace {

constexpr int kThreads = 128;
constexpr int kRows = kRowsPerBlock, kSamples = 128, kDepth = 16;
constexpr int kRowStride = kRows + 4, kSampleStride = kSamples + 4;
constexpr int kThreadRows = 4, kThreadSamples = 8;
static_assert(kThreads * kThreadRows * kThreadSamples == kRows * kSamples);
static_assert(kThreads == kRows * kQuadThreads, "a quad for each row");

struct SearchArguments {
  DeviceWeights weights;
  DeviceInputs inputs;
  DeviceArrays arrays;
  CandidateRule rule;
  OutputNorm norm;
  int64_t rows, cols, groups_per_row, row_blocks;  // of the tensor
  int64_t first_block, blocks;                     // of the range
};

// ================================================================ device

// Shared memory. `misses` is [columns of a group][rows]; the outputs take its place at the end,
// [samples][rows].
template <int kGroup, bool kMoments>
struct SearchBuffers {
  alignas(16) float misses[kSamples * kRowStride];
  alignas(16) float samples[kDepth * kSampleStride];  // [columns][samples]
  float own[kMoments ? kSamples * kRowStride : 1];    // [columns that are samples][rows]
  ColumnFactors<kGroup> factors;
  double row_error[kRows];
};

// What a block works on.
struct SearchUnit {
  int64_t block;  // of rows, in the tensor
  int step;       // of alpha
};

template <int kGroup, bool kMoments>
__device__ void SetFactors(const SearchArguments& p, const SearchUnit& unit, int64_t first_col,
                           SearchBuffers<kGroup, kMoments>& buffers) {
  const int k = ThreadInBlock();
  if (k >= kGroup) return;
  const int64_t column = first_col + k;
  SetColumnFactors(buffers.factors, k, p.arrays.column[column],
                   p.arrays.candidates[unit.step * p.cols + column],
                   p.arrays.outcomes[Quotient(first_col, kGroup)].exponent);
}

// The differences of one group of columns, a quad for each row; 0 in rows that are not there.
// `first_sample`: of the samples that are worked on, which with moments are columns too.
template <WeightDtype kDtype, int kGroup, bool kMoments>
__device__ void SetMisses(const SearchArguments& p, const SearchUnit& unit, int64_t first_col,
                          int64_t first_sample, SearchBuffers<kGroup, kMoments>& buffers) {
  const int in_block = ThreadInBlock() / kQuadThreads, member = LaneInWarp() % kQuadThreads;
  const int64_t row = unit.block * kRows + in_block;
  const bool present = row < p.rows;
  const WeightCursor<kDtype> weights(p.weights, present ? row : unit.block * kRows, first_col);
  float r = 1.0f;
  if (present && p.arrays.row_factor != nullptr)
    r = p.arrays.row_factor[row * p.groups_per_row + Quotient(first_col, kGroup)];
  const CandidateFit fit = FitCandidate(weights, present, buffers.factors, r, p.rule);
  const float inverse_r = Reciprocal(r);
#pragma unroll
  for (int first = 4 * member; first < kGroup; first += 16) {
    const Four w = present ? weights.Values(weights.Raw(0, first)) : Four{};
    for (int i = 0; i < 4; ++i) {
      const int k = first + i;
      const float miss =
          present ? CandidateMiss(w.value[i], buffers.factors.forward[k],
                                  buffers.factors.backward[k], inverse_r, fit, p.rule)
                  : 0.0f;
      buffers.misses[k * kRowStride + in_block] = miss;
      const int64_t sample = first_col + k - first_sample;
      if (kMoments && sample >= 0 && sample < kSamples)
        buffers.own[sample * kRowStride + in_block] = miss;
    }
  }
}

// Columns [first_col, first_col + kDepth) of some samples, transposed; 0 for samples beyond the
// last.
__device__ void LoadSamples(const SearchArguments& p, int64_t first_sample, int64_t first_col,
                            float* samples) {
  const int col = ThreadInBlock() % kQuadThreads * 4;
#pragma unroll
  for (int s = ThreadInBlock() / kQuadThreads; s < kSamples; s += kThreads / kQuadThreads) {
    const int64_t sample = first_sample + s;
    float4 x = make_float4(0, 0, 0, 0);
    if (sample < p.inputs.rows)
      x = *reinterpret_cast<const float4*>(p.inputs.values + sample * p.cols + first_col + col);
    float* out = samples + col * kSampleStride + s;
    out[0] = x.x;
    out[kSampleStride] = x.y;
    out[2 * kSampleStride] = x.z;
    out[3 * kSampleStride] = x.w;
  }
}

// The outputs of one thread: rows 4 (thread % 8) .. + 3, samples 8 (thread / 8) .. + 7.
struct Outputs {
  float value[kThreadSamples][kThreadRows] = {};
};
__device__ int FirstRow() { return ThreadInBlock() % (kRows / kThreadRows) * kThreadRows; }
__device__ int FirstSample() { return ThreadInBlock() / (kRows / kThreadRows) * kThreadSamples; }

// One fma for each output and column, in the order of the columns.
__device__ void Multiply(const float* misses, const float* samples, Outputs& outputs) {
#pragma unroll 4
  for (int k = 0; k < kDepth; ++k) {
    const float4 d = *reinterpret_cast<const float4*>(misses + k * kRowStride + FirstRow());
    const float* from = samples + k * kSampleStride + FirstSample();
    const float4 low = *reinterpret_cast<const float4*>(from);
    const float4 high = *reinterpret_cast<const float4*>(from + 4);
    const float x[kThreadSamples] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int s = 0; s < kThreadSamples; ++s) {
      outputs.value[s][0] = Fma(x[s], d.x, outputs.value[s][0]);
      outputs.value[s][1] = Fma(x[s], d.y, outputs.value[s][1]);
      outputs.value[s][2] = Fma(x[s], d.z, outputs.value[s][2]);
      outputs.value[s][3] = Fma(x[s], d.w, outputs.value[s][3]);
    }
  }
}

__device__ void StoreOutputs(const Outputs& outputs, float* out) {
#pragma unroll
  for (int s = 0; s < kThreadSamples; ++s) {
    const float(&o)[kThreadRows] = outputs.value[s];
    *reinterpret_cast<float4*>(out + (FirstSample() + s) * kRowStride + FirstRow()) =
        make_float4(o[0], o[1], o[2], o[3]);
  }
}

// What the outputs of a row cost, added to `error` in the order of the samples; by one thread.
__device__ double AddCosts(double error, const float* outputs, const float* own, OutputNorm norm,
                           int row, int count) {
#pragma unroll 4
  for (int s = 0; s < count; ++s) {
    const double output = static_cast<double>(outputs[s * kRowStride + row]);
    if (norm == OutputNorm::kAbsolute) {
      error = Add(error, output < 0 ? -output : output);
    } else {
      const double other =
          norm == OutputNorm::kSquare ? output : static_cast<double>(own[s * kRowStride + row]);
      error = Add(error, Mul(output, other));
    }
  }
  return error;
}

// All columns for one set of samples; the outputs are left in `buffers.misses`.
template <WeightDtype kDtype, int kGroup, bool kMoments>
__device__ void MakeOutputs(const SearchArguments& p, const SearchUnit& unit,
                            int64_t first_sample, SearchBuffers<kGroup, kMoments>& buffers) {
  Outputs outputs;
  for (int64_t col = 0; col < p.cols; col += kGroup) {
    BlockBarrier();  // nobody reads what was there before
    SetFactors(p, unit, col, buffers);
    BlockBarrier();
    SetMisses<kDtype>(p, unit, col, first_sample, buffers);
    for (int k = 0; k < kGroup; k += kDepth) {
      if (k > 0) BlockBarrier();
      LoadSamples(p, first_sample, col + k, buffers.samples);
      BlockBarrier();
      Multiply(buffers.misses + k * kRowStride, buffers.samples, outputs);
    }
  }
  BlockBarrier();
  StoreOutputs(outputs, buffers.misses);
  BlockBarrier();
}

// Valid in thread 0.
template <WeightDtype kDtype, int kGroup, bool kMoments>
__device__ double UnitError(const SearchArguments& p, const SearchUnit& unit,
                            SearchBuffers<kGroup, kMoments>& buffers) {
  const int row = ThreadInBlock();
  double error = 0;
  for (int64_t sample = 0; sample < p.inputs.rows; sample += kSamples) {
    MakeOutputs<kDtype>(p, unit, sample, buffers);
    const int64_t left = p.inputs.rows - sample;
    const int count = static_cast<int>(left < kSamples ? left : kSamples);
    if (row < kRows) error = AddCosts(error, buffers.misses, buffers.own, p.norm, row, count);
  }
  if (row < kRows) buffers.row_error[row] = error;
  BlockBarrier();
  if (row != 0) return 0;
  double total = 0;
  for (int i = 0; i < kRows && unit.block * kRows + i < p.rows; ++i)
    total = Add(total, buffers.row_error[i]);
  return total;
}

template <WeightDtype kDtype, int kGroup, bool kMoments>
__global__ void __launch_bounds__(kThreads) SearchKernel(SearchArguments p) {
  auto& buffers = *SharedMemory<SearchBuffers<kGroup, kMoments>>();
  for (int64_t n = blockIdx.x; n < p.blocks * kAlphaSteps; n += gridDim.x) {
    SearchUnit unit;
    unit.block = Quotient(n, kAlphaSteps);
    unit.step = static_cast<int>(n - unit.block * kAlphaSteps);
    unit.block += p.first_block;
    const double error = UnitError<kDtype>(p, unit, buffers);
    if (ThreadInBlock() == 0) p.arrays.search_error[unit.step * p.row_blocks + unit.block] = error;
  }
}

// ================================================================ host

OutputNorm NormOf(const CudaTensor& tensor, const DeviceInputs& inputs) {
  if (inputs.are_moments) return OutputNorm::kMoments;
  return tensor.params.method == Method::kAsinqL2 ? OutputNorm::kSquare : OutputNorm::kAbsolute;
}

template <WeightDtype kDtype, int kGroup, bool kMoments>
int LaunchVariant(const SearchArguments& p, CudaStream stream) {
  using Buffers = SearchBuffers<kGroup, kMoments>;
  static_assert(sizeof(Buffers) <= kMaxSharedBytes);
  const LaunchShape shape = BlockPerUnit(p.blocks * kAlphaSteps, kThreads, sizeof(Buffers));
  return LaunchKernel(SearchKernel<kDtype, kGroup, kMoments>, shape, stream, p);
}

}  // namespace

int LaunchSearch(const CudaTensor& tensor, const DeviceWeights& weights,
                 const DeviceInputs& inputs, const DeviceArrays& arrays, CudaStream stream) {
  const bool upstream = tensor.params.profile == Profile::kUpstream;
  SearchArguments p{};
  p.weights = weights;
  p.inputs = inputs;
  p.arrays = arrays;
  p.rule = {static_cast<float>((1 << tensor.params.bits) - 1),
            upstream ? kUpstreamRangeFloor : 0.0f};
  p.norm = NormOf(tensor, inputs);
  p.rows = tensor.rows;
  p.cols = tensor.cols;
  p.groups_per_row = tensor.groups_per_row;
  p.row_blocks = RowBlocks(tensor.rows);
  p.first_block = weights.first_row / kRowsPerBlock;
  p.blocks = RowBlocks(weights.rows);
  return ForDtype(weights.dtype, [&](auto dtype) {
    return ForGroup(tensor.group, [&](auto group) {
      return inputs.are_moments ? LaunchVariant<dtype.value, group.value, true>(p, stream)
                                : LaunchVariant<dtype.value, group.value, false>(p, stream);
    });
  });
}

}  // namespace sinq::kernels
