// Stands in for CUDA's header of the same name when the .cu files are compiled as C++ for tests.
// Holds what kernels/*.cu and kernels/*.cuh use and nothing else. Arithmetic is IEEE, and the build
// switches contraction off, so each operation rounds as the device's *_rn intrinsic does.
#ifndef SINQ_TESTS_FAKES_CUDA_ON_CPU_CUDA_RUNTIME_H_
#define SINQ_TESTS_FAKES_CUDA_ON_CPU_CUDA_RUNTIME_H_

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "tests/fakes/cuda_on_cpu/cuda_on_cpu.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// Blocks run one after another on an OS thread, so its copy is the block's. (Not thread_local: an
// array of unknown bound has no need of the initializer that it would look for.)
#define __shared__ __thread

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x_extent = 1) : x(x_extent) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// Read like CUDA's built-in variables; only x is used.
template <unsigned sinq::cuda_on_cpu::Indices::*kWhich>
struct CudaOnCpuIndex {
  struct Extent {
    operator unsigned() const { return sinq::cuda_on_cpu::CurrentIndices().*kWhich; }
  };
  Extent x;
};
inline constexpr CudaOnCpuIndex<&sinq::cuda_on_cpu::Indices::thread> threadIdx{};
inline constexpr CudaOnCpuIndex<&sinq::cuda_on_cpu::Indices::block> blockIdx{};
inline constexpr CudaOnCpuIndex<&sinq::cuda_on_cpu::Indices::threads> blockDim{};
inline constexpr CudaOnCpuIndex<&sinq::cuda_on_cpu::Indices::blocks> gridDim{};

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline float __double2float_rn(double a) { return static_cast<float>(a); }
inline unsigned __float_as_uint(float a) { return std::bit_cast<unsigned>(a); }
inline float __uint_as_float(unsigned a) { return std::bit_cast<float>(a); }
inline long long __double_as_longlong(double a) { return std::bit_cast<long long>(a); }
inline int __clz(int a) { return std::countl_zero(static_cast<unsigned>(a)); }
inline int __ffs(int a) { return a == 0 ? 0 : std::countr_zero(static_cast<unsigned>(a)) + 1; }

inline void __syncthreads() { sinq::cuda_on_cpu::ReachBlockBarrier(); }
inline void __syncwarp(unsigned mask = 0xffffffff) { sinq::cuda_on_cpu::ReachWarpBarrier(mask); }
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  const unsigned lane = sinq::cuda_on_cpu::CurrentIndices().thread % 32;
  bits = sinq::cuda_on_cpu::ExchangeInWarp(mask, bits, lane ^ static_cast<unsigned>(lane_mask));
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

enum cudaError_t { cudaSuccess = 0 };
using cudaStream_t = struct CUstream_st*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};
// Runs the kernel at once, whatever the stream.
template <class... Expected, class... Actual>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Expected...),
                               const Actual&... arguments) {
  return static_cast<cudaError_t>(sinq::cuda_on_cpu::RunGrid(
      {config->gridDim.x, config->blockDim.x, config->dynamicSmemBytes},
      [&] { kernel(arguments...); }));
}

#endif  // SINQ_TESTS_FAKES_CUDA_ON_CPU_CUDA_RUNTIME_H_
