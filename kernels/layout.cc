#include "kernels/layout.h"

#include "absl/strings/str_cat.h"

namespace sinq::kernels {
namespace {

constexpr int kAuxRows = 32;  // the authors' rtn8 views the scales as [32, M/32]

uint64_t DtypeBytes(PlaneDtype dtype) {
  switch (dtype) {
    case PlaneDtype::kU8:
      return 1;
    case PlaneDtype::kF16:
    case PlaneDtype::kBf16:
      return 2;
    case PlaneDtype::kI32:
    case PlaneDtype::kF32:
      return 4;
  }
  return 0;
}

PlaneSpec Plane(PlaneKind kind, PlaneDtype dtype, std::vector<int64_t> shape) {
  uint64_t size_bytes = DtypeBytes(dtype);
  for (const int64_t extent : shape) size_bytes *= static_cast<uint64_t>(extent);
  return {kind, dtype, std::move(shape), size_bytes};
}

}  // namespace

int EffectiveGroupSize(int64_t cols, int group_size) {
  int group = group_size;
  while (group >= 16 && cols % group != 0) group /= 2;
  return group >= 16 ? group : 0;
}

const CodePacking& PackingFor(int bits) {
  static constexpr CodePacking k2{"2bit_u8", 4, 1, false}, k3{"3bit_32", 10, 4, true},
      k4{"4bit_u8", 2, 1, false}, k5{"5bit_32", 6, 4, true}, k6{"6bit_32", 5, 4, true},
      k8{"8bit_u8", 1, 1, false};
  switch (bits) {
    case 2:
      return k2;
    case 3:
      return k3;
    case 4:
      return k4;
    case 5:
      return k5;
    case 6:
      return k6;
    default:
      return k8;
  }
}

AuxStorage EffectiveAux(const QuantParams& params, int64_t rows, int64_t cols) {
  const int group = EffectiveGroupSize(cols, params.group_size);
  if (params.aux == AuxStorage::kF16 || group == 0) return AuxStorage::kF16;
  return rows * (cols / group) % kAuxRows == 0 ? AuxStorage::kU8 : AuxStorage::kF16;
}

absl::StatusOr<std::vector<PlaneSpec>> NativePlanes(const QuantParams& params, int64_t rows,
                                                    int64_t cols) {
  if (rows < 1 || cols < 1) return absl::FailedPreconditionError("the matrix is empty");
  // Every size below is at most 8 bytes per weight.
  if (rows > (int64_t{1} << 59) / cols)
    return absl::FailedPreconditionError("the matrix has more than 2^59 weights");
  const int64_t group = EffectiveGroupSize(cols, params.group_size);
  if (group == 0) {
    return absl::FailedPreconditionError(absl::StrCat("no group size from ", params.group_size,
                                                      " down to 16 divides in_features = ", cols));
  }
  const int64_t group_rows = rows * (cols / group);
  const CodePacking& packing = PackingFor(params.bits);
  const int64_t per_word = packing.codes_per_word;
  if (!packing.pads_rows && group_rows % per_word != 0) {
    return absl::FailedPreconditionError(absl::StrCat(packing.name, " packs ", per_word,
                                                      " group rows into one, and ", group_rows,
                                                      " group rows are not a multiple of that"));
  }
  std::vector<PlaneSpec> planes;
  const PlaneDtype word = packing.word_bytes == 4 ? PlaneDtype::kI32 : PlaneDtype::kU8;
  planes.push_back(Plane(PlaneKind::kCodes, word, {(group_rows + per_word - 1) / per_word, group}));
  planes.push_back(Plane(PlaneKind::kColumnScale, PlaneDtype::kF16, {1, cols}));
  const bool u8 = EffectiveAux(params, rows, cols) == AuxStorage::kU8;
  if (!u8) planes.push_back(Plane(PlaneKind::kScale, PlaneDtype::kF16, {group_rows, 1}));
  if (params.symmetric) {
    planes.push_back(Plane(PlaneKind::kZero, PlaneDtype::kF16, {}));
  } else if (!u8) {
    planes.push_back(Plane(PlaneKind::kZero, PlaneDtype::kF16, {group_rows, 1}));
  }
  if (u8) {
    planes.push_back(
        Plane(PlaneKind::kScaleCode, PlaneDtype::kU8, {kAuxRows, group_rows / kAuxRows}));
    planes.push_back(Plane(PlaneKind::kScaleStep, PlaneDtype::kF16, {1, group_rows / kAuxRows}));
    planes.push_back(Plane(PlaneKind::kScaleMin, PlaneDtype::kF16, {1, group_rows / kAuxRows}));
  }
  if (u8 && !params.symmetric) {
    planes.push_back(Plane(PlaneKind::kZeroCode, PlaneDtype::kU8, {group_rows, 1}));
    planes.push_back(Plane(PlaneKind::kZeroStep, PlaneDtype::kF16, {1, 1}));
    planes.push_back(Plane(PlaneKind::kZeroMin, PlaneDtype::kF16, {1, 1}));
  }
  return planes;
}

absl::StatusOr<std::vector<PlaneSpec>> PlanesOf(const QuantParams& params, int64_t rows,
                                                int64_t cols, PlaneDtype /*dense*/) {
  if (params.layout == Layout::kSinq) return NativePlanes(params, rows, cols);
  return absl::FailedPreconditionError("this layout is not written yet");
}

}  // namespace sinq::kernels
