#include "server/plan/fold_plan.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "kernels/layout.h"
#include "server/base/error.h"
#include "server/base/limits.h"
#include "server/base/text.h"
#include "server/plan/layer_tensors.h"

namespace sinq {
namespace {

constexpr absl::string_view kExperts = ".experts.";
constexpr size_t kMaxQuotedBytes = 100;  // of a checkpoint's text in a message

bool IsFloatDtype(absl::string_view dtype) {
  return dtype == "BF16" || dtype == "F16" || dtype == "F32";
}

bool IsLinearProducer(FoldProducer kind) {
  return kind != FoldProducer::kNorm && kind != FoldProducer::kNormPlusOne;
}

bool PassesAttention(FoldProducer kind) {
  return kind == FoldProducer::kValueRows || kind == FoldProducer::kFusedValueRows ||
         kind == FoldProducer::kLatentValueRows;
}

// The number in "mlp.experts.7.up_proj.weight" and where it stands; nothing if there is none.
struct ExpertNumber {
  size_t begin = 0, end = 0;
  std::string text;
};
std::optional<ExpertNumber> ExpertOf(absl::string_view name) {
  const size_t found = name.find(kExperts);
  if (found == absl::string_view::npos) return std::nullopt;
  const size_t begin = found + kExperts.size();
  size_t end = begin;
  while (end < name.size() && absl::ascii_isdigit(static_cast<unsigned char>(name[end]))) ++end;
  if (end == begin || end == name.size() || name[end] != '.') return std::nullopt;
  return ExpertNumber{begin, end, std::string(name.substr(begin, end - begin))};
}

// "mlp.experts.*.up_proj?" for expert 7: "mlp.experts.7.up_proj"
std::string ModuleName(absl::string_view pattern, int expert) {
  const absl::string_view name = absl::StripSuffix(pattern, "?");
  const size_t star = name.find('*');
  if (star == absl::string_view::npos) return std::string(name);
  return absl::StrCat(name.substr(0, star), expert, name.substr(star + 1));
}

bool IsPerExpert(absl::string_view pattern) { return absl::StrContains(pattern, "*"); }

// The pairs of one layer.
class LayerFolds {
 public:
  LayerFolds(const ModelShape& shape, const Architecture& architecture, const LayerTensors& layer,
             const std::vector<PlannedTensor>& tensors)
      : shape_(shape), layer_(layer), tensors_(tensors) {
    for (const LayerBlock* block : architecture.block_span()) {
      if (layer.Find(absl::StrCat(block->marker, ".weight")) >= 0) blocks_.push_back(block);
    }
    CountExperts();
  }

  std::vector<FoldPair> Find() const {
    if (!layer_.twin.empty()) {
      return {Refused(absl::StrCat("the checkpoint has this layer a second time, as ", layer_.twin,
                                   ", and loaders take tensors of both"))};
    }
    if (const std::optional<std::string> unknown = UnknownTensor()) {
      return {Refused(
          absl::StrCat("the table for \"", shape_.model_type, "\" does not know ", *unknown))};
    }
    std::vector<FoldPair> pairs;
    for (const LayerBlock* block : blocks_) {
      for (const FoldRule& rule : block->rule_span()) AddPairs(rule, pairs);
    }
    RefuseConflicts(pairs);
    return pairs;
  }

 private:
  FoldPair Refused(std::string why) const {
    FoldPair refused;
    refused.name = layer_.prefix;
    refused.refusal = std::move(why);
    return refused;
  }

  void CountExperts() {
    std::set<std::string> numbers;
    for (const auto& [name, index] : layer_.index) {
      if (const auto expert = ExpertOf(name)) numbers.insert(expert->text);
    }
    experts_ = static_cast<int>(numbers.size());
  }

  // A tensor without a place in the table may read what a producer makes.
  std::optional<std::string> UnknownTensor() const {
    std::set<std::string> known;
    const auto add = [&](absl::string_view pattern) {
      const std::string module(absl::StripSuffix(pattern, "?"));
      for (const char* suffix : {"", ".weight", ".bias", ".weight_scale_inv"})
        known.insert(module + suffix);
    };
    for (const LayerBlock* block : blocks_) {
      for (const FoldRule& rule : block->rule_span()) {
        add(rule.producer);
        for (const char* consumer : rule.consumers.span()) add(consumer);
      }
      for (const char* other : block->others.span()) add(other);
    }
    for (const auto& [name, index] : layer_.index) {
      const auto expert = ExpertOf(name);
      const std::string pattern =
          expert ? absl::StrCat(name.substr(0, expert->begin), "*", name.substr(expert->end))
                 : name;
      if (!known.contains(pattern)) return absl::StrCat(layer_.prefix, name);
    }
    return std::nullopt;
  }

  void AddPairs(const FoldRule& rule, std::vector<FoldPair>& pairs) const {
    const int count = IsPerExpert(rule.producer) ? experts_ : 1;
    for (int expert = 0; expert < count; ++expert) {
      FoldPair pair;
      pair.kind = rule.kind;
      const std::string producer = ModuleName(rule.producer, expert);
      pair.name = absl::StrCat(layer_.prefix, producer, ".weight");
      pair.producer = layer_.Find(absl::StrCat(producer, ".weight"));
      pair.bias = layer_.Find(absl::StrCat(producer, ".bias"));
      if (pair.producer < 0 && absl::EndsWith(rule.producer, "?")) continue;
      pair.refusal = Fill(rule, expert, pair);
      pairs.push_back(std::move(pair));
    }
  }

  // Empty, or why the pair cannot be folded.
  std::string Fill(const FoldRule& rule, int expert, FoldPair& pair) const {
    if (pair.producer < 0) return "there is no such tensor";
    std::string refusal = FillProducer(pair);
    if (refusal.empty()) refusal = FillConsumers(rule, expert, pair);
    if (refusal.empty()) refusal = CheckConsumers(pair);
    return refusal;
  }

  std::string FillProducer(FoldPair& pair) const {
    const SourceTensor& source = tensors_[static_cast<size_t>(pair.producer)].source;
    const std::vector<int64_t>& shape = source.shape;
    if (!IsLinearProducer(pair.kind)) {
      if (shape.size() != 1 || !IsFloatDtype(source.dtype)) return "it is not a vector of a norm";
      if (pair.bias >= 0) return "a norm with a bias is not in the table";
      pair.channels = pair.head_size = shape[0];
      return "";
    }
    if (shape.size() != 2) return "it is not a matrix";
    if (pair.bias >= 0) {
      const SourceTensor& bias = tensors_[static_cast<size_t>(pair.bias)].source;
      if (bias.shape != std::vector<int64_t>{shape[0]} || !IsFloatDtype(bias.dtype))
        return absl::StrCat(bias.name, " is not a vector with one value for each row");
    }
    const TensorAction action = tensors_[static_cast<size_t>(pair.producer)].action;
    pair.power_of_two = action != TensorAction::kQuantize && action != TensorAction::kFold;
    return PassesAttention(pair.kind) ? FillHeads(pair, shape[0]) : FillRows(pair, shape[0]);
  }

  static std::string FillRows(FoldPair& pair, int64_t rows) {
    if (pair.kind == FoldProducer::kSecondHalfRows) {
      if (rows % 2 != 0) return "it has an odd number of rows";
      pair.first_row = rows / 2;
    }
    pair.channels = pair.head_size = pair.row_block = pair.row_stride = rows - pair.first_row;
    return "";
  }

  std::string FillHeads(FoldPair& pair, int64_t rows) const {
    const int64_t heads = shape_.heads;
    if (heads == 0) return "config.json has no num_attention_heads";
    if (shape_.clips_values) return "the values are clipped before the attention (clip_qkv)";
    if (pair.kind == FoldProducer::kLatentValueRows) {
      const int64_t nope = shape_.qk_nope_head_dim, size = shape_.v_head_dim;
      if (size == 0 || rows != heads * (nope + size))
        return "its rows are not num_attention_heads x (qk_nope_head_dim + v_head_dim)";
      pair.channels = pair.head_size = heads * size;
      pair.first_row = nope;
      pair.row_block = size;
      pair.row_stride = nope + size;
      return "";
    }
    const int64_t kv_heads = shape_.kv_heads, size = shape_.head_dim;
    const int64_t before =
        pair.kind == FoldProducer::kFusedValueRows ? (heads + kv_heads) * size : 0;
    if (kv_heads == 0 || size == 0 || heads % kv_heads != 0 || rows != before + kv_heads * size)
      return "its rows do not fit the numbers of heads and head_dim in config.json";
    pair.channels = pair.row_block = pair.row_stride = kv_heads * size;
    pair.first_row = before;
    pair.head_size = size;
    pair.repeat = heads / kv_heads;
    return "";
  }

  std::string FillConsumers(const FoldRule& rule, int expert, FoldPair& pair) const {
    for (const absl::string_view pattern : rule.consumers.span()) {
      const bool all = IsPerExpert(pattern) && !IsPerExpert(rule.producer);
      if (all && experts_ == 0) return "it has no experts";
      if (all && shape_.experts != 0 && shape_.experts != experts_)
        return absl::StrCat("it has ", experts_, " experts, config.json says ", shape_.experts);
      for (int i = all ? 0 : expert; i < (all ? experts_ : expert + 1); ++i) {
        const std::string name = absl::StrCat(ModuleName(pattern, i), ".weight");
        const int found = layer_.Find(name);
        if (found >= 0) pair.consumers.push_back(found);
        if (found < 0 && !absl::EndsWith(pattern, "?"))
          return absl::StrCat("its reader ", layer_.prefix, name, " is missing");
      }
    }
    return "";
  }

  std::string CheckConsumers(const FoldPair& pair) const {
    bool any_measurable = false;
    for (const int index : pair.consumers) {
      const PlannedTensor& tensor = tensors_[static_cast<size_t>(index)];
      const SourceTensor& source = tensor.source;
      const bool weights = IsFloatDtype(source.dtype) || source.dtype == "F8_E4M3";
      if (source.shape.size() != 2 || !weights || source.shape[0] < 1 || source.shape[1] < 1 ||
          source.shape[1] % pair.repeat != 0 || source.shape[1] / pair.repeat != pair.channels)
        return absl::StrCat(source.name, " does not read ", pair.channels, " x ", pair.repeat,
                            " channels");
      any_measurable |= IsMeasurable(tensor);
    }
    return any_measurable ? "" : "none of its readers is balanced";
  }

  // Two pairs that want the same rows or columns: the layer is not what the table takes it for.
  static void RefuseConflicts(std::vector<FoldPair>& pairs) {
    std::map<int, int> producers, consumers;
    for (const FoldPair& pair : pairs) {
      ++producers[pair.producer];
      for (const int index : pair.consumers) ++consumers[index];
    }
    for (FoldPair& pair : pairs) {
      const bool twice = std::any_of(pair.consumers.begin(), pair.consumers.end(),
                                     [&](int index) { return consumers[index] > 1; });
      if (pair.folded() && (twice || producers[pair.producer] > 1))
        pair.refusal = "another part of the layer reads or makes the same values";
    }
  }

  const ModelShape& shape_;
  const LayerTensors& layer_;
  const std::vector<PlannedTensor>& tensors_;
  std::vector<const LayerBlock*> blocks_;
  int experts_ = 0;
};

absl::Status CountAndCheck(const std::vector<PlannedTensor>& tensors, FoldPlan& plan) {
  for (const FoldPair& pair : plan.pairs) {
    if (!pair.folded()) continue;
    plan.channels += static_cast<uint64_t>(pair.channels);
    for (const int index : pair.consumers) {
      const PlannedTensor& tensor = tensors[static_cast<size_t>(index)];
      if (IsMeasurable(tensor))
        plan.measured_columns += static_cast<uint64_t>(tensor.source.shape[1]);
    }
  }
  if (plan.measured_columns <= kMaxMeasuredColumns && plan.channels <= kMaxMeasuredColumns)
    return absl::OkStatus();
  return MakeError(absl::StatusCode::kInvalidArgument, Reason::kUnsupportedSource,
                   absl::StrCat("Folding would measure ", plan.measured_columns,
                                " columns, more than max_measured_columns = ", kMaxMeasuredColumns,
                                "; submit with fold \"off\"."),
                   {{"limit", "max_measured_columns"}});
}

}  // namespace

bool IsMeasurable(const PlannedTensor& tensor) {
  return (tensor.action == TensorAction::kQuantize || tensor.action == TensorAction::kFold) &&
         kernels::Balances(tensor.params.method) && tensor.source.shape.size() == 2 &&
         kernels::EffectiveGroupSize(tensor.source.shape[1], tensor.params.group_size) > 0;
}

absl::StatusOr<FoldPlan> FindFolds(const ModelShape& shape,
                                   const std::vector<PlannedTensor>& tensors) {
  FoldPlan plan;
  const Architecture* architecture = FindArchitecture(shape.model_type);
  if (architecture == nullptr) {
    plan.note = absl::StrCat("no column scale is folded: the table of architectures has no \"",
                             PrintableText(shape.model_type, kMaxQuotedBytes), "\"");
    return plan;
  }
  const std::vector<LayerTensors> layers = GroupByLayer(tensors);
  plan.note =
      layers.empty()
          ? absl::StrCat("no column scale is folded: no tensor has the name of a layer that the "
                         "table for \"",
                         shape.model_type, "\" knows (model.layers.0., ...)")
          : absl::StrCat("column scales are folded by the table for \"", shape.model_type, "\"");
  for (const LayerTensors& layer : layers) {
    for (FoldPair& pair : LayerFolds(shape, *architecture, layer, tensors).Find())
      plan.pairs.push_back(std::move(pair));
  }
  if (absl::Status status = CountAndCheck(tensors, plan); !status.ok()) return status;
  return plan;
}

uint64_t FoldMemoryBytes(const FoldPlan& plan) {
  constexpr uint64_t kColumnBytes = 3;   // a code, and its text in base64 and JSON
  constexpr uint64_t kChannelBytes = 8;  // the scale wanted and the one realized
  return kColumnBytes * plan.measured_columns + kChannelBytes * plan.channels;
}

std::string FoldPairText(const FoldPair& pair) {
  std::string text = absl::StrCat(
      pair.name, "\n", static_cast<int>(pair.kind), " ", pair.producer, " ", pair.bias, " ",
      pair.channels, " ", pair.first_row, " ", pair.row_block, " ", pair.row_stride, " ",
      pair.head_size, " ", pair.repeat, " ", pair.power_of_two ? 1 : 0, "\n", pair.refusal, "\n");
  for (const int index : pair.consumers) absl::StrAppend(&text, index, " ");
  return text;
}

}  // namespace sinq
