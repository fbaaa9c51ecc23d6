#include "kernels/group_store.h"

#include <algorithm>

#include "kernels/aux.h"
#include "kernels/codebook.h"

namespace sinq::kernels {
namespace {

constexpr size_t kAuxStrands = 32;
constexpr int64_t kWidestValue = 4;  // bytes

}  // namespace

ZeroGrid ZeroGridOf(const QuantParams& params) {
  switch (ZeroRuleOf(params)) {
    case ZeroRule::kSixteenths:
      return HasCodebook(RoundingOf(params.method)) ? ZeroGrid::k256ths : ZeroGrid::kSixteenths;
    case ZeroRule::kInteger:
      return ZeroGrid::kInteger;
    case ZeroRule::kIntegerFromOne:
      return ZeroGrid::kIntegerFromOne;
    case ZeroRule::kReal:
      break;
  }
  // Q4_1 stores a minimum instead, rounded by itself.
  if (params.layout == Layout::kGgufQ4_1 || params.aux == AuxStorage::kF32) return ZeroGrid::kF32;
  return params.aux == AuxStorage::kBf16 ? ZeroGrid::kBf16 : ZeroGrid::kF16;
}

bool GroupStore::IsGguf() const {
  return params().layout == Layout::kGgufQ4_0 || params().layout == Layout::kGgufQ4_1 ||
         params().layout == Layout::kGgufQ8_0;
}

bool GroupStore::HoldsColumnScale() const {
  return params().layout == Layout::kSinq || params().layout == Layout::kDense;
}

std::byte* GroupStore::Out(PlaneKind kind) const {
  return params().layout == Layout::kDense ? unread_ : planes_.Of(kind).data();
}

void GroupStore::Take(Arena& arena, int64_t columns, int64_t groups) {
  if (params().layout == Layout::kDense)
    unread_ = arena.Bytes(kWidestValue * std::max(columns, groups));
  if (HoldsColumnScale()) return;
  scale_bytes_ = arena.Bytes(kWidestValue * groups);
  zero_bytes_ = arena.Bytes(kWidestValue * groups);
}

absl::Status GroupStore::Store(const GroupValues& values) {
  return HoldsColumnScale() ? StoreNative(values) : StoreForeign(values);
}

absl::Status GroupStore::StoreNative(const GroupValues& values) {
  absl::Status status =
      StoreValues(ops_, values.column, params().aux, "column scale", Out(PlaneKind::kColumnScale));
  if (!status.ok()) return status;
  if (params().aux == AuxStorage::kU8) return StoreGrids(values);
  status = StoreValues(ops_, values.scale, params().aux, "scale", Out(PlaneKind::kScale));
  if (!status.ok()) return status;
  const absl::Span<float> zeros = params().symmetric ? values.zero.first(1) : values.zero;
  return StoreValues(ops_, zeros, params().aux, "zero", Out(PlaneKind::kZero));
}

absl::Status GroupStore::StoreGrids(const GroupValues& values) {
  absl::Status status = QuantizeAux(ops_, values.scale, kAuxStrands, params().profile,
                                    CodesOut(PlaneKind::kScaleCode), Out(PlaneKind::kScaleStep),
                                    Out(PlaneKind::kScaleMin));
  if (!status.ok()) return status;
  if (params().symmetric) {
    return StoreValues(ops_, values.zero.first(1), params().aux, "zero", Out(PlaneKind::kZero));
  }
  return QuantizeAux(ops_, values.zero, values.zero.size(), params().profile,
                     CodesOut(PlaneKind::kZeroCode), Out(PlaneKind::kZeroStep),
                     Out(PlaneKind::kZeroMin));
}

absl::Status GroupStore::StoreForeign(const GroupValues& values) {
  absl::Status status = StoreValues(ops_, values.scale, params().aux, "scale", scale_bytes_);
  if (!status.ok()) return status;
  if (params().layout == Layout::kGgufQ4_1) return StoreMinima(values);
  if (IsGguf()) return absl::OkStatus();
  PlaceGroupValues(shape_, scale_bytes_, StoredBytes(params().aux), planes_.Of(PlaneKind::kScale));
  if (!planes_.Has(PlaneKind::kZero)) return absl::OkStatus();
  if (params().layout != Layout::kHqq) {
    PackZeros(shape_, values.zero.data(), planes_.Of(PlaneKind::kZero));
    return absl::OkStatus();
  }
  status = StoreValues(ops_, values.zero, params().aux, "zero", zero_bytes_);
  if (!status.ok()) return status;
  PlaceGroupValues(shape_, zero_bytes_, StoredBytes(params().aux), planes_.Of(PlaneKind::kZero));
  return absl::OkStatus();
}

// m = -z * s, and the zero that m and s stand for.
absl::Status GroupStore::StoreMinima(const GroupValues& values) {
  for (size_t e = 0; e < values.zero.size(); ++e)
    values.zero[e] = -values.zero[e] * values.scale[e];
  absl::Status status = StoreValues(ops_, values.zero, AuxStorage::kF16, "minimum", zero_bytes_);
  if (!status.ok()) return status;
  for (size_t e = 0; e < values.zero.size(); ++e) {
    const float scale = values.scale[e];
    values.zero[e] = scale == 0 ? 0.0f : -values.zero[e] * (1.0f / scale) + 0.0f;
  }
  return absl::OkStatus();
}

}  // namespace sinq::kernels
