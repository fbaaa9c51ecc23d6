// The few functions of cuBLAS that are used, found in its library when it is there: no build and no
// server needs cuBLAS, and its licence stays with who installed it.
#ifndef SINQ_KERNELS_CUBLAS_H_
#define SINQ_KERNELS_CUBLAS_H_

#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/cuda_runtime.h"

struct cublasContext;  // cublasHandle_t is a pointer to it

namespace sinq::kernels {

using CublasHandle = cublasContext*;

// Values of cuBLAS's enumerations, which its ABI keeps.
inline constexpr int kCublasOk = 0, kCublasAllocFailed = 3;
inline constexpr int kCublasNoTranspose = 0, kCublasTranspose = 1;
inline constexpr int kCublasPedanticMath = 2;       // fp32 stays fp32: no TF32, no split products
inline constexpr int kCublasAtomicsNotAllowed = 0;  // sums in one order

// As in cublas_v2.h; every function returns a cublasStatus_t.
struct CublasTable {
  int (*create)(CublasHandle* handle) = nullptr;
  int (*destroy)(CublasHandle handle) = nullptr;
  int (*set_stream)(CublasHandle handle, CudaStream stream) = nullptr;
  int (*set_math_mode)(CublasHandle handle, int mode) = nullptr;
  int (*set_atomics_mode)(CublasHandle handle, int mode) = nullptr;
  int (*set_workspace)(CublasHandle handle, void* workspace, size_t size_bytes) = nullptr;
  int (*sgemm)(CublasHandle handle, int transpose_a, int transpose_b, int m, int n, int k,
               const float* alpha, const float* a, int lda, const float* b, int ldb,
               const float* beta, float* c, int ldc) = nullptr;
};

// Looks for libcublas.so.13 and .12 in `directory` (of PyPI's wheel, for example), or, if that is
// empty, where the dynamic linker looks and in /usr/local/cuda. The library stays loaded for as
// long as the table lives. NotFound tells what was tried.
absl::StatusOr<std::shared_ptr<const CublasTable>> LoadCublas(const std::string& directory);

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_CUBLAS_H_
