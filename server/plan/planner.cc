#include <algorithm>
#include <map>
#include <memory>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"
#include "server/base/error.h"
#include "server/base/limits.h"
#include "server/base/sha256.h"
#include "server/plan/fold_plan.h"
#include "server/plan/model_shape.h"
#include "server/plan/plan.h"
#include "server/plan/shard_layout.h"
#include "server/plan/source_model.h"
#include "server/plan/tensor_rules.h"

namespace sinq {
namespace {

constexpr char kScaleSuffix[] = "_scale_inv";  // "P.weight" -> "P.weight_scale_inv"
constexpr int64_t kFp8Block = 128;

kernels::QuantParams ParamsOf(const JobSpec& spec) {
  kernels::QuantParams params;
  kernels::ParseMethod(spec.method, &params.method);
  kernels::ParseProfile(spec.profile, &params.profile);
  kernels::ParseAux(spec.aux, &params.aux);
  kernels::ParseTiling(spec.tiling, &params.tiling);
  params.bits = spec.bits;
  params.group_size = spec.group_size;
  params.symmetric = spec.symmetric;
  return params;
}

class Planner {
 public:
  Planner(const JobSpec& spec, const ModelSource& source, const Exporter& exporter,
          const PlanOptions& options)
      : spec_(spec), source_(source), exporter_(exporter), options_(options) {}

  absl::StatusOr<Plan> Run() {
    const absl::StatusOr<SourceModel> model = ReadSourceModel(source_);
    if (!model.ok()) return model.status();
    const absl::StatusOr<kernels::QuantParams> params =
        exporter_.Adapt(ParamsOf(spec_), model->compute_dtype);
    if (!params.ok()) return params.status();
    params_ = *params;
    if (absl::Status status = kernels::Validate(params_); !status.ok()) return status;
    if (absl::Status status = DecideTensors(); !status.ok()) return status;
    AddExtras();
    PlaceTensors();
    if (absl::Status status = AddSideFiles(model->compute_dtype); !status.ok()) return status;
    if (absl::Status status = CheckNames(); !status.ok()) return status;
    AddTotals();
    plan_.digest = Digest();
    return std::move(plan_);
  }

 private:
  absl::Status DecideTensors() {
    absl::StatusOr<NameFilter> filter = NameFilter::Make(spec_);
    if (!filter.ok()) return filter.status();
    for (const SourceTensor& tensor : source_.tensors()) index_[tensor.name] = index_.size();
    for (const SourceTensor& tensor : source_.tensors())
      plan_.tensors.emplace_back().source = tensor;
    for (PlannedTensor& tensor : plan_.tensors) {
      if (absl::Status status = Decide(tensor, *filter); !status.ok()) return status;
    }
    if (!exporter_.HoldsColumnScale()) {
      if (absl::Status status = Fold(); !status.ok()) return status;
    }
    DropUsedScales();
    return filter->CheckAllMatched();
  }

  absl::Status Decide(PlannedTensor& tensor, NameFilter& filter) {
    std::optional<std::string> reason =
        ReasonToCopy(tensor.source, !source_.config_json().has_value());
    if (!reason) reason = filter.ReasonToCopy(tensor.source.name);
    if (!reason && !exporter_.Quantizes()) return StayDense(tensor);
    if (!reason) {
      const QuantizedLayer layer = LayerOf(tensor.source);
      reason = exporter_.Refusal(layer);
      if (!reason) return Quantize(tensor, layer);
    }
    tensor.reason = *reason;
    tensor.outputs.push_back({AsItIs(tensor.source)});
    return absl::OkStatus();
  }

  static OutputTensor AsItIs(const SourceTensor& source) {
    return {source.name, source.dtype, source.shape, source.size_bytes};
  }

  QuantizedLayer LayerOf(const SourceTensor& source) const {
    return {source.name, source.shape[0], source.shape[1], params_, source.dtype};
  }

  absl::Status Quantize(PlannedTensor& tensor, const QuantizedLayer& layer) {
    if (absl::Status status = FindBlockScales(tensor); !status.ok()) return status;
    const absl::StatusOr<std::vector<OutputTensor>> outputs = exporter_.Tensors(layer);
    if (!outputs.ok()) return outputs.status();
    tensor.action = TensorAction::kQuantize;
    tensor.params = params_;
    tensor.params.group_size = kernels::EffectiveGroupSize(layer.cols, params_.group_size);
    tensor.params.aux = kernels::EffectiveAux(params_, layer.rows, layer.cols);
    tensor.reason = ReasonToQuantize(tensor);
    for (const OutputTensor& output : *outputs) tensor.outputs.push_back({output});
    return absl::OkStatus();
  }

  std::string ReasonToQuantize(const PlannedTensor& tensor) const {
    std::string reason = "linear layer";
    if (tensor.params.group_size != params_.group_size) {
      absl::StrAppend(&reason, "; groups of ", tensor.params.group_size, ", because ",
                      params_.group_size, " does not divide in_features");
    }
    if (tensor.params.aux != params_.aux)
      absl::StrAppend(&reason, "; f16 scales, because their number is not a multiple of 32");
    return reason;
  }

  // A layer that is balanced for a later quantizer.
  absl::Status StayDense(PlannedTensor& tensor) {
    tensor.params = params_;
    tensor.params.group_size =
        kernels::EffectiveGroupSize(tensor.source.shape[1], params_.group_size);
    tensor.reason = "linear layer";
    return WriteFolded(tensor);
  }

  // Makes it a tensor of one plane that the worker computes: FP8 becomes BF16.
  absl::Status WriteFolded(PlannedTensor& tensor) {
    if (absl::Status status = FindBlockScales(tensor); !status.ok()) return status;
    tensor.action = TensorAction::kFold;
    OutputTensor output = AsItIs(tensor.source);
    if (output.dtype == "F8_E4M3") {
      output.dtype = "BF16";
      output.size_bytes *= 2;
      absl::StrAppend(&tensor.reason, "; FP8 with its block scales becomes BF16");
    }
    tensor.outputs = {{std::move(output)}};
    return absl::OkStatus();
  }

  absl::Status Fold() {
    if (spec_.fold == "off") {
      plan_.fold.note = "no column scale is folded: the recipe says off";
    } else {
      const absl::StatusOr<ModelShape> shape = ReadModelShape(source_.config_json());
      if (!shape.ok()) return shape.status();
      absl::StatusOr<FoldPlan> fold = FindFolds(*shape, plan_.tensors);
      if (!fold.ok()) return fold.status();
      plan_.fold = *std::move(fold);
    }
    // Before any dense tensor is made foldable.
    for (const FoldPair& pair : plan_.fold.pairs) MarkMeasured(pair);
    for (size_t i = 0; i < plan_.fold.pairs.size(); ++i) {
      if (absl::Status status = ApplyPair(static_cast<int>(i)); !status.ok()) return status;
    }
    for (PlannedTensor& tensor : plan_.tensors) ExplainUnfolded(tensor);
    return absl::OkStatus();
  }

  void MarkMeasured(const FoldPair& pair) {
    if (!pair.folded()) return;
    for (const int index : pair.consumers) {
      PlannedTensor& tensor = plan_.tensors[static_cast<size_t>(index)];
      tensor.measured = IsMeasurable(tensor);
    }
  }

  absl::Status ApplyPair(int number) {
    const FoldPair& pair = plan_.fold.pairs[static_cast<size_t>(number)];
    if (!pair.folded()) return absl::OkStatus();
    for (const int index : pair.consumers) {
      PlannedTensor& tensor = plan_.tensors[static_cast<size_t>(index)];
      tensor.fold_columns = number;
      absl::StrAppend(&tensor.reason, "; columns divided by the scale folded into ", pair.name);
      if (absl::Status status = MakeFoldable(tensor); !status.ok()) return status;
    }
    for (const int index : {pair.producer, pair.bias}) {
      if (index < 0) continue;
      PlannedTensor& tensor = plan_.tensors[static_cast<size_t>(index)];
      tensor.fold_rows = number;
      const PlannedTensor& first = plan_.tensors[static_cast<size_t>(pair.consumers.front())];
      absl::StrAppend(&tensor.reason, "; multiplied by the column scale of ", first.source.name);
      if (pair.consumers.size() > 1)
        absl::StrAppend(&tensor.reason, " and ", pair.consumers.size() - 1, " more");
      if (absl::Status status = MakeFoldable(tensor); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status MakeFoldable(PlannedTensor& tensor) {
    return tensor.action == TensorAction::kCopy ? WriteFolded(tensor) : absl::OkStatus();
  }

  // A layer whose column scale has no place, and a dense one that nothing is folded into.
  static void ExplainUnfolded(PlannedTensor& tensor) {
    if (tensor.action == TensorAction::kQuantize && tensor.fold_columns < 0 &&
        kernels::Balances(tensor.params.method))
      absl::StrAppend(&tensor.reason, "; without a column scale, because it cannot be folded");
    if (tensor.action != TensorAction::kFold || tensor.is_folded()) return;
    absl::StrAppend(&tensor.reason, "; nothing is folded into it");
    if (tensor.source.dtype != "F8_E4M3") tensor.action = TensorAction::kCopy;
  }

  // The 128 x 128 block factors of an FP8 weight, if the checkpoint has them.
  absl::Status FindBlockScales(PlannedTensor& tensor) {
    if (tensor.source.dtype != "F8_E4M3") return absl::OkStatus();
    const auto found = index_.find(tensor.source.name + kScaleSuffix);
    if (found == index_.end()) return absl::OkStatus();
    const SourceTensor& scale = plan_.tensors[found->second].source;
    const std::vector<int64_t> expected = {(tensor.source.shape[0] + kFp8Block - 1) / kFp8Block,
                                           (tensor.source.shape[1] + kFp8Block - 1) / kFp8Block};
    if ((scale.dtype != "F32" && scale.dtype != "BF16") || scale.shape != expected) {
      return MakeError(
          absl::StatusCode::kInvalidArgument, Reason::kMalformedSource,
          absl::StrCat(scale.name, " must be F32 or BF16 with one factor per 128 x 128 block: [",
                       expected[0], ", ", expected[1], "]."),
          {{"tensor", scale.name}});
    }
    tensor.scale_tensor = static_cast<int>(found->second);
    return absl::OkStatus();
  }

  void DropUsedScales() {
    for (const PlannedTensor& tensor : plan_.tensors) {
      if (tensor.scale_tensor < 0) continue;
      PlannedTensor& scale = plan_.tensors[static_cast<size_t>(tensor.scale_tensor)];
      scale.action = TensorAction::kDrop;
      scale.reason = absl::StrCat("block scales, multiplied into ", tensor.source.name);
      scale.outputs.clear();
    }
  }

  void AddExtra(ExtraTensor extra, int file_index) {
    auto& content = contents_[extra.content];
    if (content == nullptr) content = std::make_shared<const std::string>(extra.content);
    plan_.extras.push_back({{std::move(extra.tensor), file_index}, content});
  }

  void AddExtras() {
    std::vector<std::string> names;
    for (const PlannedTensor& tensor : plan_.tensors) {
      for (const OutputRange& range : tensor.outputs) names.push_back(range.tensor.name);
      if (tensor.action != TensorAction::kQuantize) continue;
      for (ExtraTensor& extra : exporter_.LayerExtras(LayerOf(tensor.source)))
        AddExtra(std::move(extra), tensor.source.file_index);
    }
    for (ExtraTensor& extra : exporter_.ExtraTensors(names)) AddExtra(std::move(extra), 0);
  }

  // One output shard for each source shard.
  void PlaceTensors() {
    const size_t shards = std::max<size_t>(source_.files().size(), 1);
    std::vector<std::vector<OutputRange*>> ranges(shards);
    for (PlannedTensor& tensor : plan_.tensors) {
      for (OutputRange& range : tensor.outputs)
        ranges[static_cast<size_t>(tensor.source.file_index)].push_back(&range);
    }
    for (PlannedExtra& extra : plan_.extras)
      ranges[static_cast<size_t>(extra.range.file_index)].push_back(&extra.range);
    std::vector<std::vector<OutputRange*>> used;
    for (auto& shard : ranges) {
      if (!shard.empty()) used.push_back(std::move(shard));
    }
    for (size_t i = 0; i < used.size(); ++i) {
      for (OutputRange* range : used[i]) range->file_index = static_cast<int>(i);
      plan_.files.push_back(LayOutShard(
          absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1, used.size()), used[i]));
    }
  }

  SideFile Index() const {
    uint64_t total = 0;
    nlohmann::json map = nlohmann::json::object();
    const auto add = [&](const OutputRange& range) {
      map[range.tensor.name] = plan_.files[static_cast<size_t>(range.file_index)].name;
      total += range.tensor.size_bytes;
    };
    for (const PlannedTensor& tensor : plan_.tensors)
      std::for_each(tensor.outputs.begin(), tensor.outputs.end(), add);
    for (const PlannedExtra& extra : plan_.extras) add(extra.range);
    nlohmann::ordered_json index;
    index["metadata"]["total_size"] = total;
    index["weight_map"] = map;
    return {"model.safetensors.index.json", index.dump(2) + "\n"};
  }

  absl::Status AddSideFiles(absl::string_view compute_dtype) {
    ExportedModel model{source_.config_json(), std::string(compute_dtype), {}, {}};
    for (const PlannedTensor& tensor : plan_.tensors) {
      if (tensor.action == TensorAction::kQuantize)
        model.layers.push_back(LayerOf(tensor.source));
      else if (tensor.action != TensorAction::kDrop && IsLinear(tensor.source))
        model.dense_linears.push_back(tensor.source.name);
    }
    absl::StatusOr<std::vector<SideFile>> files = exporter_.SideFiles(model);
    if (!files.ok()) return files.status();
    plan_.side_files = *std::move(files);
    plan_.side_files.push_back(Index());
    plan_.copied_files = source_.aux_files();
    return absl::OkStatus();
  }

  // Two outputs of one name would make a file that no reader accepts.
  absl::Status CheckNames() const {
    std::set<std::string> names;
    for (const PlannedTensor& tensor : plan_.tensors) {
      for (const OutputRange& range : tensor.outputs) {
        if (!names.insert(range.tensor.name).second) return SameName(range.tensor.name);
      }
    }
    for (const PlannedExtra& extra : plan_.extras) {
      if (!names.insert(extra.range.tensor.name).second) return SameName(extra.range.tensor.name);
    }
    return absl::OkStatus();
  }

  static absl::Status SameName(const std::string& name) {
    return MakeError(absl::StatusCode::kInvalidArgument, Reason::kUnsupportedSource,
                     absl::StrCat("Two tensors of the output would be called ", name,
                                  "; exclude one of their sources."),
                     {{"tensor", name}});
  }

  void AddTotals() {
    uint64_t quantized_bytes = 0;
    std::vector<uint64_t> working_bytes;
    for (const PlannedTensor& tensor : plan_.tensors) {
      plan_.source_bytes += tensor.source.size_bytes;
      if (tensor.measured) plan_.measured_bytes += tensor.source.size_bytes;
      uint64_t out_bytes = 0;
      for (const OutputRange& range : tensor.outputs) out_bytes += range.tensor.size_bytes;
      if (tensor.action == TensorAction::kFold)
        working_bytes.push_back(tensor.source.size_bytes + out_bytes);
      if (tensor.action != TensorAction::kQuantize) continue;
      quantized_bytes += out_bytes;
      plan_.quantized_weights += static_cast<uint64_t>(tensor.source.shape[0]) *
                                 static_cast<uint64_t>(tensor.source.shape[1]);
      working_bytes.push_back(tensor.source.size_bytes + out_bytes);
    }
    for (const PlannedFile& file : plan_.files) plan_.output_bytes += file.size_bytes;
    for (const SideFile& file : plan_.side_files) plan_.output_bytes += file.content.size();
    for (const AuxFile& file : plan_.copied_files) plan_.output_bytes += file.size_bytes;
    plan_.disk_bytes = plan_.output_bytes;
    if (plan_.quantized_weights > 0) {
      plan_.effective_bits =
          8.0 * static_cast<double>(quantized_bytes) / static_cast<double>(plan_.quantized_weights);
    }
    const uint64_t largest =
        working_bytes.empty() ? 0 : *std::max_element(working_bytes.begin(), working_bytes.end());
    plan_.peak_memory_bytes =
        std::max(options_.memory_budget_bytes, largest) + FoldMemoryBytes(plan_.fold);
  }

  std::string Digest() const {
    Sha256 digest;
    const auto add = [&](absl::string_view text) {
      digest.Update(absl::StrCat(text.size(), ":", text));
    };
    add(source_.Fingerprint());
    add(RecipeToJson(spec_));
    for (const PlannedTensor& tensor : plan_.tensors)
      add(absl::StrCat(tensor.source.name, "\n", ActionName(tensor.action), "\n", tensor.reason));
    add(plan_.fold.note);
    for (const FoldPair& pair : plan_.fold.pairs) add(FoldPairText(pair));
    for (const PlannedFile& file : plan_.files) {
      add(file.name);
      add(file.header);
    }
    for (const SideFile& file : plan_.side_files) {
      add(file.name);
      add(file.content);
    }
    for (const AuxFile& file : plan_.copied_files)
      add(absl::StrCat(file.name, " ", file.size_bytes));
    return digest.HexDigest();
  }

  const JobSpec& spec_;
  const ModelSource& source_;
  const Exporter& exporter_;
  const PlanOptions& options_;
  kernels::QuantParams params_;  // adapted to the format
  std::map<std::string, size_t> index_;
  std::map<std::string, std::shared_ptr<const std::string>> contents_;  // of the extra tensors
  Plan plan_;
};

}  // namespace

absl::StatusOr<Plan> MakePlan(const JobSpec& spec, const ModelSource& source,
                              const Exporter& exporter, const PlanOptions& options) {
  return Planner(spec, source, exporter, options).Run();
}

}  // namespace sinq
