#include "server/export/export_hqq.h"

#include <cstdint>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "server/export/hf_config.h"
#include "server/export/serving_rules.h"

namespace sinq {
namespace {

using nlohmann::ordered_json;

absl::string_view Suffix(kernels::PlaneKind kind) {
  switch (kind) {
    case kernels::PlaneKind::kCodes:
      return ".W_q";
    case kernels::PlaneKind::kScale:
      return ".scale";
    default:
      return ".zero";
  }
}

// Scales are stored in the dtype that the model computes in.
absl::string_view ComputeDtype(const kernels::QuantParams& params) {
  if (params.aux == kernels::AuxStorage::kF32) return "torch.float32";
  return params.aux == kernels::AuxStorage::kF16 ? "torch.float16" : "torch.bfloat16";
}

// The package's encoding of metadata as tensors: I32 for integers, U8 for flags, characters for
// strings.
class EncodedState {
 public:
  explicit EncodedState(std::string path) : path_(std::move(path)) {}
  void Add(absl::string_view key, absl::string_view dtype, std::vector<int64_t> shape,
           std::string content) {
    const uint64_t size_bytes = content.size();
    tensors_.push_back(
        {{absl::StrCat(path_, ".", key), std::string(dtype), std::move(shape), size_bytes},
         std::move(content)});
  }
  void AddInteger(absl::string_view key, int32_t value) {
    Add(key, "I32", {}, std::string(reinterpret_cast<const char*>(&value), sizeof value));
  }
  void AddFlag(absl::string_view key, bool value) {
    Add(key, "U8", {}, std::string(1, value ? '\1' : '\0'));
  }
  void AddText(absl::string_view key, absl::string_view value) {
    Add(key, "U8", {static_cast<int64_t>(value.size())}, std::string(value));
  }
  std::vector<ExtraTensor> Take() { return std::move(tensors_); }

 private:
  std::string path_;
  std::vector<ExtraTensor> tensors_;
};

ordered_json Section(const ExportedModel& model) {
  if (model.layers.empty()) return nullptr;
  // Defaults for new layers; each stored layer has its own.
  const kernels::QuantParams& params = model.layers.front().params;
  ordered_json weights;
  weights["nbits"] = params.bits;
  weights["channel_wise"] = true;
  weights["group_size"] = params.group_size;
  weights["optimize"] = true;
  weights["round_zero"] = false;
  weights["axis"] = 1;
  weights["view_as_float"] = false;
  ordered_json section;
  section["quant_method"] = "hqq";
  section["quant_config"]["weight_quant_params"] = std::move(weights);
  section["quant_config"]["scale_quant_params"] = nullptr;
  section["quant_config"]["zero_quant_params"] = nullptr;
  section["quant_config"]["offload_meta"] = false;
  section["skip_modules"] = DenseModules(model);
  return section;
}

}  // namespace

absl::StatusOr<kernels::QuantParams> HqqExporter::Adapt(const kernels::QuantParams& requested,
                                                        absl::string_view compute_dtype) const {
  if (absl::Status status = CheckUniform(requested, Zeros::kReal, name()); !status.ok())
    return status;
  if (absl::Status status = CheckWidth(requested.bits, {2, 3, 4, 8}, name(), ""); !status.ok())
    return status;
  kernels::QuantParams params = requested;
  params.layout = kernels::Layout::kHqq;
  params.aux = AuxOf(compute_dtype);
  return params;
}

std::optional<std::string> HqqExporter::Refusal(const QuantizedLayer& layer) const {
  if (layer.rows == 1) return "one row: too few values to balance";
  const auto planes = kernels::PlanesOf(layer.params, layer.rows, layer.cols);
  if (!planes.ok()) return std::string(planes.status().message());
  return std::nullopt;
}

absl::StatusOr<std::vector<OutputTensor>> HqqExporter::Tensors(const QuantizedLayer& layer) const {
  return PlaneTensors(layer, Suffix);
}

std::vector<ExtraTensor> HqqExporter::LayerExtras(const QuantizedLayer& layer) const {
  const kernels::QuantParams& params = layer.params;
  const kernels::CodePacking& packing = kernels::PackingFor(params.bits);
  const int64_t shape[2] = {layer.rows, layer.cols};
  EncodedState state(LayerPath(layer.name));
  state.Add("shape", "I64", {2}, std::string(reinterpret_cast<const char*>(shape), sizeof shape));
  state.AddInteger("nbits", params.bits);
  state.AddInteger("group_size", kernels::EffectiveGroupSize(layer.cols, params.group_size));
  state.AddInteger("axis", 1);
  state.AddText("packing", packing.name);
  state.AddText("unpack_view_dtype", packing.word_bytes == 4 ? "torch.int32" : "torch.uint8");
  state.AddText("compute_dtype", ComputeDtype(params));
  for (const char* key : {"encoded_state_dict", "stores_quant_config", "channel_wise", "optimize"})
    state.AddFlag(key, true);
  for (const char* key :
       {"view_as_float", "offload_meta", "round_zero", "quant_scale", "quant_zero"})
    state.AddFlag(key, false);
  return state.Take();
}

absl::StatusOr<std::vector<SideFile>> HqqExporter::SideFiles(const ExportedModel& model) const {
  absl::StatusOr<std::optional<SideFile>> config = ConfigFile(model, Section(model));
  if (!config.ok()) return config.status();
  std::vector<SideFile> files;
  if (config->has_value()) files.push_back(**std::move(config));
  return files;
}

}  // namespace sinq
