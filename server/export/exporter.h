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
  kernels::QuantParams params;
};

struct ExtraTensor {  // constant content that the reader needs (rotary dummy)
  OutputTensor tensor;
  std::string content;
};

struct SideFile {
  std::string name;
  std::string content;
};

// Stateless and thread-safe.
class Exporter {
 public:
  virtual ~Exporter() = default;
  virtual absl::string_view name() const = 0;  // "sinq"
  // False: the planner looks for neighbours to fold the layers' column scales into.
  virtual bool HoldsColumnScale() const { return true; }
  // False: layers stay in their dtype and are only folded; Tensors is not called.
  virtual bool Quantizes() const { return true; }
  // Why this layer cannot be stored so (a sentence for the plan's reason), or nothing.
  virtual std::optional<std::string> Refusal(const QuantizedLayer& layer) const = 0;
  // One per plane of kernels::NativePlanes(layer.params, rows, cols), same order and sizes.
  virtual absl::StatusOr<std::vector<OutputTensor>> Tensors(const QuantizedLayer& layer) const = 0;
  // `tensor_names`: every tensor that will be in the output.
  virtual std::vector<ExtraTensor> ExtraTensors(
      const std::vector<std::string>& tensor_names) const = 0;
  // config.json and sidecars. `config_json` is the source's, absent for a bare file.
  // InvalidArgument if it is not usable.
  virtual absl::StatusOr<std::vector<SideFile>> SideFiles(
      const std::optional<std::string>& config_json, absl::string_view compute_dtype,
      const std::vector<QuantizedLayer>& layers) const = 0;
};

std::unique_ptr<Exporter> MakeSinqExporter();
// "sinq" only, so far; InvalidArgument naming the formats that exist.
absl::StatusOr<std::unique_ptr<Exporter>> MakeExporter(absl::string_view format);

}  // namespace sinq

#endif  // SINQ_SERVER_EXPORT_EXPORTER_H_
