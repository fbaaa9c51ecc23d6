// Loads of weights by device code: four neighbouring columns at a time, one load of 4 to 16 bytes.
#ifndef SINQ_KERNELS_CUDA_WEIGHTS_CUH_
#define SINQ_KERNELS_CUDA_WEIGHTS_CUH_

#include "kernels/cuda_primitives.cuh"
#include "kernels/cuda_steps.h"
#include "kernels/half.h"

namespace sinq::kernels {

struct Four {
  float value[4];
};

// Four neighbouring values by one load; `at` is 16-byte aligned.
__device__ __forceinline__ Four LoadFour(const float* at) {
  const float4 values = *reinterpret_cast<const float4*>(at);
  return {{values.x, values.y, values.z, values.w}};
}

// Raw bits of four weights, and what they say. The two are apart so that loads can be put in
// flight before the first is needed.
template <WeightDtype kDtype>
struct RawFour;

template <>
struct RawFour<WeightDtype::kBf16> {
  uint2 bits;
  __device__ Four Values(float) const {
    return {{__uint_as_float(bits.x << 16), __uint_as_float(bits.x & 0xffff0000u),
             __uint_as_float(bits.y << 16), __uint_as_float(bits.y & 0xffff0000u)}};
  }
};

template <>
struct RawFour<WeightDtype::kF16> {
  uint2 bits;
  __device__ Four Values(float) const {
    return {{F16ToFloat(static_cast<uint16_t>(bits.x)),
             F16ToFloat(static_cast<uint16_t>(bits.x >> 16)),
             F16ToFloat(static_cast<uint16_t>(bits.y)),
             F16ToFloat(static_cast<uint16_t>(bits.y >> 16))}};
  }
};

template <>
struct RawFour<WeightDtype::kF32> {
  float4 values;
  __device__ Four Values(float) const { return {{values.x, values.y, values.z, values.w}}; }
};

template <>
struct RawFour<WeightDtype::kF8E4M3> {
  unsigned bits;
  __device__ Four Values(float block_scale) const {
    Four four;
    for (int i = 0; i < 4; ++i)
      four.value[i] = Mul(E4m3ToFloat(static_cast<uint8_t>(bits >> (8 * i))), block_scale);
    return four;
  }
};

// Weights of some rows and columns from [row, col] of the tensor on. All of them must lie in one
// FP8 block of 128 x 128; a group does, and so does a block of 32 rows of a tile.
template <WeightDtype kDtype>
class WeightCursor {
 public:
  __device__ WeightCursor(const DeviceWeights& weights, int64_t row, int64_t col)
      : at_(static_cast<const char*>(weights.data) +
            ((row - weights.first_row) * weights.stride + (col - weights.first_col)) *
                kElementBytes),
        stride_bytes_(weights.stride * kElementBytes),
        block_scale_(BlockScale(weights, row, col)) {}

  // Columns [col, col + 4) of row `row`, both counted from the cursor; col is a multiple of 4.
  __device__ RawFour<kDtype> Raw(int row, int col) const {
    return *reinterpret_cast<const RawFour<kDtype>*>(at_ + row * stride_bytes_ +
                                                     col * kElementBytes);
  }
  __device__ Four Values(const RawFour<kDtype>& raw) const { return raw.Values(block_scale_); }

 private:
  static constexpr int64_t kElementBytes = static_cast<int64_t>(BytesPerElement(kDtype));
  static_assert(sizeof(RawFour<kDtype>) == 4 * kElementBytes);

  __device__ static float BlockScale(const DeviceWeights& weights, int64_t row, int64_t col) {
    if (kDtype != WeightDtype::kF8E4M3 || weights.block_scales == nullptr) return 1.0f;
    const int64_t per_row = weights.block_scales_per_row;
    return weights.block_scales[row / kFp8BlockSize * per_row + col / kFp8BlockSize];
  }

  const char* const at_;
  const int64_t stride_bytes_;
  const float block_scale_;
};

// ---------------------------------------------------------------- host: picking an instance

template <auto kValue>
struct Constant {
  static constexpr auto value = kValue;
};

// Calls `run` with the dtype as a compile-time constant.
template <class Run>
int ForDtype(WeightDtype dtype, const Run& run) {
  switch (dtype) {
    case WeightDtype::kBf16:
      return run(Constant<WeightDtype::kBf16>());
    case WeightDtype::kF16:
      return run(Constant<WeightDtype::kF16>());
    case WeightDtype::kF32:
      return run(Constant<WeightDtype::kF32>());
    default:
      return run(Constant<WeightDtype::kF8E4M3>());
  }
}

// The same with an effective group size.
template <class Run>
int ForGroup(int group, const Run& run) {
  switch (group) {
    case 16:
      return run(Constant<16>());
    case 32:
      return run(Constant<32>());
    case 64:
      return run(Constant<64>());
    default:
      return run(Constant<128>());
  }
}

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_CUDA_WEIGHTS_CUH_
