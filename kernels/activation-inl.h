// The activation-aware search for a column scale (README.md section 10).
#if defined(SINQ_KERNELS_ACTIVATION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SINQ_KERNELS_ACTIVATION_INL_H_
#undef SINQ_KERNELS_ACTIVATION_INL_H_
#else
#define SINQ_KERNELS_ACTIVATION_INL_H_
#endif

#include <algorithm>
#include <cmath>

#include "kernels/load-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sinq::kernels {
namespace HWY_NAMESPACE {

void ColumnMagnitudes(const Tile& tile, double* sums) {
  std::fill_n(sums, tile.group, 0.0);
  for (int64_t first = 0; first < tile.rows; first += kRowBlock) {
    const int64_t last = std::min<int64_t>(tile.rows, first + kRowBlock);
    for (int k = 0; k < tile.group; k += static_cast<int>(kLanes)) {
      const DF d;
      VF sum = hn::Zero(d);
      for (int64_t i = first; i < last; ++i) {
        const size_t at = static_cast<size_t>(i * tile.group + k);
        const VF w = tile.is_bf16 ? LoadWeights(d, static_cast<const uint16_t*>(tile.data) + at)
                                  : LoadWeights(d, static_cast<const float*>(tile.data) + at);
        sum = hn::Add(sum, hn::Abs(w));
      }
      HWY_ALIGN float lanes[kLanes];
      hn::Store(sum, d, lanes);
      for (size_t lane = 0; lane < kLanes; ++lane)
        sums[static_cast<size_t>(k) + lane] += static_cast<double>(lanes[lane]);
    }
  }
}

// y of one group in place of w, its range out.
HWY_INLINE void ScaleGroup(const float* w, const float* forward, VF row, int group, float* y,
                           float* low, float* high) {
  const DF d;
  VF least = hn::Zero(d), most = least;
  for (int k = 0; k < group; k += static_cast<int>(kLanes)) {
    const VF value = hn::Mul(hn::Mul(hn::LoadU(d, w + k), hn::LoadU(d, forward + k)), row);
    hn::Store(value, d, y + k);
    least = k == 0 ? value : hn::Min(least, value);
    most = k == 0 ? value : hn::Max(most, value);
  }
  *low = hn::GetLane(hn::MinOfLanes(d, least));
  *high = hn::GetLane(hn::MaxOfLanes(d, most));
}

// w' - w of one group in place of w.
HWY_INLINE void QuantizeScaled(const ScaledRtn& p, float row_scale, const float* forward,
                               const float* backward, float* w) {
  const DF d;
  HWY_ALIGN float y[kMaxGroup];
  float low, high;
  const float reciprocal = row_scale == 0 ? 0.0f : 1.0f / row_scale;
  ScaleGroup(w, forward, hn::Set(d, reciprocal), p.group, y, &low, &high);
  const float top = static_cast<float>((1 << p.bits) - 1);
  const float scale = std::max(high - low, p.range_floor) / top;
  const VF inverse = Reciprocal(hn::Set(d, scale));
  const VF zero = hn::Neg(hn::Round(hn::Mul(hn::Set(d, low), inverse)));
  const VF back = hn::Set(d, scale * row_scale);
  for (int k = 0; k < p.group; k += static_cast<int>(kLanes)) {
    const VF exact = Fma(hn::Load(d, y + k), inverse, zero);
    const VF q = hn::Round(Clamp(exact, hn::Zero(d), hn::Set(d, top)));
    const VF value = hn::Mul(hn::Mul(hn::Sub(q, zero), back), hn::LoadU(d, backward + k));
    hn::StoreU(hn::Sub(value, hn::LoadU(d, w + k)), d, w + k);
  }
}

void ScaledRtnDifference(const MatrixView& in, const ScaledRtn& p, int64_t first_row,
                         float* difference) {
  const int64_t rows = std::min<int64_t>(kRowBlock, in.rows - first_row);
  const int64_t tiles = in.cols / p.group;
  if (rows < kRowBlock) std::fill_n(difference, static_cast<size_t>(in.cols) * kRowBlock, 0.0f);
  HWY_ALIGN float w[kMaxGroup];
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < tiles; ++j) {
      const int64_t col = j * p.group, row = first_row + i;
      WidenRow(in, row, col, p.group, w);
      const float row_scale = p.row_scale == nullptr ? 1.0f : p.row_scale[row * tiles + j];
      QuantizeScaled(p, row_scale, p.forward + col, p.backward + col, w);
      for (int k = 0; k < p.group; ++k) difference[(col + k) * kRowBlock + i] = w[k];
    }
  }
}

constexpr size_t kBlockVectors = kRowBlock / kLanes;
constexpr size_t kPair = 2;  // vectors of rows handled at once

// Outputs of kSamples samples for two vectors of rows: one fma for each input, in their order.
template <size_t kSamples>
HWY_INLINE void MultiplySamples(const float* HWY_RESTRICT samples, int64_t cols,
                                const float* HWY_RESTRICT difference, VF (*out)[kPair]) {
  const DF d;
  for (size_t s = 0; s < kSamples; ++s) out[s][0] = out[s][1] = hn::Zero(d);
  for (int64_t k = 0; k < cols; ++k) {
    const VF low = hn::LoadU(d, difference + k * kRowBlock);
    const VF high = hn::LoadU(d, difference + k * kRowBlock + kLanes);
    for (size_t s = 0; s < kSamples; ++s) {
      const VF x = hn::Set(d, samples[static_cast<int64_t>(s) * cols + k]);
      out[s][0] = Fma(x, low, out[s][0]);
      out[s][1] = Fma(x, high, out[s][1]);
    }
  }
}

// Adds what one sample's outputs cost. `own`: the differences that moments are multiplied with.
HWY_INLINE void AddCost(const VF* outputs, OutputNorm norm, const float* own, double* error) {
  const DF d;
  HWY_ALIGN float lanes[kPair * kLanes];
  hn::Store(outputs[0], d, lanes);
  hn::Store(outputs[1], d, lanes + kLanes);
  for (size_t i = 0; i < kPair * kLanes; ++i) {
    const double output = static_cast<double>(lanes[i]);
    if (norm == OutputNorm::kAbsolute) {
      error[i] += std::abs(output);
    } else {
      error[i] += output * (norm == OutputNorm::kSquare ? output : static_cast<double>(own[i]));
    }
  }
}

void OutputError(const float* samples, int64_t count, int64_t cols, const float* difference,
                 OutputNorm norm, double* error) {
  constexpr size_t kAtOnce = 4;
  std::fill_n(error, kRowBlock, 0.0);
  for (size_t v = 0; v < kBlockVectors; v += kPair) {
    const float* from = difference + v * kLanes;
    double* to = error + v * kLanes;
    int64_t s = 0;
    VF outputs[kAtOnce][kPair];
    for (; s + static_cast<int64_t>(kAtOnce) <= count; s += static_cast<int64_t>(kAtOnce)) {
      MultiplySamples<kAtOnce>(samples + s * cols, cols, from, outputs);
      for (size_t i = 0; i < kAtOnce; ++i)
        AddCost(outputs[i], norm, from + (s + static_cast<int64_t>(i)) % cols * kRowBlock, to);
    }
    for (; s < count; ++s) {
      MultiplySamples<1>(samples + s * cols, cols, from, outputs);
      AddCost(outputs[0], norm, from + s % cols * kRowBlock, to);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace sinq::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
