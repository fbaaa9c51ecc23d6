// An output format: which tensors a quantized layer becomes, and which files stand beside the
// shards.
#ifndef SINQ_SERVER_EXPORT_EXPORTER_H_
#define SINQ_SERVER_EXPORT_EXPORTER_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/layout.h"
#include "kernels/quant_params.h"

namespace sinq {

// A tensor of an output shard, before it has an offset.
struct OutputTensor {
  std::string name;
  std::string dtype;  // safetensors spelling
  std::vector<int64_t> shape;
  uint64_t size_bytes = 0;
};

// A layer to be quantized. `name` is the source tensor's
// ("model.layers.0.self_attn.q_proj.weight").
struct QuantizedLayer {
  std::string name;
  int64_t rows = 0, cols = 0;
  kernels::QuantParams params;        // adapted by the exporter
  std::string source_dtype = "BF16";  // of the weights, safetensors spelling
};

struct ExtraTensor {  // constant content that the reader needs
  OutputTensor tensor;
  std::string content;
};

struct SideFile {
  std::string name;
  std::string content;
};

// The whole output, as far as files beside the shards tell of it.
struct ExportedModel {
  std::optional<std::string> config_json;  // the source's; absent for a bare file
  std::string compute_dtype;               // "bfloat16", "float16", "float32"
  std::vector<QuantizedLayer> layers;
  std::vector<std::string> dense_linears;  // source names of linear layers left as they are
};

// Stateless and thread-safe.
class Exporter {
 public:
  virtual ~Exporter() = default;
  virtual absl::string_view name() const = 0;  // "sinq"
  // Whether a column scale t has a place. False: balancing methods need t folded into the layer
  // before, else it stays 1.
  virtual bool HoldsColumnScale() const = 0;
  // False: layers stay in their dtype and are only folded; Refusal and Tensors are not called.
  virtual bool Quantizes() const { return true; }
  // True: the output is one file, a template's with our tensors in it (PlanOptions::gguf_template).
  // It has no other files, so that SideFiles, LayerExtras and ExtraTensors are not called.
  virtual bool PatchesTemplate() const { return false; }
  // `requested` as this format stores it: layout and storage of the auxiliaries (aux) are set, the
  // rest is kept. InvalidArgument with the reason and the nearest that works for a combination
  // which its readers cannot open. Once for every combination of a recipe.
  virtual absl::StatusOr<kernels::QuantParams> Adapt(const kernels::QuantParams& requested,
                                                     absl::string_view compute_dtype) const = 0;
  // Why this layer cannot be stored so, or its readers' kernels would refuse it (a sentence for
  // the plan's reason), or nothing. A refused layer stays dense.
  virtual std::optional<std::string> Refusal(const QuantizedLayer& layer) const = 0;
  // One per plane of kernels::PlanesOf(layer.params, rows, cols, DenseDtype(layer)), same order
  // and sizes.
  virtual absl::StatusOr<std::vector<OutputTensor>> Tensors(const QuantizedLayer& layer) const = 0;
  // Constant tensors of one layer (its shape, group indices, encoded metadata).
  virtual std::vector<ExtraTensor> LayerExtras(const QuantizedLayer& /*layer*/) const { return {}; }
  // Constant tensors of the model. `tensor_names`: every other tensor that will be in the output.
  virtual std::vector<ExtraTensor> ExtraTensors(
      const std::vector<std::string>& /*tensor_names*/) const {
    return {};
  }
  // config.json and sidecars. InvalidArgument if the source's config.json is not usable, or if the
  // layers differ in a way that the format cannot say.
  virtual absl::StatusOr<std::vector<SideFile>> SideFiles(const ExportedModel& model) const = 0;
};

// dtype of plane kDense: that of the weights, BF16 for FP8.
kernels::PlaneDtype DenseDtype(const QuantizedLayer& layer);
// Safetensors spelling.
absl::string_view DtypeName(kernels::PlaneDtype dtype);
// "model.layers.0.mlp.up_proj.weight" -> "model.layers.0.mlp.up_proj"; other names are kept.
std::string LayerPath(absl::string_view weight_name);

std::unique_ptr<Exporter> MakeSinqExporter();
// All names that MakeExporter takes.
std::vector<absl::string_view> WrittenFormats();
// InvalidArgument naming the formats that exist.
absl::StatusOr<std::unique_ptr<Exporter>> MakeExporter(absl::string_view format);

}  // namespace sinq

#endif  // SINQ_SERVER_EXPORT_EXPORTER_H_
