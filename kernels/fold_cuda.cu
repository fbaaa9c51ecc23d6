// Folded inputs on a CUDA device (README.md section 8.1): w = (x * row_factor) * column_factor, as
// F32.
//
// Launch shape. A thread takes four neighbouring weights. The folded copy costs every later pass
// two bytes per weight more than BF16, but folding is for some layers of a model, and no other step
// needs a variant for it.
#include "kernels/cuda_launch.h"
#include "kernels/cuda_primitives.cuh"
#include "kernels/cuda_steps.h"
#include "kernels/cuda_weights.cuh"

namespace sinq::kernels {
namespace {

constexpr int kThreads = 256;

struct FoldParams {
  DeviceWeights weights;
  float4* folded;
};

// ================================================================ device

template <WeightDtype kDtype>
__global__ void __launch_bounds__(kThreads) FoldKernel(FoldParams p) {
  const int64_t fours = p.weights.cols / 4;
  for (int64_t n = GlobalThread(); n < p.weights.rows * fours; n += GlobalThreads()) {
    const int64_t row = Quotient(n, fours), i = p.weights.first_row + row;
    const int64_t k = p.weights.first_col + (n - row * fours) * 4;
    const WeightCursor<kDtype> weights(p.weights, i, k);
    Four w = weights.Values(weights.Raw(0, 0));
    for (int c = 0; c < 4; ++c) {
      if (p.weights.row_factor != nullptr) w.value[c] = Mul(w.value[c], p.weights.row_factor[i]);
      if (p.weights.column_factor != nullptr)
        w.value[c] = Mul(w.value[c], p.weights.column_factor[k + c]);
    }
    p.folded[n] = make_float4(w.value[0], w.value[1], w.value[2], w.value[3]);
  }
}

}  // namespace

// ================================================================ host

int LaunchFold(const DeviceWeights& weights, void* folded, CudaStream stream) {
  const FoldParams p{weights, static_cast<float4*>(folded)};
  const LaunchShape shape = ThreadPerUnit(weights.rows * (weights.cols / 4), kThreads);
  return ForDtype(weights.dtype, [&](auto dtype) {
    return LaunchKernel(FoldKernel<dtype.value>, shape, stream, p);
  });
}

}  // namespace sinq::kernels
