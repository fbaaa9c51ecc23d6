// Storing column scales, scales and zeros on a CUDA device: README.md sections 4 (storage) and 5.
//
// Launch shape. All of this touches g times less than the weights, so the shapes are the plainest:
// the extremes of a tensor by a fixed number of blocks and then by one, everything else with a
// thread for each value (for each column of 32 values of the 8-bit scales; neighbouring columns are
// neighbours in memory).
#include "kernels/cuda_launch.h"
#include "kernels/cuda_panel.h"
#include "kernels/cuda_primitives.cuh"
#include "kernels/cuda_steps.h"
#include "kernels/half.h"

namespace sinq::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpThreads;
constexpr float kF16Max = 65504.0f;
constexpr float kF16Overflow = 65520.0f;  // rounds to 65536
constexpr int kAuxStrands = 32;

struct StoreParams {
  DeviceArrays arrays;
  DevicePlanes planes;
  StorePartial* partials;
  int partial_count;
  int64_t cols, groups;
  bool upstream, symmetric, u8;
};

// Planes beyond the codes and t, wherever this variant has them.
struct AuxPlanes {
  uint8_t* codes;
  uint16_t* steps;
  uint16_t* minima;
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

__global__ void __launch_bounds__(kThreads) ExtremesKernel(StoreParams p) {
  const float zero = p.arrays.zero[0];
  StorePartial mine{0, 0, zero, zero};
  for (int64_t e = GlobalThread(); e < p.groups; e += GlobalThreads()) {
    const float z = p.arrays.zero[e];
    mine = Merge(mine, {Magnitude(p.arrays.scale[e]), 0, z, z});
  }
  for (int64_t k = GlobalThread(); k < p.cols; k += GlobalThreads())
    mine.largest_column = Max(mine.largest_column, Magnitude(p.arrays.column[k]));
  mine = BlockMerge(mine, SharedMemory<StorePartial>());
  if (ThreadInBlock() == 0) p.partials[blockIdx.x] = mine;
}

// The power of two that goes from the scales to t, to keep both clear of the ends of F16.
__device__ float CentringFactor(const StorePartial& all) {
  if (all.largest_scale == 0) return 1.0f;
  return PowerOfTwo(FloorHalf(Log2(all.largest_scale) - Log2(all.largest_column)));
}

__device__ unsigned FaultsOf(const StoreParams& p, const DeviceSummary& summary) {
  const bool plain = !p.u8;
  // A scale of 8 bits lies between a minimum and a step that are F16 each.
  const bool scale_fits = plain ? summary.largest_scale < kF16Overflow
                                : summary.largest_scale <= kF16Max;
  const bool zero_fits = plain || p.symmetric ? summary.largest_zero < kF16Overflow
                                              : summary.largest_zero <= kF16Max;
  return (summary.largest_column < kF16Overflow ? 0u : kColumnScaleFault) |
         (scale_fits ? 0u : kScaleFault) | (zero_fits ? 0u : kZeroFault);
}

__global__ void __launch_bounds__(kThreads) SummaryKernel(StoreParams p) {
  StorePartial mine = p.partials[0];
  for (int n = ThreadInBlock(); n < p.partial_count; n += kThreads)
    mine = Merge(mine, p.partials[n]);
  mine = BlockMerge(mine, SharedMemory<StorePartial>());
  if (ThreadInBlock() != 0) return;
  DeviceSummary& summary = *p.arrays.summary;
  const float up = p.upstream ? 1.0f : CentringFactor(mine);
  summary.column_factor = up;
  summary.largest_column = Mul(mine.largest_column, up);
  summary.largest_scale = Mul(mine.largest_scale, Div(1.0f, up));
  summary.largest_zero = Max(Magnitude(mine.smallest_zero), Magnitude(mine.largest_zero));
  summary.faults = FaultsOf(p, summary);
  // Thread 0 alone reads and writes these two, here and in the kernels after this one.
  p.partials[0] = mine;
}

// ---------------------------------------------------------------- F16

// Stores a value and returns what a reader sees. Adding 0 turns -0 into 0.
__device__ float StoreF16(float value, uint16_t* out) {
  const float rounded = Add(RoundToF16(value), 0.0f);
  *out = FloatToF16(rounded);
  return rounded;
}

__global__ void __launch_bounds__(kThreads) StoreColumnsKernel(StoreParams p) {
  auto* out = static_cast<uint16_t*>(p.planes.plane[1]);
  const float up = p.arrays.summary->column_factor;
  for (int64_t k = GlobalThread(); k < p.cols; k += GlobalThreads()) {
    const float t = StoreF16(Mul(p.arrays.column[k], up), out + k);
    p.arrays.column[k] = t;
    if (!p.upstream) p.arrays.inverse_column[k] = Reciprocal(t);
  }
}

// Scales, and the zeros where each group has its own.
__global__ void __launch_bounds__(kThreads) StorePlainKernel(StoreParams p) {
  auto* scales = static_cast<uint16_t*>(p.planes.plane[2]);
  auto* zeros = static_cast<uint16_t*>(p.planes.plane[3]);
  const float down = Div(1.0f, p.arrays.summary->column_factor);
  for (int64_t e = GlobalThread(); e < p.groups; e += GlobalThreads()) {
    p.arrays.scale[e] = StoreF16(Mul(p.arrays.scale[e], down), scales + e);
    if (!p.symmetric) p.arrays.zero[e] = StoreF16(p.arrays.zero[e], zeros + e);
  }
}

// The one zero of the symmetric planes; every group has the same, and F16 holds it exactly.
__global__ void __launch_bounds__(kWarpThreads) StoreSharedZeroKernel(StoreParams p) {
  if (GlobalThread() != 0) return;
  auto* zero = static_cast<uint16_t*>(p.planes.plane[p.u8 ? 2 : 3]);
  p.arrays.zero[0] = StoreF16(p.arrays.zero[0], zero);
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
__device__ float EncodeAux(float value, const AuxGrid& grid, uint8_t* code) {
  const float exact = Div(Sub(value, grid.minimum), grid.step);
  const float q = grid.step == 0 ? 0.0f : Clamp(RoundEven(exact), 0.0f, 255.0f);
  *code = static_cast<uint8_t>(q);
  return RoundToF16(Add(RoundToF16(Mul(q, grid.stored_step)), grid.stored_minimum));
}

__device__ AuxPlanes PlanesFrom(const StoreParams& p, int first) {
  return {static_cast<uint8_t*>(p.planes.plane[first]),
          static_cast<uint16_t*>(p.planes.plane[first + 1]),
          static_cast<uint16_t*>(p.planes.plane[first + 2])};
}

__global__ void __launch_bounds__(kThreads) StoreScaleCodesKernel(StoreParams p) {
  const AuxPlanes out = PlanesFrom(p, p.symmetric ? 3 : 2);
  const float down = Div(1.0f, p.arrays.summary->column_factor);
  const int64_t columns = p.groups / kAuxStrands;
  for (int64_t c = GlobalThread(); c < columns; c += GlobalThreads()) {
    float low = Mul(p.arrays.scale[c], down), high = low;
    for (int i = 1; i < kAuxStrands; ++i) {
      const float value = Mul(p.arrays.scale[c + i * columns], down);
      low = Min(low, value);
      high = Max(high, value);
    }
    const AuxGrid grid = MakeGrid(low, high, p.upstream);
    out.steps[c] = FloatToF16(grid.step);
    out.minima[c] = FloatToF16(grid.minimum);
    for (int i = 0; i < kAuxStrands; ++i) {
      const int64_t e = c + i * columns;
      p.arrays.scale[e] = EncodeAux(Mul(p.arrays.scale[e], down), grid, out.codes + e);
    }
  }
}

__global__ void __launch_bounds__(kThreads) StoreZeroCodesKernel(StoreParams p) {
  const AuxPlanes out = PlanesFrom(p, 5);
  const AuxGrid grid =
      MakeGrid(p.partials[0].smallest_zero, p.partials[0].largest_zero, p.upstream);
  if (GlobalThread() == 0) {
    out.steps[0] = FloatToF16(grid.step);
    out.minima[0] = FloatToF16(grid.minimum);
  }
  for (int64_t e = GlobalThread(); e < p.groups; e += GlobalThreads())
    p.arrays.zero[e] = EncodeAux(p.arrays.zero[e], grid, out.codes + e);
}

// ================================================================ host

int LaunchValues(const StoreParams& p, CudaStream stream) {
  const LaunchShape values = ThreadPerUnit(p.groups, kThreads);
  if (!p.u8) {
    const int error = LaunchKernel(StorePlainKernel, values, stream, p);
    if (error != 0 || !p.symmetric) return error;
    return LaunchKernel(StoreSharedZeroKernel, BlockPerUnit(1, kWarpThreads, 0), stream, p);
  }
  const int error = LaunchKernel(StoreScaleCodesKernel,
                                 ThreadPerUnit(p.groups / kAuxStrands, kThreads), stream, p);
  if (error != 0) return error;
  if (!p.symmetric) return LaunchKernel(StoreZeroCodesKernel, values, stream, p);
  return LaunchKernel(StoreSharedZeroKernel, BlockPerUnit(1, kWarpThreads, 0), stream, p);
}

}  // namespace

int LaunchStore(const CudaTensor& tensor, const DeviceArrays& arrays, const DevicePlanes& planes,
                CudaStream stream) {
  LaunchShape extremes = ThreadPerUnit(tensor.groups, kThreads);
  extremes.grid = extremes.grid < kMaxStorePartials ? extremes.grid : kMaxStorePartials;
  extremes.shared_bytes = kWarps * sizeof(StorePartial);
  const StoreParams p{arrays,
                      planes,
                      static_cast<StorePartial*>(arrays.partials),
                      static_cast<int>(extremes.grid),
                      tensor.cols,
                      tensor.groups,
                      tensor.params.profile == Profile::kUpstream,
                      tensor.params.symmetric,
                      tensor.aux == AuxStorage::kU8};
  const LaunchShape summary = BlockPerUnit(1, kThreads, extremes.shared_bytes);
  const int error =
      FirstError({LaunchKernel(ExtremesKernel, extremes, stream, p),
                  LaunchKernel(SummaryKernel, summary, stream, p),
                  LaunchKernel(StoreColumnsKernel, ThreadPerUnit(p.cols, kThreads), stream, p)});
  return error != 0 ? error : LaunchValues(p, stream);
}

}  // namespace sinq::kernels
