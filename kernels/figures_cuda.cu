// The dearer error figures on a CUDA device: README.md section 7, every eighth row, and the largest
// error of all.
//
// Launch shape. The sums of a group are the encoder's over again, a quad of threads each, in a
// kernel of its own: an eighth of the weights is read and coded twice, which costs the encoder
// neither registers nor branches. Only groups of those rows are walked. Their totals are made as in
// errors_cuda.cu, by blocks of 32 rows and then over the blocks, with a warp for each of the five
// chains of fp64 additions and one for the largest error.
#include "kernels/close_rows.h"
#include "kernels/cuda_chain.cuh"
#include "kernels/cuda_launch.h"
#include "kernels/cuda_panel.h"
#include "kernels/encode_cuda.cuh"
#include "kernels/figures_cuda.h"

namespace sinq::kernels {
namespace {

constexpr int kWarpsPerBlock = 4;
constexpr int kChains = 5, kTotalWarps = kChains + 1;
static_assert(kTotalWarps <= kSumPartials);
constexpr int64_t kCloseRowsPerBlock = kRowsPerBlock / kCloseRowStep;

struct TotalArguments {
  DeviceArrays arrays;
  double* partials;  // [kTotalWarps][row blocks]
  int64_t rows, groups_per_row, row_blocks;
};

// ================================================================ device

struct CloseLanes {
  float overlap[4] = {}, error[4] = {}, power[4] = {};
};

// This thread's part of a group.
template <WeightDtype kDtype, Coding kCoding>
__device__ CloseLanes LanesOfGroup(const EncodeArguments& p, const WeightCursor<kDtype>& weights,
                                   const GroupRule& rule, int64_t column, int group) {
  CloseLanes lanes;
  for (int first = 4 * (LaneInWarp() % kQuadThreads); first < group; first += 16) {
    const Four four = weights.Values(weights.Raw(0, first));
    for (int i = 0; i < 4; ++i) {
      const float weight = four.value[i];
      const float y = Mul(weight, p.arrays.inverse_column[column + first + i]);
      const CodeAndLevel coded = CodeOf<kCoding>(p, y, rule);
      const float h = Mul(Sub(coded.level, rule.stored_zero), rule.stored_scale);
      const float miss = Sub(Mul(h, p.arrays.column[column + first + i]), weight);
      const float balanced_miss = Sub(h, y);
      lanes.overlap[i] = Fma(miss, weight, lanes.overlap[i]);
      lanes.error[i] = Fma(balanced_miss, balanced_miss, lanes.error[i]);
      lanes.power[i] = Fma(y, y, lanes.power[i]);
    }
  }
  return lanes;
}

// The n-th close group, by a quad. All threads of the warp must take part.
template <WeightDtype kDtype, Coding kCoding>
__device__ void SumCloseGroup(const EncodeArguments& p, int strand, int64_t n, bool present) {
  const int group = static_cast<int>(Quotient(p.cols, p.groups_per_row));
  CloseLanes lanes;
  if (present) {
    const int64_t e = CloseGroup(n, p.groups_per_row);
    const int64_t row = Quotient(e, p.groups_per_row), col = (e - row * p.groups_per_row) * group;
    const int64_t column =
        p.square_rows == 0 ? col : Quotient(row, p.square_rows) * p.cols + col;
    const WeightCursor<kDtype> weights(p.range.strands[strand], row, col);
    lanes = LanesOfGroup<kDtype, kCoding>(p, weights, RuleOf<IsUpstream(kCoding)>(p.arrays, e),
                                          column, group);
  }
  const float overlap = QuadLaneTree(lanes.overlap);
  const float error = QuadLaneTree(lanes.error), power = QuadLaneTree(lanes.power);
  if (!present || LaneInWarp() % kQuadThreads != 0) return;
  p.arrays.overlap[n] = overlap;
  p.arrays.balanced_error[n] = error;
  p.arrays.balanced_power[n] = power;
}

template <WeightDtype kDtype, Coding kCoding>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarpThreads) CloseKernel(EncodeArguments p) {
  for (int strand = 0; strand < p.packed.strands; ++strand) {
    const int64_t base = strand * p.packed.rows;
    if (base + p.range.first >= p.groups) break;
    const int64_t end = base + p.range.last < p.groups ? base + p.range.last : p.groups;
    const int64_t first = CloseGroupsBefore(base + p.range.first, p.groups_per_row);
    const int64_t last = CloseGroupsBefore(end, p.groups_per_row);
    const int64_t warps = (last - first + kQuadsPerWarp - 1) / kQuadsPerWarp;
    for (int64_t warp = GlobalWarp(); warp < warps; warp += GlobalWarps()) {
      const int64_t n = first + warp * kQuadsPerWarp + LaneInWarp() / kQuadThreads;
      SumCloseGroup<kDtype, kCoding>(p, strand, n, n < last);
    }
  }
}

// ---------------------------------------------------------------- totals

// Sums of the groups of the close rows [first, last), one accumulator; valid in lane 0.
__device__ double SumOfCloseRows(const float* by_group, int64_t groups_per_row, int64_t first,
                                 int64_t last, float* piece) {
  double sum = 0;
  for (int64_t row = first; row < last; row += kCloseRowStep)
    sum = WarpChain(sum, by_group + row * groups_per_row, groups_per_row, piece);
  return sum;
}

// The largest of some values that are not negative, by a warp.
template <class T>
__device__ float WarpLargest(const T* values, int64_t count) {
  float largest = 0;
  for (int64_t i = LaneInWarp(); i < count; i += kWarpThreads)
    largest = Max(largest, static_cast<float>(values[i]));
  return WarpMax(largest);
}

// One figure of one block of rows, by a warp; valid in lane 0.
__device__ double RowBlockFigure(const TotalArguments& p, int figure, int64_t block,
                                 float* piece) {
  const int64_t per_row = p.groups_per_row, first = block * kRowsPerBlock;
  const int64_t end = first + kRowsPerBlock, last = end < p.rows ? end : p.rows;
  if (figure == 0) return SumOfCloseRows(p.arrays.error, per_row, first, last, piece);
  if (figure == 1) return SumOfCloseRows(p.arrays.power, per_row, first, last, piece);
  if (figure == kChains)
    return WarpLargest(p.arrays.largest + first * per_row, (last - first) * per_row);
  // These arrays have the close rows alone, one after the other.
  const float* values = figure == 2   ? p.arrays.overlap
                        : figure == 3 ? p.arrays.balanced_error
                                      : p.arrays.balanced_power;
  const int64_t rows = (last - first + kCloseRowStep - 1) / kCloseRowStep;
  return WarpChain(0, values + block * kCloseRowsPerBlock * per_row, rows * per_row, piece);
}

__global__ void __launch_bounds__(kTotalWarps* kWarpThreads)
    CloseRowBlocksKernel(TotalArguments p) {
  const int figure = WarpInBlock();
  float* piece = SharedMemory<float>() + figure * kChainPiece;
  for (int64_t block = blockIdx.x; block < p.row_blocks; block += gridDim.x) {
    const double value = RowBlockFigure(p, figure, block, piece);
    if (LaneInWarp() == 0) p.partials[figure * p.row_blocks + block] = value;
  }
}

__global__ void __launch_bounds__(kTotalWarps* kWarpThreads) CloseTotalsKernel(TotalArguments p) {
  const int figure = WarpInBlock();
  const double* partials = p.partials + figure * p.row_blocks;
  if (figure == kChains) {
    const float largest = WarpLargest(partials, p.row_blocks);
    if (LaneInWarp() == 0) p.arrays.summary->largest_miss = largest;
    return;
  }
  double* piece = SharedMemory<double>() + figure * kChainPiece;
  const double sum = WarpChain(0, partials, p.row_blocks, piece);
  if (LaneInWarp() == 0) p.arrays.summary->close_sums[figure] = sum;
}

}  // namespace

// ================================================================ host

int LaunchCloseSums(const CudaTensor& tensor, const EncodeArguments& p, CudaStream stream) {
  // An eighth of the groups of a strand, and those of a row that is only begun.
  const int64_t groups =
      (p.range.last - p.range.first) / kCloseRowStep + 2 * tensor.groups_per_row;
  const LaunchShape shape =
      WarpPerUnit((groups + kQuadsPerWarp - 1) / kQuadsPerWarp, kWarpsPerBlock, 0);
  return ForDtype(p.range.strands[0].dtype, [&](auto dtype) {
    return ForCoding(CodingOf(tensor), [&](auto coding) {
      return LaunchKernel(CloseKernel<dtype.value, coding.value>, shape, stream, p);
    });
  });
}

int LaunchSumFigures(const CudaTensor& tensor, const DeviceArrays& arrays, CudaStream stream) {
  const TotalArguments p{arrays, static_cast<double*>(arrays.partials), tensor.rows,
                         tensor.groups_per_row, RowBlocks(tensor.rows)};
  const int threads = kTotalWarps * kWarpThreads;
  const LaunchShape blocks =
      BlockPerUnit(p.row_blocks, threads, kTotalWarps * kChainPiece * sizeof(float));
  const LaunchShape totals = BlockPerUnit(1, threads, kTotalWarps * kChainPiece * sizeof(double));
  return FirstError({LaunchKernel(CloseRowBlocksKernel, blocks, stream, p),
                     LaunchKernel(CloseTotalsKernel, totals, stream, p)});
}

}  // namespace sinq::kernels
