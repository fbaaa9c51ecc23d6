#include "kernels/layout.h"

#include <initializer_list>
#include <utility>

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

// What the scales of `aux` are stored as when they are not quantized themselves.
PlaneDtype PlainDtype(AuxStorage aux) {
  if (aux == AuxStorage::kBf16) return PlaneDtype::kBf16;
  return aux == AuxStorage::kF32 ? PlaneDtype::kF32 : PlaneDtype::kF16;
}

absl::Status CheckMatrix(int64_t rows, int64_t cols) {
  if (rows < 1 || cols < 1) return absl::FailedPreconditionError("the matrix is empty");
  // No layout takes more than 8 bytes per weight.
  if (rows > (int64_t{1} << 59) / cols)
    return absl::FailedPreconditionError("the matrix has more than 2^59 weights");
  return absl::OkStatus();
}

absl::StatusOr<int64_t> ShrunkGroup(const QuantParams& params, int64_t cols) {
  const int64_t group = EffectiveGroupSize(cols, params.group_size);
  if (group != 0) return group;
  return absl::FailedPreconditionError(absl::StrCat("no group size from ", params.group_size,
                                                    " down to 16 divides in_features = ", cols));
}

absl::Status CheckSquares(const QuantParams& params, int64_t rows, int64_t group) {
  if (params.tiling == Tiling::k1D || rows % group == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("tiling 2D needs out_features = ", rows,
                                                    " to be a multiple of group_size = ", group));
}

// For readers that take one group size for all layers of a kind.
absl::StatusOr<int64_t> WholeGroup(const QuantParams& params, int64_t cols) {
  const int64_t group = params.group_size;
  if (group >= 16 && cols % group == 0) return group;
  return absl::FailedPreconditionError(
      absl::StrCat("in_features = ", cols, " is not a multiple of group_size = ", group));
}

absl::Status CheckMultiple(absl::string_view what, int64_t value, int64_t divisor,
                           absl::string_view layout) {
  if (value % divisor == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(what, " = ", value, " is not a multiple of ",
                                                    divisor, ", as ", layout, " needs"));
}

absl::Status CheckBits(const QuantParams& params, std::initializer_list<int> held,
                       absl::string_view layout) {
  for (const int bits : held) {
    if (bits == params.bits) return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      absl::StrCat(layout, " has no codes of ", params.bits, " bits"));
}

absl::Status CheckAux(const QuantParams& params, bool f16_only, absl::string_view layout) {
  if (params.aux == AuxStorage::kF16 || (!f16_only && params.aux != AuxStorage::kU8))
    return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(layout, " holds scales of ",
                                                    f16_only ? "f16" : "f16, bf16 or f32",
                                                    ", not of ", AuxName(params.aux)));
}

// Words of 32 bits that `count` codes take.
int64_t Words(int64_t count, int bits) { return (count * bits + 31) / 32; }

using Planes = std::vector<PlaneSpec>;

absl::StatusOr<Planes> HqqPlanes(const QuantParams& params, int64_t rows, int64_t cols) {
  if (absl::Status status = CheckBits(params, {2, 3, 4, 8}, "HQQ"); !status.ok()) return status;
  if (absl::Status status = CheckAux(params, /*f16_only=*/false, "HQQ"); !status.ok())
    return status;
  absl::StatusOr<Planes> native = NativePlanes(params, rows, cols);
  if (!native.ok()) return native;
  const int64_t group_rows = rows * (cols / EffectiveGroupSize(cols, params.group_size));
  const PlaneDtype dtype = PlainDtype(params.aux);
  return Planes{std::move(native->front()), Plane(PlaneKind::kScale, dtype, {group_rows, 1}),
                Plane(PlaneKind::kZero, dtype, {group_rows, 1})};
}

absl::StatusOr<Planes> CompressedTensorsPlanes(const QuantParams& params, int64_t rows,
                                               int64_t cols) {
  if (absl::Status status = CheckAux(params, /*f16_only=*/false, "pack-quantized"); !status.ok())
    return status;
  const absl::StatusOr<int64_t> group = WholeGroup(params, cols);
  if (!group.ok()) return group.status();
  const int64_t groups = cols / *group;
  Planes planes = {Plane(PlaneKind::kCodes, PlaneDtype::kI32, {rows, Words(cols, params.bits)}),
                   Plane(PlaneKind::kScale, PlainDtype(params.aux), {rows, groups})};
  if (!params.symmetric)
    planes.push_back(Plane(PlaneKind::kZero, PlaneDtype::kI32, {Words(rows, params.bits), groups}));
  return planes;
}

absl::StatusOr<Planes> AwqPlanes(const QuantParams& params, int64_t rows, int64_t cols) {
  if (absl::Status status = CheckBits(params, {4}, "AWQ gemm"); !status.ok()) return status;
  if (absl::Status status = CheckAux(params, /*f16_only=*/true, "AWQ gemm"); !status.ok())
    return status;
  if (absl::Status status = CheckMultiple("out_features", rows, 8, "AWQ gemm"); !status.ok())
    return status;
  const absl::StatusOr<int64_t> group = WholeGroup(params, cols);
  if (!group.ok()) return group.status();
  const int64_t groups = cols / *group;
  return Planes{Plane(PlaneKind::kCodes, PlaneDtype::kI32, {cols, rows / 8}),
                Plane(PlaneKind::kScale, PlaneDtype::kF16, {groups, rows}),
                Plane(PlaneKind::kZero, PlaneDtype::kI32, {groups, rows / 8})};
}

absl::StatusOr<Planes> GptqPlanes(const QuantParams& params, int64_t rows, int64_t cols) {
  if (absl::Status status = CheckBits(params, {2, 3, 4, 8}, "GPTQ"); !status.ok()) return status;
  if (absl::Status status = CheckAux(params, /*f16_only=*/true, "GPTQ"); !status.ok())
    return status;
  // Codes of one word, and for 3 bits of three.
  const int whole = params.bits == 3 ? 32 : 32 / params.bits;
  if (absl::Status status = CheckMultiple("out_features", rows, whole, "GPTQ"); !status.ok())
    return status;
  if (absl::Status status = CheckMultiple("in_features", cols, whole, "GPTQ"); !status.ok())
    return status;
  const absl::StatusOr<int64_t> group = WholeGroup(params, cols);
  if (!group.ok()) return group.status();
  const int64_t groups = cols / *group;
  return Planes{Plane(PlaneKind::kCodes, PlaneDtype::kI32, {Words(cols, params.bits), rows}),
                Plane(PlaneKind::kScale, PlaneDtype::kF16, {groups, rows}),
                Plane(PlaneKind::kZero, PlaneDtype::kI32, {groups, Words(rows, params.bits)})};
}

struct GgufBlock {
  const char* name;
  int bits;
  bool symmetric;
  int64_t size_bytes;  // of 32 values
};

GgufBlock GgufBlockOf(Layout layout) {
  if (layout == Layout::kGgufQ4_0) return {"Q4_0", 4, true, 18};
  if (layout == Layout::kGgufQ4_1) return {"Q4_1", 4, false, 20};
  return {"Q8_0", 8, true, 34};
}

absl::StatusOr<Planes> GgufPlanes(const QuantParams& params, int64_t rows, int64_t cols) {
  constexpr int64_t kBlockValues = 32;
  const GgufBlock block = GgufBlockOf(params.layout);
  if (absl::Status status = CheckBits(params, {block.bits}, block.name); !status.ok())
    return status;
  if (params.symmetric != block.symmetric) {
    return absl::FailedPreconditionError(
        absl::StrCat(block.name, " is ", block.symmetric ? "symmetric" : "asymmetric"));
  }
  if (absl::Status status =
          CheckMultiple("group_size", params.group_size, kBlockValues, block.name);
      !status.ok())
    return status;
  if (const absl::StatusOr<int64_t> group = WholeGroup(params, cols); !group.ok())
    return group.status();
  return Planes{
      Plane(PlaneKind::kBlocks, PlaneDtype::kU8, {rows, cols / kBlockValues * block.size_bytes})};
}

absl::StatusOr<Planes> DensePlanes(const QuantParams& params, int64_t rows, int64_t cols,
                                   PlaneDtype dense) {
  const absl::StatusOr<int64_t> group = ShrunkGroup(params, cols);
  if (!group.ok()) return group.status();
  if (absl::Status status = CheckSquares(params, rows, *group); !status.ok()) return status;
  return Planes{Plane(PlaneKind::kDense, dense, {rows, cols})};
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
  if (params.aux != AuxStorage::kU8) return params.aux;
  const int group = EffectiveGroupSize(cols, params.group_size);
  if (group == 0) return AuxStorage::kF16;
  return rows * (cols / group) % kAuxRows == 0 ? AuxStorage::kU8 : AuxStorage::kF16;
}

absl::StatusOr<std::vector<PlaneSpec>> NativePlanes(const QuantParams& params, int64_t rows,
                                                    int64_t cols) {
  if (absl::Status status = CheckMatrix(rows, cols); !status.ok()) return status;
  const absl::StatusOr<int64_t> shrunk = ShrunkGroup(params, cols);
  if (!shrunk.ok()) return shrunk.status();
  const int64_t group = *shrunk;
  if (absl::Status status = CheckSquares(params, rows, group); !status.ok()) return status;
  const bool tiles_2d = params.tiling == Tiling::k2D;
  const int64_t group_rows = rows * (cols / group);
  const CodePacking& packing = PackingFor(params.bits);
  const int64_t per_word = packing.codes_per_word;
  if (!packing.pads_rows && group_rows % per_word != 0) {
    return absl::FailedPreconditionError(absl::StrCat(packing.name, " packs ", per_word,
                                                      " group rows into one, and ", group_rows,
                                                      " group rows are not a multiple of that"));
  }
  const bool u8 = EffectiveAux(params, rows, cols) == AuxStorage::kU8;
  const PlaneDtype plain = PlainDtype(params.aux);
  const std::vector<int64_t> by_group = tiles_2d
                                            ? std::vector<int64_t>{group_rows / group, group, 1}
                                            : std::vector<int64_t>{group_rows, 1};
  std::vector<PlaneSpec> planes;
  const PlaneDtype word = packing.word_bytes == 4 ? PlaneDtype::kI32 : PlaneDtype::kU8;
  planes.push_back(Plane(PlaneKind::kCodes, word, {(group_rows + per_word - 1) / per_word, group}));
  planes.push_back(tiles_2d ? Plane(PlaneKind::kColumnScale, plain, {group_rows / group, 1, group})
                            : Plane(PlaneKind::kColumnScale, plain, {1, cols}));
  if (!u8) planes.push_back(Plane(PlaneKind::kScale, plain, by_group));
  if (params.symmetric) {
    planes.push_back(Plane(PlaneKind::kZero, plain, {}));
  } else if (!u8) {
    planes.push_back(Plane(PlaneKind::kZero, plain, by_group));
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
                                                int64_t cols, PlaneDtype dense) {
  if (absl::Status status = CheckMatrix(rows, cols); !status.ok()) return status;
  if (params.tiling == Tiling::k2D && params.layout != Layout::kSinq &&
      params.layout != Layout::kDense) {
    return absl::FailedPreconditionError(
        "tiling 2D has a column scale for each square, which only "
        "the layouts sinq and dense hold");
  }
  switch (params.layout) {
    case Layout::kSinq:
      return NativePlanes(params, rows, cols);
    case Layout::kHqq:
      return HqqPlanes(params, rows, cols);
    case Layout::kCompressedTensors:
      return CompressedTensorsPlanes(params, rows, cols);
    case Layout::kAwq:
      return AwqPlanes(params, rows, cols);
    case Layout::kGptq:
    case Layout::kGptqV2:
      return GptqPlanes(params, rows, cols);
    case Layout::kGgufQ4_0:
    case Layout::kGgufQ4_1:
    case Layout::kGgufQ8_0:
      return GgufPlanes(params, rows, cols);
    case Layout::kDense:
      return DensePlanes(params, rows, cols, dense);
  }
  return absl::InternalError("unknown layout");
}

}  // namespace sinq::kernels
