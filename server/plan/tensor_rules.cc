#include "server/plan/tensor_rules.h"

#include <algorithm>
#include <array>
#include <cstdint>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/base/error.h"
#include "server/job/tensor_filter.h"

namespace sinq {
namespace {

// What a module that a rule names is, apart from the weights that we quantize.
enum class RuleKind : uint8_t { kLinear, kOther };

struct NameRule {
  const char* part;  // a whole dotted component, or several
  const char* reason;
  RuleKind kind = RuleKind::kLinear;
};

// Components of tensor names, compared whole.
constexpr std::array kNameRules = {
    NameRule{"embed_tokens", "embedding: looked up by row, not multiplied", RuleKind::kOther},
    NameRule{"wte", "embedding: looked up by row, not multiplied", RuleKind::kOther},
    NameRule{"wpe", "embedding: looked up by row, not multiplied", RuleKind::kOther},
    NameRule{"word_embeddings", "embedding: looked up by row, not multiplied", RuleKind::kOther},
    NameRule{"position_embeddings", "embedding: looked up by row, not multiplied",
             RuleKind::kOther},
    NameRule{"token_type_embeddings", "embedding: looked up by row, not multiplied",
             RuleKind::kOther},
    NameRule{"embeddings", "embedding: looked up by row, not multiplied", RuleKind::kOther},
    NameRule{"lm_head", "output head: engines expect it dense"},
    NameRule{"output.weight", "output head: engines expect it dense"},
    NameRule{"router", "router: engines expect it dense"},
    NameRule{"shared_expert_gate", "router: engines expect it dense"},
    NameRule{"mlp.gate.weight", "router: engines expect it dense"},
    NameRule{"block_sparse_moe.gate.weight", "router: engines expect it dense"},
    NameRule{"feed_forward.gate.weight", "router: engines expect it dense"},
    NameRule{"visual", "vision tower: kept in the source's precision"},
    NameRule{"vision_tower", "vision tower: kept in the source's precision"},
    NameRule{"vision_model", "vision tower: kept in the source's precision"},
    NameRule{"audio_tower", "audio tower: kept in the source's precision"},
    NameRule{"multi_modal_projector", "projector: kept in the source's precision"},
    NameRule{"mm_projector", "projector: kept in the source's precision"},
    NameRule{"mtp", "multi-token prediction head: kept in the source's precision"},
    NameRule{"nextn", "multi-token prediction head: kept in the source's precision"},
    NameRule{"eh_proj", "multi-token prediction head: kept in the source's precision"},
    NameRule{"conv1d", "convolution or state-space parameter", RuleKind::kOther},
    NameRule{"A_log", "convolution or state-space parameter", RuleKind::kOther},
    NameRule{"dt_bias", "convolution or state-space parameter", RuleKind::kOther},
};

bool HasComponent(absl::string_view name, absl::string_view part) {
  for (size_t at = name.find(part); at != absl::string_view::npos; at = name.find(part, at + 1)) {
    const size_t end = at + part.size();
    if ((at == 0 || name[at - 1] == '.') && (end == name.size() || name[end] == '.')) return true;
  }
  return false;
}

bool IsNorm(absl::string_view name) {
  return absl::EndsWith(name, "norm.weight") || absl::StrContains(name, "layernorm") ||
         absl::StrContains(name, "layer_norm") || absl::StrContains(name, "LayerNorm");
}

bool IsWeightDtype(absl::string_view dtype) {
  return dtype == "BF16" || dtype == "F16" || dtype == "F32" || dtype == "F8_E4M3";
}

std::optional<std::string> ReasonByShape(const SourceTensor& tensor) {
  if (tensor.shape.size() == 1) return "vector: norm, bias or buffer";
  if (tensor.shape.size() == 3) return "3-D tensor: fused experts have no place in this format";
  if (tensor.shape.size() != 2) return "not a matrix";
  if (!IsWeightDtype(tensor.dtype))
    return absl::StrCat("dtype ", tensor.dtype, " is not a weight dtype (BF16, F16, F32, F8_E4M3)");
  if (tensor.shape[0] == 0 || tensor.shape[1] == 0) return "empty";
  if (tensor.shape[0] == 1) return "one row: too few values to balance";
  return std::nullopt;
}

}  // namespace

std::optional<std::string> ReasonToCopy(const SourceTensor& tensor, bool bare_file) {
  if (auto reason = ReasonByShape(tensor)) return reason;
  for (const NameRule& rule : kNameRules) {
    if (HasComponent(tensor.name, rule.part)) return std::string(rule.reason);
  }
  if (IsNorm(tensor.name)) return "norm";
  if (!bare_file && !absl::EndsWith(tensor.name, ".weight"))
    return "not the weight of a linear layer";
  return std::nullopt;
}

bool IsLinear(const SourceTensor& tensor) {
  if (tensor.shape.size() != 2 || !IsWeightDtype(tensor.dtype)) return false;
  if (!absl::EndsWith(tensor.name, ".weight") || IsNorm(tensor.name)) return false;
  return std::none_of(kNameRules.begin(), kNameRules.end(), [&](const NameRule& rule) {
    return rule.kind != RuleKind::kLinear && HasComponent(tensor.name, rule.part);
  });
}

absl::StatusOr<NameFilter> NameFilter::Make(const JobSpec& spec) {
  NameFilter filter;
  if (absl::Status status = Compile(spec.include, "recipe.include", filter.include_); !status.ok())
    return status;
  if (absl::Status status = Compile(spec.exclude, "recipe.exclude", filter.exclude_); !status.ok())
    return status;
  return filter;
}

absl::Status NameFilter::Compile(const std::vector<std::string>& texts, const std::string& field,
                                 std::vector<Expression>& out) {
  for (const std::string& text : texts) {
    absl::StatusOr<std::regex> regex = CompileTensorRegex(text);
    if (!regex.ok()) return Annotate(regex.status(), field);
    out.push_back({text, field, *std::move(regex)});
  }
  return absl::OkStatus();
}

std::optional<std::string> NameFilter::ReasonToCopy(const std::string& name) {
  bool included = include_.empty();
  for (Expression& expression : include_) {
    if (!std::regex_match(name, expression.regex)) continue;
    expression.matched = included = true;
  }
  const Expression* excluded = nullptr;
  for (Expression& expression : exclude_) {
    if (!std::regex_match(name, expression.regex)) continue;
    expression.matched = true;
    excluded = &expression;
  }
  if (excluded != nullptr) return absl::StrCat("excluded by \"", excluded->text, "\"");
  if (!included) return "matches no include expression";
  return std::nullopt;
}

absl::Status NameFilter::CheckAllMatched() const {
  for (const auto* expressions : {&include_, &exclude_}) {
    for (const Expression& expression : *expressions) {
      if (expression.matched) continue;
      return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
                       absl::StrCat("\"", expression.text, "\" in ", expression.field,
                                    " matches no quantizable tensor; see the plan for names."),
                       {{"field", expression.field}});
    }
  }
  return absl::OkStatus();
}

}  // namespace sinq
