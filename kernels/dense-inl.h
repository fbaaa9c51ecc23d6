// Dequantized weights as the output (README.md section 8).
#if defined(SINQ_KERNELS_DENSE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SINQ_KERNELS_DENSE_INL_H_
#undef SINQ_KERNELS_DENSE_INL_H_
#else
#define SINQ_KERNELS_DENSE_INL_H_
#endif

#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels/encode-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sinq::kernels {
namespace HWY_NAMESPACE {

struct ValueSink {
  float* values;
  HWY_INLINE void operator()(size_t at, VF /*code*/, VF value) const {
    hn::StoreU(value, DF(), values + at);
  }
};

// Largest finite value of the dtype that dense weights are stored in.
HWY_INLINE float LargestDense(WeightDtype dtype) {
  if (dtype == WeightDtype::kF32) return std::numeric_limits<float>::max();
  return dtype == WeightDtype::kF16 ? 65504.0f : 0x1.fep127f;
}

// Rounded to the nearest, never -0 and never beyond the largest finite value.
HWY_INLINE void StoreDense(const float* values, int count, WeightDtype dtype, std::byte* out) {
  const DF d;
  const DI di;
  const hn::Rebind<uint16_t, DU> d16;
  const VF largest = hn::Set(d, LargestDense(dtype));
  for (int k = 0; k < count; k += static_cast<int>(kLanes)) {
    const VF value =
        hn::Add(Clamp(hn::LoadU(d, values + k), hn::Neg(largest), largest), hn::Zero(d));
    if (dtype == WeightDtype::kF32) {
      HWY_ALIGN float lanes[kLanes];
      hn::Store(value, d, lanes);
      std::memcpy(out + 4 * k, lanes, sizeof(lanes));
      continue;
    }
    HWY_ALIGN uint16_t bits[kLanes];
    if (dtype == WeightDtype::kF16) {
      const VF rounded = hn::Add(RoundVectorToF16(value), hn::Zero(d));
      hn::Store(hn::DemoteTo(d16, F16Bits(rounded)), d16, bits);
    } else {
      const auto high = hn::ShiftRight<16>(hn::BitCast(DU(), RoundVectorToBf16(value)));
      hn::Store(hn::DemoteTo(d16, hn::BitCast(di, high)), d16, bits);
    }
    std::memcpy(out + 2 * k, bits, sizeof(bits));
  }
}

template <Coding kCoding, bool kIsBf16>
struct DenseBody {
  const MatrixView& in;
  const EncodeParams& p;
  std::byte* dense;
  HWY_INLINE void operator()(int64_t /*i*/, int64_t row, int64_t col, const GroupPlace& place,
                             ErrorPartials& partials) const {
    const size_t width = in.dtype == WeightDtype::kF32 ? 4 : 2;
    HWY_ALIGN float values[kMaxGroup];
    EncodeGroupOf<kCoding, kIsBf16>(in, p, row, col, place, partials, ValueSink{values});
    StoreDense(values, p.group, in.dtype, dense + width * static_cast<size_t>(row * in.cols + col));
  }
};

template <Coding kCoding>
void EncodeDenseRows(const MatrixView& in, const EncodeParams& p, int64_t first, int64_t count,
                     std::byte* dense) {
  if (TilesAreBf16(in))
    return EncodeRows(in, p, first, count, DenseBody<kCoding, true>{in, p, dense});
  EncodeRows(in, p, first, count, DenseBody<kCoding, false>{in, p, dense});
}

void EncodeDense(const MatrixView& in, const EncodeParams& params, int64_t first, int64_t count,
                 std::byte* dense) {
  switch (params.coding) {
    case Coding::kStored:
      return EncodeDenseRows<Coding::kStored>(in, params, first, count, dense);
    case Coding::kDivide:
      return EncodeDenseRows<Coding::kDivide>(in, params, first, count, dense);
    case Coding::kMultiply:
      return EncodeDenseRows<Coding::kMultiply>(in, params, first, count, dense);
    case Coding::kBook:
      return EncodeDenseRows<Coding::kBook>(in, params, first, count, dense);
    case Coding::kBookDivide:
      return EncodeDenseRows<Coding::kBookDivide>(in, params, first, count, dense);
    case Coding::kHadamard:
      return EncodeDenseRows<Coding::kHadamard>(in, params, first, count, dense);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace sinq::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
