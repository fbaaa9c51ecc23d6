// Storing column scales, scales and zeros on a CUDA device: README.md sections 4 (storage), 5, 8.3
// and 8.4.
//
// Launch shape. All of this touches g times less than the weights, so the shapes are the plainest:
// the extremes of a tensor by a fixed number of blocks and then by one, everything else with a
// thread for each value (for each column of 32 values of the 8-bit scales; neighbouring columns are
// neighbours in memory).
#include "kernels/cuda_launch.h"
#include "kernels/cuda_panel.h"
#include "kernels/cuda_primitives.cuh"
#include "kernels/cuda_steps.h"
#include "kernels/cuda_stored.cuh"
#include "kernels/half.h"
#include "kernels/pack_cuda.cuh"

namespace sinq::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpThreads;
constexpr float kF16Max = 65504.0f;
constexpr int kAuxStrands = 32;

// What becomes of the zeros.
enum class ZeroStorage : uint8_t {
  kNone,      // nothing: the format knows them
  kEach,      // one for each group
  kShared,    // one for the tensor
  kGrid,      // 8 bits
  kMinimum,   // GGUF Q4_1: -zero * scale instead
};

// Planes of 8-bit values; null: stored nowhere (dense).
struct GridPlanes {
  uint8_t* codes;
  uint16_t* steps;
  uint16_t* minima;
};

struct StoreParams {
  DeviceArrays arrays;
  StorePartial* partials;
  int partial_count;
  int64_t columns, groups, rows, groups_per_row;
  int64_t square_rows;  // groups are stored by squares of this many rows; 0: by rows
  AuxStorage aux;
  ZeroStorage zeros;
  bool upstream;
  bool centres;     // moves a power of two between scales and t
  bool transposed;  // scales are stored by columns of groups
  void* column_plane;
  void* scale_plane;  // not of 8 bits
  void* zero_plane;   // kEach, kShared
  GridPlanes scale_grid, zero_grid;
};

// ================================================================ device

// ---------------------------------------------------------------- extremes of the tensor

__device__ StorePartial Merge(const StorePartial& a, const StorePartial& b) {
  return {Max(a.largest_scale, b.largest_scale), Max(a.largest_column, b.largest_column),
          Min(a.smallest_zero, b.smallest_zero), Max(a.largest_zero, b.largest_zero)};
}

// Over the block's threads; valid in thread 0.
__device__ StorePartial BlockMerge(StorePartial mine, StorePartial* by_warp) {
  mine = {WarpMax(mine.largest_scale), WarpMax(mine.largest_column),
          WarpMin(mine.smallest_zero), WarpMax(mine.largest_zero)};
  if (LaneInWarp() == 0) by_warp[WarpInBlock()] = mine;
  BlockBarrier();
  for (int warp = 0; warp < kWarps; ++warp) mine = Merge(mine, by_warp[warp]);
  return mine;
}

// What GGUF Q4_1 stores beside the scale, before it is rounded. No power of two is moved there.
__device__ float MinimumOf(float zero, float scale, AuxStorage aux) {
  return Mul(-zero, Add(RoundStored(scale, aux), 0.0f));
}

// A NaN would be lost in a maximum; it fits no storage either.
__device__ float NanToInfinity(float x) { return x == x ? x : INFINITY; }

__global__ void __launch_bounds__(kThreads) ExtremesKernel(StoreParams p) {
  const float zero = NanToInfinity(p.arrays.zero[0]);
  StorePartial mine{0, 0, zero, zero};
  if (p.zeros == ZeroStorage::kMinimum) mine.smallest_zero = mine.largest_zero = 0;
  for (int64_t e = GlobalThread(); e < p.groups; e += GlobalThreads()) {
    const float scale = p.arrays.scale[e];
    const float z = NanToInfinity(p.zeros == ZeroStorage::kMinimum
                                      ? MinimumOf(p.arrays.zero[e], scale, p.aux)
                                      : p.arrays.zero[e]);
    mine = Merge(mine, {NanToInfinity(Magnitude(scale)), 0, z, z});
  }
  for (int64_t k = GlobalThread(); k < p.columns; k += GlobalThreads())
    mine.largest_column = Max(mine.largest_column, Magnitude(p.arrays.column[k]));
  mine = BlockMerge(mine, SharedMemory<StorePartial>());
  if (ThreadInBlock() == 0) p.partials[blockIdx.x] = mine;
}

// The power of two that goes from the scales to t, to keep both clear of the ends of F16.
__device__ float CentringFactor(const StorePartial& all) {
  if (all.largest_scale == 0) return 1.0f;
  return PowerOfTwo(FloorHalf(FloorLog2(all.largest_scale) - FloorLog2(all.largest_column)));
}

__device__ unsigned FaultsOf(const StoreParams& p, const DeviceSummary& summary) {
  // A value of 8 bits lies between a minimum and a step that are F16 each.
  const bool scale_fits = p.aux == AuxStorage::kU8 ? summary.largest_scale <= kF16Max
                                                   : FitsStored(summary.largest_scale, p.aux);
  const bool zero_fits = p.zeros == ZeroStorage::kGrid ? summary.largest_zero <= kF16Max
                                                       : FitsStored(summary.largest_zero, p.aux);
  return (FitsStored(summary.largest_column, p.aux) ? 0u : kColumnScaleFault) |
         (scale_fits ? 0u : kScaleFault) |
         (zero_fits || p.zeros == ZeroStorage::kNone ? 0u : kZeroFault);
}

__global__ void __launch_bounds__(kThreads) SummaryKernel(StoreParams p) {
  StorePartial mine = p.partials[0];
  for (int n = ThreadInBlock(); n < p.partial_count; n += kThreads)
    mine = Merge(mine, p.partials[n]);
  mine = BlockMerge(mine, SharedMemory<StorePartial>());
  if (ThreadInBlock() != 0) return;
  DeviceSummary& summary = *p.arrays.summary;
  const float up = p.centres ? CentringFactor(mine) : 1.0f;
  summary.column_factor = up;
  summary.largest_column = Mul(mine.largest_column, up);
  summary.largest_scale = Mul(mine.largest_scale, Div(1.0f, up));
  summary.largest_zero = Max(Magnitude(mine.smallest_zero), Magnitude(mine.largest_zero));
  summary.faults = FaultsOf(p, summary);
  // Thread 0 alone reads and writes these two, here and in the kernels after this one.
  p.partials[0] = mine;
}

// ---------------------------------------------------------------- one value after the other

__global__ void __launch_bounds__(kThreads) StoreColumnsKernel(StoreParams p) {
  const float up = p.arrays.summary->column_factor;
  for (int64_t k = GlobalThread(); k < p.columns; k += GlobalThreads()) {
    const float t = StoreValue(Mul(p.arrays.column[k], up), p.aux, p.column_plane, k);
    p.arrays.column[k] = t;
    if (!p.upstream) p.arrays.inverse_column[k] = Reciprocal(t);
  }
}

// Where the group that is stored at `place` lies in the arrays: in squares (section 8.4) groups are
// stored by tile, then by row in the tile.
__device__ int64_t GroupAt(const StoreParams& p, int64_t place) {
  if (p.square_rows == 0) return place;
  const int64_t tile = Quotient(place, p.square_rows), row = place - tile * p.square_rows;
  const int64_t band = Quotient(tile, p.groups_per_row), j = tile - band * p.groups_per_row;
  return (band * p.square_rows + row) * p.groups_per_row + j;
}

__device__ int64_t PlaceInPlane(const StoreParams& p, int64_t place) {
  if (!p.transposed) return place;
  const int64_t row = Quotient(place, p.groups_per_row);
  return (place - row * p.groups_per_row) * p.rows + row;
}

// m = -z * s, and the zero that m and s stand for.
__device__ void StoreMinimum(const StoreParams& p, int64_t e, float scale) {
  const float minimum =
      Add(RoundStored(MinimumOf(p.arrays.zero[e], scale, p.aux), p.aux), 0.0f);
  p.arrays.minimum[e] = minimum;
  p.arrays.zero[e] = scale == 0 ? 0.0f : Add(Mul(-minimum, Div(1.0f, scale)), 0.0f);
}

// Scales, and the zeros where each group has its own.
__global__ void __launch_bounds__(kThreads) StorePlainKernel(StoreParams p) {
  const float down = Div(1.0f, p.arrays.summary->column_factor);
  for (int64_t n = GlobalThread(); n < p.groups; n += GlobalThreads()) {
    const int64_t e = GroupAt(p, n), at = PlaceInPlane(p, n);
    const float scale = StoreValue(Mul(p.arrays.scale[e], down), p.aux, p.scale_plane, at);
    p.arrays.scale[e] = scale;
    if (p.zeros == ZeroStorage::kEach)
      p.arrays.zero[e] = StoreValue(p.arrays.zero[e], p.aux, p.zero_plane, at);
    if (p.zeros == ZeroStorage::kMinimum) StoreMinimum(p, e, scale);
  }
}

// The one zero of the symmetric planes; every group has the same, and F16 holds it exactly.
__global__ void __launch_bounds__(kWarpThreads) StoreSharedZeroKernel(StoreParams p) {
  if (GlobalThread() == 0) StoreValue(p.arrays.zero[0], p.aux, p.zero_plane, 0);
}

// ---------------------------------------------------------------- 8 bits

// What codes of one column are made with, and what F16 holds of it.
struct AuxGrid {
  float minimum, step, stored_minimum, stored_step;
};

__device__ AuxGrid MakeGrid(float low, float high, bool upstream) {
  if (upstream) {
    const float step = Div(Sub(high, low), 255.0f);
    return {low, step, RoundToF16(low), RoundToF16(step)};
  }
  const float minimum = F16Below(low);
  const float step = F16Above(Div(Sub(high, minimum), 255.0f));
  return {minimum, step, minimum, step};
}

// Returns what a reader sees.
__device__ float EncodeAux(float value, const AuxGrid& grid, uint8_t* codes, int64_t place) {
  const float exact = Div(Sub(value, grid.minimum), grid.step);
  const float q = grid.step == 0 ? 0.0f : Clamp(RoundEven(exact), 0.0f, 255.0f);
  if (codes != nullptr) codes[place] = static_cast<uint8_t>(q);
  return RoundToF16(Add(RoundToF16(Mul(q, grid.stored_step)), grid.stored_minimum));
}

__device__ void StoreGrid(const AuxGrid& grid, const GridPlanes& out, int64_t column) {
  if (out.codes == nullptr) return;
  out.steps[column] = FloatToF16(grid.step);
  out.minima[column] = FloatToF16(grid.minimum);
}

__global__ void __launch_bounds__(kThreads) StoreScaleCodesKernel(StoreParams p) {
  const GridPlanes& out = p.scale_grid;
  const float down = Div(1.0f, p.arrays.summary->column_factor);
  const int64_t columns = p.groups / kAuxStrands;
  for (int64_t c = GlobalThread(); c < columns; c += GlobalThreads()) {
    float low = Mul(p.arrays.scale[GroupAt(p, c)], down), high = low;
    for (int i = 1; i < kAuxStrands; ++i) {
      const float value = Mul(p.arrays.scale[GroupAt(p, c + i * columns)], down);
      low = Min(low, value);
      high = Max(high, value);
    }
    const AuxGrid grid = MakeGrid(low, high, p.upstream);
    StoreGrid(grid, out, c);
    for (int i = 0; i < kAuxStrands; ++i) {
      const int64_t place = c + i * columns, e = GroupAt(p, place);
      p.arrays.scale[e] = EncodeAux(Mul(p.arrays.scale[e], down), grid, out.codes, place);
    }
  }
}

__global__ void __launch_bounds__(kThreads) StoreZeroCodesKernel(StoreParams p) {
  const GridPlanes& out = p.zero_grid;
  const AuxGrid grid =
      MakeGrid(p.partials[0].smallest_zero, p.partials[0].largest_zero, p.upstream);
  if (GlobalThread() == 0) StoreGrid(grid, out, 0);
  for (int64_t n = GlobalThread(); n < p.groups; n += GlobalThreads()) {
    const int64_t e = GroupAt(p, n);
    p.arrays.zero[e] = EncodeAux(p.arrays.zero[e], grid, out.codes, n);
  }
}

// ---------------------------------------------------------------- integer zeros, in words

struct ZeroParams {
  const float* zero;
  unsigned* words;
  int64_t rows, groups_per_row, row_words;
  int bits;
  bool words_down;  // [words, groups per row], else [groups per row, words]
  bool awq;         // eight rows share a word, in AWQ's order
  unsigned same;    // symmetric: what all zeros are; else 0
  unsigned less;    // GPTQ v1: 1
};

__device__ unsigned StoredZero(const ZeroParams& p, int64_t row, int64_t j) {
  const unsigned zero = p.same != 0 ? p.same
                                    : static_cast<unsigned>(p.zero[row * p.groups_per_row + j]);
  return zero - p.less;
}

// Word `w` of the stream that the zeros of group column `j` make.
__device__ unsigned ZeroWord(const ZeroParams& p, int64_t w, int64_t j) {
  unsigned word = 0;
  if (p.awq) {
    for (int c = 0; c < 8; ++c) word |= StoredZero(p, 8 * w + c, j) << (4 * AwqNibble(c));
    return word;
  }
  int64_t row = Quotient(32 * w, p.bits);
  for (; row * p.bits < 32 * (w + 1) && row < p.rows; ++row)
    word |= FieldInWord(StoredZero(p, row, j), static_cast<int>(row * p.bits - 32 * w));
  return word;
}

__global__ void __launch_bounds__(kThreads) PackZerosKernel(ZeroParams p) {
  const int64_t count = p.row_words * p.groups_per_row;
  for (int64_t n = GlobalThread(); n < count; n += GlobalThreads()) {
    const int64_t w = Quotient(n, p.groups_per_row), j = n - w * p.groups_per_row;
    p.words[p.words_down ? n : j * p.row_words + w] = ZeroWord(p, w, j);
  }
}

// ================================================================ host

bool HoldsColumnScale(Layout layout) { return layout == Layout::kSinq || layout == Layout::kDense; }
bool IsGguf(Layout layout) {
  return layout == Layout::kGgufQ4_0 || layout == Layout::kGgufQ4_1 || layout == Layout::kGgufQ8_0;
}

ZeroStorage ZeroStorageOf(const CudaTensor& tensor) {
  const Layout layout = tensor.params.layout;
  if (layout == Layout::kGgufQ4_1) return ZeroStorage::kMinimum;
  if (layout == Layout::kHqq) return ZeroStorage::kEach;
  if (!HoldsColumnScale(layout)) return ZeroStorage::kNone;
  if (tensor.params.symmetric) return ZeroStorage::kShared;
  return tensor.aux == AuxStorage::kU8 ? ZeroStorage::kGrid : ZeroStorage::kEach;
}

GridPlanes GridFrom(void* const* planes) {
  return {static_cast<uint8_t*>(planes[0]), static_cast<uint16_t*>(planes[1]),
          static_cast<uint16_t*>(planes[2])};
}

// Which plane is what; dense tensors have none of them.
void AssignPlanes(const CudaTensor& tensor, const DevicePlanes& planes, StoreParams& p) {
  void* const* plane = planes.plane;
  if (!HoldsColumnScale(tensor.params.layout)) {
    if (IsGguf(tensor.params.layout)) return;
    p.scale_plane = plane[1];
    p.zero_plane = plane[2];
  } else if (tensor.params.layout == Layout::kSinq) {
    p.column_plane = plane[1];
    const bool u8 = tensor.aux == AuxStorage::kU8;
    const int grid = tensor.params.symmetric ? 3 : 2;
    p.scale_plane = plane[2];
    p.zero_plane = plane[u8 ? 2 : 3];
    p.scale_grid = GridFrom(plane + grid);
    p.zero_grid = GridFrom(plane + 5);
  }
}

StoreParams ParamsOf(const CudaTensor& tensor, const DeviceArrays& arrays,
                     const DevicePlanes& planes) {
  const QuantParams& params = tensor.params;
  StoreParams p{};
  p.arrays = arrays;
  p.partials = static_cast<StorePartial*>(arrays.partials);
  p.columns = tensor.columns;
  p.groups = tensor.groups;
  p.rows = tensor.rows;
  p.groups_per_row = tensor.groups_per_row;
  p.square_rows = params.tiling == Tiling::k2D ? tensor.group : 0;
  p.aux = tensor.aux;
  p.zeros = ZeroStorageOf(tensor);
  p.upstream = params.profile == Profile::kUpstream;
  p.centres = !p.upstream && HoldsColumnScale(params.layout) && params.own_column_scale &&
              RoundingOf(params.method) != Rounding::kHadamard;
  p.transposed = params.layout == Layout::kAwq || params.layout == Layout::kGptq ||
                 params.layout == Layout::kGptqV2;
  AssignPlanes(tensor, planes, p);
  return p;
}

int LaunchValues(const StoreParams& p, CudaStream stream) {
  const LaunchShape values = ThreadPerUnit(p.groups, kThreads);
  const LaunchShape columns = ThreadPerUnit(p.groups / kAuxStrands, kThreads);
  const int error = p.aux == AuxStorage::kU8
                        ? LaunchKernel(StoreScaleCodesKernel, columns, stream, p)
                        : LaunchKernel(StorePlainKernel, values, stream, p);
  if (error != 0) return error;
  if (p.zeros == ZeroStorage::kGrid) return LaunchKernel(StoreZeroCodesKernel, values, stream, p);
  if (p.zeros != ZeroStorage::kShared) return 0;
  return LaunchKernel(StoreSharedZeroKernel, BlockPerUnit(1, kWarpThreads, 0), stream, p);
}

int LaunchPackZeros(const CudaTensor& tensor, const DeviceArrays& arrays, void* plane,
                    CudaStream stream) {
  const Layout layout = tensor.params.layout;
  ZeroParams p{};
  p.zero = arrays.zero;
  p.words = static_cast<unsigned*>(plane);
  p.rows = tensor.rows;
  p.groups_per_row = tensor.groups_per_row;
  p.bits = tensor.params.bits;
  p.row_words = (tensor.rows * p.bits + 31) / 32;
  p.words_down = layout == Layout::kCompressedTensors;
  p.awq = layout == Layout::kAwq;
  p.same = tensor.params.symmetric ? 1u << (p.bits - 1) : 0u;
  p.less = layout == Layout::kGptq ? 1u : 0u;
  return LaunchKernel(PackZerosKernel, ThreadPerUnit(p.row_words * p.groups_per_row, kThreads),
                      stream, p);
}

bool HasPackedZeros(const CudaTensor& tensor) {
  const Layout layout = tensor.params.layout;
  if (layout == Layout::kCompressedTensors) return !tensor.params.symmetric;
  return layout == Layout::kAwq || layout == Layout::kGptq || layout == Layout::kGptqV2;
}

}  // namespace

int LaunchStore(const CudaTensor& tensor, const DeviceArrays& arrays, const DevicePlanes& planes,
                CudaStream stream) {
  LaunchShape extremes = ThreadPerUnit(tensor.groups, kThreads);
  extremes.grid = extremes.grid < kMaxStorePartials ? extremes.grid : kMaxStorePartials;
  extremes.shared_bytes = kWarps * sizeof(StorePartial);
  StoreParams p = ParamsOf(tensor, arrays, planes);
  p.partial_count = static_cast<int>(extremes.grid);
  const LaunchShape summary = BlockPerUnit(1, kThreads, extremes.shared_bytes);
  const int error =
      FirstError({LaunchKernel(ExtremesKernel, extremes, stream, p),
                  LaunchKernel(SummaryKernel, summary, stream, p),
                  LaunchKernel(StoreColumnsKernel, ThreadPerUnit(p.columns, kThreads), stream, p),
                  LaunchValues(p, stream)});
  if (error != 0 || !HasPackedZeros(tensor)) return error;
  return LaunchPackZeros(tensor, arrays, planes.plane[2], stream);
}

}  // namespace sinq::kernels
