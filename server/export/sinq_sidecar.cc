#include "server/export/sinq_sidecar.h"

#include <cstdint>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace sinq {
namespace {

using nlohmann::ordered_json;

// The reader looks for "quantAux" to choose how scales and zeros are stored; "noz" says that the
// zero is one constant.
std::string MethodString(const kernels::QuantParams& params, kernels::AuxStorage aux) {
  return absl::StrCat(kernels::MethodName(params.method), params.symmetric ? "_noz" : "",
                      aux == kernels::AuxStorage::kU8 ? "_quantAux" : "");
}

bool IsCodebook(kernels::Method method) {
  const kernels::Rounding rounding = kernels::RoundingOf(method);
  return rounding == kernels::Rounding::kNf4 || rounding == kernels::Rounding::kNf3;
}

}  // namespace

std::string SinqSidecarEntryJson(const QuantizedLayer& layer, absl::string_view compute_dtype) {
  const kernels::QuantParams& params = layer.params;
  const int group = kernels::EffectiveGroupSize(layer.cols, params.group_size);
  const kernels::AuxStorage aux = kernels::EffectiveAux(params, layer.rows, layer.cols);
  const kernels::CodePacking& packing = kernels::PackingFor(params.bits);
  const int64_t group_rows = layer.rows * (layer.cols / group);
  const bool by_square = params.tiling == kernels::Tiling::k2D;
  ordered_json meta;
  meta["nbits"] = params.bits;
  meta["group_size"] = group;
  meta["shape"] = {layer.rows, layer.cols};
  if (aux == kernels::AuxStorage::kU8) {
    const ordered_json shape =
        by_square ? ordered_json({group_rows / group, group, 1}) : ordered_json({group_rows, 1});
    meta["scale.shape"] = shape;
    if (!params.symmetric) meta["zero.shape"] = shape;
  }
  meta["awq_scale"] = nullptr;
  meta["axis"] = 1;
  // The authors' loader drops the key for unpacked codes and then fails without it; null means "use
  // as they are".
  meta["packing"] = params.bits == 8 ? ordered_json(nullptr) : ordered_json(packing.name);
  meta["method"] = MethodString(params, aux);
  meta["compute_dtype"] = absl::StrCat("torch.", compute_dtype);
  meta["unpack_view_dtype"] = packing.word_bytes == 4 ? "torch.int32" : "torch.uint8";
  meta["view_as_float"] = false;
  // gemlite's one kernel is uniform and 1D, and refuses some shapes; any tiling other than "1D"
  // keeps a layer on the plain path, which reads everything.
  if (by_square || IsCodebook(params.method) || layer.cols % 32 != 0 || group < 32)
    meta["tiling_mode"] = "2D";
  ordered_json entry;
  entry["meta"] = std::move(meta);
  return entry.dump();
}

}  // namespace sinq
