// What the CUDA kernels are made of. Every arithmetic operation is one of these, each with a single
// rounding to nearest even: the compiler may not contract or reassociate them, so the order written
// is the order done. Names tell the cooperative scope: nothing (one thread), Quad (four
// neighbouring threads), Warp, Block. Atomics are not used anywhere.
#ifndef SINQ_KERNELS_CUDA_PRIMITIVES_CUH_
#define SINQ_KERNELS_CUDA_PRIMITIVES_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/launch_config.h"

namespace sinq::kernels {

// ---------------------------------------------------------------- one thread: arithmetic

__device__ __forceinline__ float Add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ float Sub(float a, float b) { return __fsub_rn(a, b); }
__device__ __forceinline__ float Mul(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float Div(float a, float b) { return __fdiv_rn(a, b); }
__device__ __forceinline__ float Fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ float SquareRoot(float a) { return __fsqrt_rn(a); }
__device__ __forceinline__ double Add(double a, double b) { return __dadd_rn(a, b); }
__device__ __forceinline__ double Sub(double a, double b) { return __dsub_rn(a, b); }
__device__ __forceinline__ double Mul(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ double Div(double a, double b) { return __ddiv_rn(a, b); }
__device__ __forceinline__ double SquareRoot(double a) { return __dsqrt_rn(a); }

// The other operand where one is not a number.
__device__ __forceinline__ float Min(float a, float b) { return fminf(a, b); }
__device__ __forceinline__ float Max(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ float Clamp(float x, float low, float high) {
  return Min(Max(x, low), high);
}
__device__ __forceinline__ float Magnitude(float x) { return fabsf(x); }
// To an integer, ties to even.
__device__ __forceinline__ float RoundEven(float x) { return rintf(x); }
// 1/x, 0 for 0.
__device__ __forceinline__ float Reciprocal(float x) { return x == 0 ? 0.0f : Div(1.0f, x); }

// RoundEven for |x| < 2^22 by two additions: at 1.5 * 2^23 numbers lie 1 apart, so the first
// rounds as RoundEven does. The rounding instruction has a quarter of an addition's rate.
inline constexpr float kRounder = 12582912.0f;
inline constexpr unsigned kRounderBits = 0x4b400000u;  // as binary32
__device__ __forceinline__ float RoundSmall(float x) { return Sub(Add(x, kRounder), kRounder); }
// The integer itself.
__device__ __forceinline__ int RoundSmallToInt(float x) {
  return static_cast<int>(__float_as_uint(Add(x, kRounder)) - kRounderBits);
}

// 2^exponent, -126 .. 127.
__device__ __forceinline__ float PowerOfTwo(int exponent) {
  return __uint_as_float(static_cast<unsigned>(exponent + 127) << 23);
}
// Floor of log2 of |x|, x not 0; 128 for infinity.
__device__ __forceinline__ int FloorLog2(float x) {
  const unsigned magnitude = __float_as_uint(x) & 0x7fffffffu;
  const int exponent = static_cast<int>(magnitude >> 23);
  return exponent != 0 ? exponent - 127 : -118 - __clz(static_cast<int>(magnitude));
}
// The same for a normal number.
__device__ __forceinline__ int FloorLog2(double x) {
  return static_cast<int>((__double_as_longlong(x) >> 52) & 0x7ff) - 1023;
}
__device__ __forceinline__ int FloorHalf(int x) { return x >= 0 ? x / 2 : -((1 - x) / 2); }
__device__ __forceinline__ int ClampInt(int x, int low, int high) {
  return x < low ? low : x > high ? high : x;
}

// ---------------------------------------------------------------- one thread: places

__device__ __forceinline__ int ThreadInBlock() { return static_cast<int>(threadIdx.x); }
__device__ __forceinline__ int LaneInWarp() { return ThreadInBlock() % kWarpThreads; }
__device__ __forceinline__ int WarpInBlock() { return ThreadInBlock() / kWarpThreads; }
// The first unit of a thread, warp or block that walks its units with the grid, and how far it
// steps.
__device__ __forceinline__ int64_t GlobalThread() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ int64_t GlobalThreads() {
  return static_cast<int64_t>(gridDim.x) * blockDim.x;
}
__device__ __forceinline__ int64_t GlobalWarp() { return GlobalThread() / kWarpThreads; }
__device__ __forceinline__ int64_t GlobalWarps() { return GlobalThreads() / kWarpThreads; }

// The quotient of two numbers that are not negative; division of 64 bits costs four times as much.
__device__ __forceinline__ int64_t Quotient(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}

// The block's shared memory: as many bytes as the launch asked for, 16-byte aligned, undefined at
// first.
template <class T>
__device__ __forceinline__ T* SharedMemory() {
  extern __shared__ uint4 shared_memory[];
  return reinterpret_cast<T*>(shared_memory);
}

// The tree over 16 lanes of README.md section 1, all of them one thread's.
__device__ __forceinline__ float LaneTree(const float* lanes) {
  float sum[8];
#pragma unroll
  for (int l = 0; l < 8; ++l) sum[l] = Add(lanes[l], lanes[l + 8]);
#pragma unroll
  for (int l = 0; l < 4; ++l) sum[l] = Add(sum[l], sum[l + 4]);
  return Add(Add(sum[0], sum[2]), Add(sum[1], sum[3]));
}

// ---------------------------------------------------------------- several threads

inline constexpr unsigned kWholeWarp = 0xffffffffu;

// What a thread of the scope wrote to shared or global memory before, all of the scope read after.
__device__ __forceinline__ void BlockBarrier() { __syncthreads(); }
__device__ __forceinline__ void WarpBarrier() { __syncwarp(kWholeWarp); }

// Reductions over a quad; the result is valid in all four threads. All threads of the warp must
// take part.
__device__ __forceinline__ unsigned QuadOr(unsigned x) {
  x |= __shfl_xor_sync(kWholeWarp, x, 1);
  return x | __shfl_xor_sync(kWholeWarp, x, 2);
}
__device__ __forceinline__ unsigned QuadMax(unsigned x) {
  for (const int distance : {1, 2}) {
    const unsigned other = __shfl_xor_sync(kWholeWarp, x, distance);
    x = x > other ? x : other;
  }
  return x;
}
__device__ __forceinline__ float QuadMin(float x) {
  x = Min(x, __shfl_xor_sync(kWholeWarp, x, 1));
  return Min(x, __shfl_xor_sync(kWholeWarp, x, 2));
}
__device__ __forceinline__ float QuadMax(float x) {
  x = Max(x, __shfl_xor_sync(kWholeWarp, x, 1));
  return Max(x, __shfl_xor_sync(kWholeWarp, x, 2));
}
// The same over the lanes of four threads: thread q holds lanes 4q .. 4q + 3. The sum of two
// threads is the same in both, so all four end with the total.
template <class T>
__device__ __forceinline__ T QuadLaneTree(const T (&lanes)[4]) {
  T sum[4];
  for (int i = 0; i < 4; ++i) sum[i] = Add(lanes[i], __shfl_xor_sync(kWholeWarp, lanes[i], 2));
  for (int i = 0; i < 4; ++i) sum[i] = Add(sum[i], __shfl_xor_sync(kWholeWarp, sum[i], 1));
  return Add(Add(sum[0], sum[2]), Add(sum[1], sum[3]));
}

// The same over all lanes of the warp.
__device__ __forceinline__ float WarpMin(float x) {
  for (int distance = 16; distance > 0; distance /= 2)
    x = Min(x, __shfl_xor_sync(kWholeWarp, x, distance));
  return x;
}
__device__ __forceinline__ float WarpMax(float x) {
  for (int distance = 16; distance > 0; distance /= 2)
    x = Max(x, __shfl_xor_sync(kWholeWarp, x, distance));
  return x;
}

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_CUDA_PRIMITIVES_CUH_
