// The dearer error figures on a CUDA device: README.md section 7, every eighth row, and the largest
// error of all.
//
// Launch shape. The sums of a group are the encoder's over again, a quad of threads each, in a
// kernel of its own: an eighth of the weights is read and coded twice, which costs the encoder
// neither registers nor branches. Only groups of those rows are walked. Their totals are five
// chains of fp64 additions, a warp each in one block: a latency and hardly any work, as in
// errors_cuda.cu.
#include "kernels/close_rows.h"
#include "kernels/cuda_chain.cuh"
#include "kernels/cuda_launch.h"
#include "kernels/encode_cuda.cuh"
#include "kernels/figures_cuda.h"

namespace sinq::kernels {
namespace {

constexpr int kWarpsPerBlock = 4;
constexpr int kChains = 5;
constexpr int kLargestThreads = 1024, kLargestWarps = kLargestThreads / kWarpThreads;

struct TotalArguments {
  DeviceArrays arrays;
  int64_t rows, groups_per_row, groups;
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

// Sums of all groups in the rows, one accumulator; valid in lane 0.
__device__ double SumOfCloseRows(const TotalArguments& p, const float* by_group, float* piece) {
  double sum = 0;
  for (int64_t row = 0; row < p.rows; row += kCloseRowStep)
    sum = WarpChain(sum, by_group + row * p.groups_per_row, p.groups_per_row, piece);
  return sum;
}

__global__ void __launch_bounds__(kChains* kWarpThreads) CloseTotalsKernel(TotalArguments p) {
  const int chain = WarpInBlock();
  float* piece = SharedMemory<float>() + chain * kChainPiece;
  const int64_t close = CloseGroupsBefore(p.groups, p.groups_per_row);
  double sum;
  if (chain < 2) {
    sum = SumOfCloseRows(p, chain == 0 ? p.arrays.error : p.arrays.power, piece);
  } else {
    sum = WarpChain(0, chain == 2   ? p.arrays.overlap
                       : chain == 3 ? p.arrays.balanced_error
                                    : p.arrays.balanced_power,
                    close, piece);
  }
  if (LaneInWarp() == 0) p.arrays.summary->close_sums[chain] = sum;
}

__global__ void __launch_bounds__(kLargestThreads) LargestKernel(TotalArguments p) {
  float* by_warp = SharedMemory<float>();
  float largest = 0;
  for (int64_t e = ThreadInBlock(); e < p.groups; e += kLargestThreads)
    largest = Max(largest, p.arrays.largest[e]);
  largest = WarpMax(largest);
  if (LaneInWarp() == 0) by_warp[WarpInBlock()] = largest;
  BlockBarrier();
  if (ThreadInBlock() != 0) return;
  for (int warp = 1; warp < kLargestWarps; ++warp) largest = Max(largest, by_warp[warp]);
  p.arrays.summary->largest_miss = largest;
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
  const TotalArguments p{arrays, tensor.rows, tensor.groups_per_row, tensor.groups};
  const LaunchShape chains =
      BlockPerUnit(1, kChains * kWarpThreads, kChains * kChainPiece * sizeof(float));
  const LaunchShape largest = BlockPerUnit(1, kLargestThreads, kLargestWarps * sizeof(float));
  return FirstError({LaunchKernel(CloseTotalsKernel, chains, stream, p),
                     LaunchKernel(LargestKernel, largest, stream, p)});
}

}  // namespace sinq::kernels
