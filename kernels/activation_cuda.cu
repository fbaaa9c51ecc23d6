// What surrounds the search of the activation-aware methods on a CUDA device: README.md section 10,
// the magnitudes of inputs and columns, the candidates, the winner, and step 5. The errors of the
// candidates, which are nearly all of the work: activation_search_cuda.cu.
//
// Launch shape. Column sums of |w| as in section 1: a thread for four columns of a block of 32
// rows, then one for each column. Magnitudes of inputs: a thread for each column, whose chain over
// the samples is fp64. Candidates: a block for each alpha, because c is divided by the extremes of
// its own. The winner: a warp for each alpha adds up the row blocks in order.
#include "kernels/activation_rules.h"
#include "kernels/cuda_chain.cuh"
#include "kernels/cuda_launch.h"
#include "kernels/cuda_panel.h"
#include "kernels/cuda_steps.h"
#include "kernels/cuda_stored.cuh"
#include "kernels/cuda_weights.cuh"
#include "kernels/deterministic_math.h"
#include "kernels/group_cuda.cuh"

namespace sinq::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpThreads;
constexpr int kChoosingThreads = kAlphaSteps * kWarpThreads;

struct NoteArguments {
  DeviceWeights weights;
  PanelArrays panel;
  DeviceArrays arrays;
  int64_t rows, first_tile, tiles;
  int64_t first_col, cols;  // of the panel
};

struct CandidateArguments {
  DeviceInputs inputs;
  DeviceArrays arrays;
  int64_t cols, row_blocks;
};

struct ScaleArguments {
  PanelArrays panel;
  DeviceArrays arrays;
  int64_t first_tile, tiles, tiles_per_band, cols;
  int group;
  AuxStorage storage;  // what the column scale is rounded to
  bool upstream;
};

// ================================================================ device

// ---------------------------------------------------------------- magnitudes

template <WeightDtype kDtype>
__global__ void __launch_bounds__(kThreads) SumMagnitudesKernel(NoteArguments p) {
  const int64_t fours = p.cols / 4;
  for (int64_t n = GlobalThread(); n < p.panel.row_blocks * fours; n += GlobalThreads()) {
    const int64_t block = Quotient(n, fours), col = (n - block * fours) * 4;
    const int64_t first = block * kRowsPerBlock, left = p.rows - first;
    const int rows = static_cast<int>(left < kRowsPerBlock ? left : kRowsPerBlock);
    const WeightCursor<kDtype> weights(p.weights, first, p.first_col + col);
    float sum[4] = {};
#pragma unroll 8
    for (int row = 0; row < rows; ++row) {
      const Four w = weights.Values(weights.Raw(row, 0));
      for (int i = 0; i < 4; ++i) sum[i] = Add(sum[i], Magnitude(w.value[i]));
    }
    *reinterpret_cast<float4*>(p.panel.magnitude + block * p.cols + col) =
        make_float4(sum[0], sum[1], sum[2], sum[3]);
  }
}

__global__ void __launch_bounds__(kThreads) WeightMagnitudesKernel(NoteArguments p) {
  for (int64_t k = GlobalThread(); k < p.cols; k += GlobalThreads()) {
    double sum = 0;
#pragma unroll 8
    for (int64_t b = 0; b < p.panel.row_blocks; ++b)
      sum = Add(sum, static_cast<double>(p.panel.magnitude[b * p.cols + k]));
    p.arrays.weight_magnitude[p.first_col + k] =
        __double2float_rn(Div(sum, static_cast<double>(p.rows)));
  }
}

// Keeps r of the balanced tiles.
__global__ void __launch_bounds__(kThreads) NoteRowsKernel(FitArguments p) {
  for (int64_t n = GlobalThread(); n < p.rows * p.tiles; n += GlobalThreads()) {
    const GroupPlace place = PlaceOf(p, n);
    p.arrays.row_factor[place.e] = RowScale(p.panel, place);
  }
}

__device__ float InputMagnitude(const CandidateArguments& p, int64_t k) {
  if (p.inputs.are_moments) return SquareRoot(Max(p.inputs.values[k * p.cols + k], 0.0f));
  double sum = 0;
#pragma unroll 8
  for (int64_t token = 0; token < p.inputs.rows; ++token)
    sum = Add(sum, static_cast<double>(Magnitude(p.inputs.values[token * p.cols + k])));
  return __double2float_rn(Div(sum, static_cast<double>(p.inputs.rows)));
}

__global__ void __launch_bounds__(kThreads) InputMagnitudesKernel(CandidateArguments p) {
  for (int64_t k = GlobalThread(); k < p.cols; k += GlobalThreads())
    p.arrays.input_magnitude[k] = InputMagnitude(p, k);
}

// ---------------------------------------------------------------- candidates

__device__ float UnscaledFactor(float input, float weight, double alpha) {
  const float important = Max(Power(input, alpha), kLeastFactor);
  const float spread = Add(Power(weight, Sub(1.0, alpha)), kLeastFactor);
  return Max(Div(important, spread), kLeastFactor);
}

struct ExtremesByWarp {
  float smallest[kWarps], largest[kWarps];
};

__global__ void __launch_bounds__(kThreads) CandidatesKernel(CandidateArguments p) {
  ExtremesByWarp& shared = *SharedMemory<ExtremesByWarp>();
  for (int64_t step = blockIdx.x; step < kAlphaSteps; step += gridDim.x) {
    const double alpha =
        Div(static_cast<double>(step), static_cast<double>(kAlphaSteps));
    float* factors = p.arrays.candidates + step * p.cols;
    float smallest = INFINITY, largest = 0;
    for (int64_t k = ThreadInBlock(); k < p.cols; k += kThreads) {
      const float c =
          UnscaledFactor(p.arrays.input_magnitude[k], p.arrays.weight_magnitude[k], alpha);
      factors[k] = c;
      smallest = Min(smallest, c);
      largest = Max(largest, c);
    }
    shared.smallest[WarpInBlock()] = WarpMin(smallest);
    shared.largest[WarpInBlock()] = WarpMax(largest);
    BlockBarrier();
    for (int warp = 0; warp < kWarps; ++warp) {
      smallest = Min(smallest, shared.smallest[warp]);
      largest = Max(largest, shared.largest[warp]);
    }
    const float middle = SquareRoot(Mul(largest, smallest));
    for (int64_t k = ThreadInBlock(); k < p.cols; k += kThreads)
      factors[k] = Div(factors[k], middle);
    BlockBarrier();  // before the extremes of the next step
  }
}

// ---------------------------------------------------------------- the winner

struct ChoosingBuffers {
  double piece[kAlphaSteps][kChainPiece];
  double total[kAlphaSteps];
};
static_assert(sizeof(ChoosingBuffers) <= kMaxSharedBytes);

__global__ void __launch_bounds__(kChoosingThreads) ChooseFactorKernel(CandidateArguments p) {
  ChoosingBuffers& shared = *SharedMemory<ChoosingBuffers>();
  const int step = WarpInBlock();
  const double total = WarpChain(0, p.arrays.search_error + step * p.row_blocks, p.row_blocks,
                                 shared.piece[step]);
  if (LaneInWarp() == 0) shared.total[step] = total;
  BlockBarrier();
  if (ThreadInBlock() != 0) return;
  int best = 0;
  for (int i = 1; i < kAlphaSteps; ++i) {
    const double least = shared.total[best];
    if (shared.total[i] < least || least != least) best = i;
  }
  p.arrays.summary->candidate = static_cast<uint32_t>(best);
}

// ---------------------------------------------------------------- t / c

// As the last kernel of LaunchBalance, with t/c for t.
__global__ void __launch_bounds__(kWarpThreads) ScaleColumnsKernel(ScaleArguments p) {
  const float* factors = p.arrays.candidates + p.arrays.summary->candidate * p.cols;
  for (int64_t tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
    const int64_t index = p.first_tile + tile, band = Quotient(index, p.tiles_per_band);
    const int64_t first_col = (index - band * p.tiles_per_band) * p.group;
    const float power = PowerOfTwo(p.panel.states[tile].exponent);
    for (int k = LaneInWarp(); k < p.group; k += kWarpThreads) {
      const int64_t at = index * p.group + k;
      const float scaled = Clamp(Div(p.arrays.column[at], factors[first_col + k]),
                                 kLeastColumnScale, kLargestColumnScale);
      const float t = RoundStored(scaled, p.storage), inverse = Div(1.0f, t);
      p.arrays.column[at] = t;
      if (p.upstream) p.arrays.inverse_column[at] = inverse;
      p.panel.factor[tile * p.group + k] = Mul(inverse, power);
    }
  }
}

// ================================================================ host

CandidateArguments CandidateArgumentsOf(const CudaTensor& tensor, const DeviceInputs& inputs,
                                        const DeviceArrays& arrays) {
  return {inputs, arrays, tensor.cols, RowBlocks(tensor.rows)};
}

}  // namespace

int LaunchNoteTiles(const CudaTensor& search, const DeviceWeights& weights, const TilePanel& panel,
                    const DeviceArrays& arrays, void* workspace, CudaStream stream) {
  NoteArguments p{};
  p.weights = weights;
  p.panel = LayOutPanel(search, panel.tiles, workspace);
  p.arrays = arrays;
  p.rows = search.rows;
  p.first_tile = panel.first_tile;
  p.tiles = panel.tiles;
  p.first_col = panel.first_tile * search.group;
  p.cols = panel.tiles * search.group;
  const LaunchShape sums = ThreadPerUnit(p.panel.row_blocks * (p.cols / 4), kThreads);
  const int error = FirstError(
      {ForDtype(weights.dtype,
                [&](auto dtype) {
                  return LaunchKernel(SumMagnitudesKernel<dtype.value>, sums, stream, p);
                }),
       LaunchKernel(WeightMagnitudesKernel, ThreadPerUnit(p.cols, kThreads), stream, p)});
  if (error != 0 || search.params.profile != Profile::kUpstream) return error;
  return LaunchKernel(NoteRowsKernel, ThreadPerUnit(search.rows * panel.tiles, kThreads), stream,
                      FitArgumentsOf(search, weights, panel, arrays, workspace));
}

int LaunchCandidates(const CudaTensor& tensor, const DeviceInputs& inputs,
                     const DeviceArrays& arrays, CudaStream stream) {
  const CandidateArguments p = CandidateArgumentsOf(tensor, inputs, arrays);
  const LaunchShape steps = BlockPerUnit(kAlphaSteps, kThreads, sizeof(ExtremesByWarp));
  return FirstError(
      {LaunchKernel(InputMagnitudesKernel, ThreadPerUnit(p.cols, kThreads), stream, p),
       LaunchKernel(CandidatesKernel, steps, stream, p)});
}

int LaunchChooseFactor(const CudaTensor& tensor, const DeviceArrays& arrays, CudaStream stream) {
  const LaunchShape shape = BlockPerUnit(1, kChoosingThreads, sizeof(ChoosingBuffers));
  return LaunchKernel(ChooseFactorKernel, shape, stream,
                      CandidateArgumentsOf(tensor, {}, arrays));
}

int LaunchScaleColumns(const CudaTensor& tensor, const TilePanel& panel,
                       const DeviceArrays& arrays, void* workspace, CudaStream stream) {
  ScaleArguments p{};
  p.panel = LayOutPanel(tensor, panel.tiles, workspace);
  p.arrays = arrays;
  p.first_tile = panel.first_tile;
  p.tiles = panel.tiles;
  p.tiles_per_band = tensor.groups_per_row;
  p.cols = tensor.cols;
  p.group = tensor.group;
  p.upstream = tensor.params.profile == Profile::kUpstream;
  p.storage = p.upstream ? AuxStorage::kF32 : tensor.aux;
  return LaunchKernel(ScaleColumnsKernel, BlockPerUnit(panel.tiles, kWarpThreads, 0), stream, p);
}

}  // namespace sinq::kernels
