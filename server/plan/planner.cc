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
#include "server/plan/fold_stages.h"
#include "server/plan/gguf_plan.h"
#include "server/plan/model_shape.h"
#include "server/plan/plan.h"
#include "server/plan/recipe_rules.h"
#include "server/plan/shard_layout.h"
#include "server/plan/source_model.h"
#include "server/plan/tensor_rules.h"
#include "server/plan/width_candidates.h"
#include "server/plan/width_plan.h"

namespace sinq {
namespace {

constexpr char kScaleSuffix[] = "_scale_inv";  // "P.weight" -> "P.weight_scale_inv"
constexpr int64_t kFp8Block = 128;

// What the recipe asks for a tensor.
struct Asked {
  bool is_quantizable = false;  // by its name, dtype and shape
  bool to_quantize = false;     // and the recipe wants it
  int rule = kNoRule;
  bool is_open = false;         // its width is chosen from candidates
  std::string note;             // for the plan's reason
  kernels::QuantParams params;  // adapted to the format
};

class Planner {
 public:
  Planner(const JobSpec& spec, const ModelSource& source, const Exporter& exporter,
          const PlanOptions& options)
      : spec_(spec), source_(source), exporter_(exporter), options_(options) {}

  absl::StatusOr<Plan> Run() {
    const absl::StatusOr<SourceModel> model = ReadSourceModel(source_);
    if (!model.ok()) return model.status();
    compute_dtype_ = model->compute_dtype;
    if (absl::Status status = DecideTensors(); !status.ok()) return status;
    if (absl::Status status = AddFiles(); !status.ok()) return status;
    if (absl::Status status = CheckNames(); !status.ok()) return status;
    AddTotals();
    if (options_.widths == nullptr) {
      if (absl::Status status = CheckTarget(spec_, plan_); !status.ok()) return status;
    }
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
    absl::StatusOr<RecipeRules> rules = RecipeRules::Make(spec_);
    if (!rules.ok()) return rules.status();
    for (PlannedTensor& tensor : plan_.tensors) Select(tensor, *filter, *rules);
    if (absl::Status status = filter->CheckAllMatched(); !status.ok()) return status;
    if (absl::Status status = rules->CheckAllMatched(); !status.ok()) return status;
    if (absl::Status status = CheckActivationNames(); !status.ok()) return status;
    if (absl::Status status = CheckFused(*rules); !status.ok()) return status;
    if (absl::Status status = AskParams(*rules); !status.ok()) return status;
    if (absl::Status status = ChooseWidths(); !status.ok()) return status;
    for (size_t i = 0; i < plan_.tensors.size(); ++i) {
      if (absl::Status status = Decide(plan_.tensors[i], asked_[i]); !status.ok()) return status;
    }
    if (!exporter_.HoldsColumnScale()) {
      if (absl::Status status = Fold(); !status.ok()) return status;
    }
    if (absl::Status status = WidenDenseFp8(); !status.ok()) return status;
    DropUsedScales();
    return absl::OkStatus();
  }

  // The output's config says nothing of FP8, so nobody would multiply the block scales in. After
  // folding, in which a dense layer has no vote.
  absl::Status WidenDenseFp8() {
    for (PlannedTensor& tensor : plan_.tensors) {
      const bool is_dense_fp8 = tensor.action == TensorAction::kCopy &&
                                tensor.source.dtype == "F8_E4M3" && tensor.source.shape.size() == 2;
      if (!is_dense_fp8) continue;
      if (absl::Status status = WriteFolded(tensor); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  // Whether the recipe quantizes the tensor, and by which rule. A reason, if it does not.
  void Select(PlannedTensor& tensor, NameFilter& filter, RecipeRules& rules) {
    Asked& asked = asked_.emplace_back();
    const bool bare_file = !source_.config_json().has_value();
    std::optional<std::string> reason = ReasonToCopy(tensor.source, bare_file);
    if (!reason) reason = filter.ReasonToCopy(tensor.source.name);
    asked.is_quantizable = !reason;
    if (!reason) {
      asked.rule = rules.RuleFor(tensor.source.name);
      asked.to_quantize =
          asked.rule == kNoRule || spec_.rules[static_cast<size_t>(asked.rule)].quantize;
      if (!asked.to_quantize)
        reason = absl::StrCat("left as it is by ", rules.Describe(asked.rule));
    }
    if (reason) tensor.reason = *reason;
  }

  absl::Status CheckFused(const RecipeRules& rules) const {
    if (spec_.rules.empty() || !EnginesFuse(spec_.format)) return absl::OkStatus();
    std::vector<std::string> names;
    std::vector<int> numbers;
    for (size_t i = 0; i < plan_.tensors.size(); ++i) {
      if (!asked_[i].is_quantizable) continue;
      names.push_back(plan_.tensors[i].source.name);
      numbers.push_back(asked_[i].rule);
    }
    return rules.CheckFusedAlike(names, numbers);
  }

  // What each tensor is to be quantized with, as the format stores it; open ones come later.
  absl::Status AskParams(const RecipeRules& rules) {
    std::map<int, kernels::QuantParams> adapted;  // by rule
    for (size_t i = 0; i < asked_.size(); ++i) {
      Asked& asked = asked_[i];
      if (!asked.to_quantize) continue;
      asked.params = RequestedParams(spec_, asked.rule);
      asked.is_open = asked.params.bits == 0;
      if (asked.rule != kNoRule) asked.note = absl::StrCat("; by ", rules.Describe(asked.rule));
      if (asked.is_open) continue;
      const auto [found, fresh] = adapted.try_emplace(asked.rule, asked.params);
      if (fresh) {
        absl::StatusOr<kernels::QuantParams> params =
            AdaptParams(exporter_, asked.params, compute_dtype_);
        if (!params.ok()) {
          return asked.rule == kNoRule ? params.status()
                                       : Annotate(params.status(), rules.Describe(asked.rule));
        }
        found->second = *params;
      }
      asked.params = found->second;
    }
    return absl::OkStatus();
  }

  // For each group of open tensors the width that was chosen, or the smallest.
  absl::Status ChooseWidths() {
    std::vector<OpenTensor> open;
    for (size_t i = 0; i < asked_.size(); ++i) {
      if (!asked_[i].is_open) continue;
      const RecipeRule* rule =
          asked_[i].rule == kNoRule ? nullptr : &spec_.rules[static_cast<size_t>(asked_[i].rule)];
      open.push_back({static_cast<int>(i), &plan_.tensors[i].source, asked_[i].params,
                      rule == nullptr ? 0 : rule->group_size});
    }
    absl::StatusOr<std::vector<OpenGroup>> groups =
        FindWidths(spec_, exporter_, compute_dtype_, open);
    if (!groups.ok()) return groups.status();
    for (OpenGroup& group : *groups) {
      if (absl::Status status = ChooseWidth(group); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status ChooseWidth(OpenGroup& group) {
    size_t chosen = 0;
    if (!group.widths.widths.empty()) {
      const absl::StatusOr<size_t> found = ChosenIn(group.widths);
      if (!found.ok()) return found.status();
      chosen = *found;
    }
    for (const OpenMember& member : group.members) {
      const size_t index = static_cast<size_t>(member.tensor);
      Asked& asked = asked_[index];
      asked.params = member.candidates[chosen];
      if (member.is_refused) continue;
      if (options_.widths != nullptr) absl::StrAppend(&asked.note, "; bits chosen for the target");
      for (kernels::QuantParams params : member.candidates) {
        const SourceTensor& source = plan_.tensors[index].source;
        params.group_size = kernels::EffectiveGroupSize(source.shape[1], params.group_size);
        plan_.tensors[index].candidates.push_back(params);
      }
    }
    if (!group.widths.widths.empty()) plan_.width_groups.push_back(std::move(group.widths));
    return absl::OkStatus();
  }

  absl::StatusOr<size_t> ChosenIn(const WidthGroup& group) const {
    if (options_.widths == nullptr) {
      return static_cast<size_t>(std::min_element(group.bytes.begin(), group.bytes.end()) -
                                 group.bytes.begin());
    }
    const auto chosen = options_.widths->find(group.name);
    const auto found = chosen == options_.widths->end()
                           ? group.widths.end()
                           : std::find(group.widths.begin(), group.widths.end(), chosen->second);
    if (found != group.widths.end()) return static_cast<size_t>(found - group.widths.begin());
    return absl::InternalError(absl::StrCat("no width was chosen for ", group.name));
  }

  absl::Status Decide(PlannedTensor& tensor, const Asked& asked) {
    if (asked.to_quantize) {
      if (!exporter_.Quantizes()) return StayDense(tensor, asked);
      const QuantizedLayer layer = LayerOf(tensor);
      const std::optional<std::string> refusal = exporter_.Refusal(layer);
      if (!refusal) return Quantize(tensor, layer, asked);
      tensor.reason = *refusal;
    }
    tensor.outputs.push_back({AsItIs(tensor.source)});
    return absl::OkStatus();
  }

  static OutputTensor AsItIs(const SourceTensor& source) {
    return {source.name, source.dtype, source.shape, source.size_bytes};
  }

  // `tensor` is one of plan_.tensors.
  QuantizedLayer LayerOf(const PlannedTensor& tensor) const {
    const size_t index = static_cast<size_t>(&tensor - plan_.tensors.data());
    return sinq::LayerOf(tensor.source, asked_[index].params);
  }

  absl::Status Quantize(PlannedTensor& tensor, const QuantizedLayer& layer, const Asked& asked) {
    if (absl::Status status = FindBlockScales(tensor); !status.ok()) return status;
    if (absl::Status status = FindActivations(tensor, asked); !status.ok()) return status;
    const absl::StatusOr<std::vector<OutputTensor>> outputs = exporter_.Tensors(layer);
    if (!outputs.ok()) return outputs.status();
    tensor.action = TensorAction::kQuantize;
    tensor.params = asked.params;
    tensor.params.group_size = kernels::EffectiveGroupSize(layer.cols, asked.params.group_size);
    tensor.params.aux = kernels::EffectiveAux(asked.params, layer.rows, layer.cols);
    tensor.reason = ReasonToQuantize(tensor, asked);
    for (const OutputTensor& output : *outputs) tensor.outputs.push_back({output});
    return absl::OkStatus();
  }

  absl::Status FindActivations(PlannedTensor& tensor, const Asked& asked) const {
    if (!kernels::NeedsActivations(asked.params.method)) return absl::OkStatus();
    if (options_.activations == nullptr) return absl::InternalError("no activations were opened");
    absl::StatusOr<ActivationTensor> found =
        options_.activations->Find(LayerPath(tensor.source.name), tensor.source.shape[1]);
    if (!found.ok()) return found.status();
    tensor.activations = *std::move(found);
    return absl::OkStatus();
  }

  // A name that fits nothing is a mistake that would otherwise go unseen.
  absl::Status CheckActivationNames() const {
    if (options_.activations == nullptr) return absl::OkStatus();
    return options_.activations->CheckLayers([this](const std::string& layer) {
      return index_.contains(layer) || index_.contains(layer + ".weight");
    });
  }

  static std::string ReasonToQuantize(const PlannedTensor& tensor, const Asked& asked) {
    std::string reason = absl::StrCat("linear layer", asked.note);
    if (tensor.params.group_size != asked.params.group_size) {
      absl::StrAppend(&reason, "; groups of ", tensor.params.group_size, ", because ",
                      asked.params.group_size, " does not divide in_features");
    }
    if (tensor.params.aux != asked.params.aux)
      absl::StrAppend(&reason, "; f16 scales, because their number is not a multiple of 32");
    return reason;
  }

  // A layer that is balanced for a later quantizer.
  absl::Status StayDense(PlannedTensor& tensor, const Asked& asked) {
    tensor.params = asked.params;
    tensor.params.group_size =
        kernels::EffectiveGroupSize(tensor.source.shape[1], asked.params.group_size);
    tensor.reason = absl::StrCat("linear layer", asked.note);
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
    if (found == index_.end()) {
      return MakeError(
          absl::StatusCode::kInvalidArgument, Reason::kUnsupportedSource,
          absl::StrCat(tensor.source.name, " is FP8 without a factor for each block of 128 x 128 (",
                       tensor.source.name, kScaleSuffix,
                       "), the only kind of FP8 that is read; give the original checkpoint."),
          {{"tensor", tensor.source.name}});
    }
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

  absl::Status AddFiles() {
    if (exporter_.PatchesTemplate()) return PatchTemplate();
    AddExtras();
    PlaceTensors();
    return AddSideFiles();
  }

  absl::Status PatchTemplate() {
    if (options_.gguf_template == nullptr) return absl::InternalError("no template was opened");
    const absl::StatusOr<ModelShape> shape = ReadModelShape(source_.config_json());
    if (!shape.ok()) return shape.status();
    return PlanGguf(*options_.gguf_template, source_, *shape, plan_);
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
      for (ExtraTensor& extra : exporter_.LayerExtras(LayerOf(tensor)))
        AddExtra(std::move(extra), tensor.source.file_index);
    }
    for (ExtraTensor& extra : exporter_.ExtraTensors(names)) AddExtra(std::move(extra), 0);
  }

  // One output shard for each source shard, its tensors in the order in which they will be done.
  void PlaceTensors() {
    const size_t shards = std::max<size_t>(source_.files().size(), 1);
    struct Shard {
      std::vector<OutputRange*> ranges, extras;
    };
    std::vector<Shard> placed(shards);
    for (const FoldStage& stage : FoldStagesOf(plan_)) {
      for (const int index : stage.tensors) {
        PlannedTensor& tensor = plan_.tensors[static_cast<size_t>(index)];
        for (OutputRange& range : tensor.outputs)
          placed[static_cast<size_t>(tensor.source.file_index)].ranges.push_back(&range);
      }
    }
    for (PlannedExtra& extra : plan_.extras)
      placed[static_cast<size_t>(extra.range.file_index)].extras.push_back(&extra.range);
    std::vector<Shard> used;
    for (Shard& shard : placed) {
      if (!shard.ranges.empty() || !shard.extras.empty()) used.push_back(std::move(shard));
    }
    for (size_t i = 0; i < used.size(); ++i) {
      for (OutputRange* range : used[i].ranges) range->file_index = static_cast<int>(i);
      for (OutputRange* extra : used[i].extras) extra->file_index = static_cast<int>(i);
      plan_.files.push_back(
          LayOutShard(absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1, used.size()),
                      used[i].ranges, used[i].extras));
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

  absl::Status AddSideFiles() {
    ExportedModel model{source_.config_json(), compute_dtype_, {}, {}};
    for (const PlannedTensor& tensor : plan_.tensors) {
      if (tensor.action == TensorAction::kQuantize)
        model.layers.push_back(LayerOf(tensor));
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
    std::vector<uint64_t> working_bytes;
    for (const PlannedTensor& tensor : plan_.tensors) {
      if (!tensor.from_template) plan_.source_bytes += tensor.source.size_bytes;
      if (tensor.measured) plan_.measured_bytes += tensor.source.size_bytes;
      uint64_t out_bytes = 0;
      for (const OutputRange& range : tensor.outputs) out_bytes += range.tensor.size_bytes;
      if (tensor.action == TensorAction::kFold)
        working_bytes.push_back(tensor.source.size_bytes + out_bytes);
      if (tensor.action != TensorAction::kQuantize) continue;
      plan_.quantized_bytes += out_bytes;
      plan_.quantized_weights += static_cast<uint64_t>(tensor.source.shape[0]) *
                                 static_cast<uint64_t>(tensor.source.shape[1]);
      const uint64_t known_bytes = tensor.activations ? tensor.activations->FloatBytes() : 0;
      working_bytes.push_back(tensor.source.size_bytes + out_bytes + known_bytes);
    }
    if (plan_.quantized_weights > 0) {
      for (const PlannedExtra& extra : plan_.extras)
        plan_.quantized_bytes += extra.range.tensor.size_bytes;
    }
    for (const PlannedFile& file : plan_.files) plan_.output_bytes += file.size_bytes;
    for (const SideFile& file : plan_.side_files) plan_.output_bytes += file.content.size();
    for (const AuxFile& file : plan_.copied_files) plan_.output_bytes += file.size_bytes;
    plan_.disk_bytes = plan_.output_bytes;
    if (plan_.quantized_weights > 0) {
      plan_.effective_bits = 8.0 * static_cast<double>(plan_.quantized_bytes) /
                             static_cast<double>(plan_.quantized_weights);
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
    if (options_.activations != nullptr) add(options_.activations->fingerprint());
    if (plan_.gguf_template)
      add(absl::StrCat(plan_.gguf_template->header_sha256, " ", plan_.gguf_template->size_bytes));
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
  std::string compute_dtype_;
  std::vector<Asked> asked_;  // by tensor
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
