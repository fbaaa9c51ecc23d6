#include "server/plan/recipe_rules.h"

#include <cstddef>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/error.h"
#include "server/export/exporter.h"
#include "server/export/module_names.h"
#include "server/job/tensor_filter.h"

namespace sinq {
namespace {

std::string FieldOf(size_t rule) { return absl::StrCat("recipe.rules[", rule, "]"); }

}  // namespace

kernels::QuantParams RequestedParams(const JobSpec& spec, int rule) {
  kernels::QuantParams params;
  kernels::ParseMethod(spec.method, &params.method);
  kernels::ParseProfile(spec.profile, &params.profile);
  kernels::ParseAux(spec.aux, &params.aux);
  kernels::ParseTiling(spec.tiling, &params.tiling);
  params.bits = spec.bits;
  params.group_size = spec.group_size;
  params.symmetric = spec.symmetric;
  if (rule == kNoRule) return params;
  const RecipeRule& given = spec.rules[static_cast<size_t>(rule)];
  if (!given.method.empty()) {
    kernels::ParseMethod(given.method, &params.method);
    const kernels::Rounding rounding = kernels::RoundingOf(params.method);
    const bool has_codebook =
        rounding == kernels::Rounding::kNf3 || rounding == kernels::Rounding::kNf4;
    if (has_codebook) params.bits = DefaultBits(given.method);  // the only width it has
  }
  if (given.bits != 0) params.bits = given.bits;
  if (given.group_size != 0) params.group_size = given.group_size;
  params.symmetric = given.symmetric.value_or(params.symmetric);
  return params;
}

bool EnginesFuse(absl::string_view format) {
  return format == "compressed-tensors" || format == "awq" || format == "gptq";
}

absl::StatusOr<RecipeRules> RecipeRules::Make(const JobSpec& spec) {
  RecipeRules rules(spec);
  for (size_t i = 0; i < spec.rules.size(); ++i) {
    absl::StatusOr<std::regex> regex = CompileTensorRegex(spec.rules[i].pattern);
    if (!regex.ok()) return Annotate(regex.status(), FieldOf(i));
    rules.patterns_.push_back(*std::move(regex));
  }
  rules.matched_.resize(spec.rules.size());
  return rules;
}

int RecipeRules::RuleFor(const std::string& name) {
  int last = kNoRule;
  for (size_t i = 0; i < patterns_.size(); ++i) {
    if (!std::regex_match(name, patterns_[i])) continue;
    matched_[i] = true;
    last = static_cast<int>(i);
  }
  return last;
}

absl::Status RecipeRules::CheckAllMatched() const {
  for (size_t i = 0; i < matched_.size(); ++i) {
    if (matched_[i]) continue;
    return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
                     absl::StrCat("\"", spec_.rules[i].pattern, "\" in ", FieldOf(i),
                                  " matches no quantizable tensor; see the plan for names."),
                     {{"field", FieldOf(i)}});
  }
  return absl::OkStatus();
}

bool RecipeRules::Alike(int a, int b) const {
  const auto is_quantized = [this](int rule) {
    return rule == kNoRule || spec_.rules[static_cast<size_t>(rule)].quantize;
  };
  if (is_quantized(a) != is_quantized(b)) return false;
  const kernels::QuantParams one = RequestedParams(spec_, a), other = RequestedParams(spec_, b);
  const auto sizes = [](const kernels::QuantParams& params) {
    // Where bits are chosen, the group size is chosen with them, unless a rule gives it.
    return std::make_pair(params.bits, params.group_size);
  };
  return sizes(one) == sizes(other) && one.symmetric == other.symmetric;
}

std::string RecipeRules::Describe(int rule) const {
  if (rule == kNoRule) return "the recipe itself";
  return absl::StrCat("rule ", rule, " (\"", spec_.rules[static_cast<size_t>(rule)].pattern, "\")");
}

absl::Status RecipeRules::CheckFusedAlike(const std::vector<std::string>& names,
                                          const std::vector<int>& rules) const {
  std::map<std::string, size_t> first;  // by fused module
  for (size_t i = 0; i < names.size(); ++i) {
    const auto [found, fresh] = first.try_emplace(FusedModule(LayerPath(names[i])), i);
    if (fresh || Alike(rules[i], rules[found->second])) continue;
    const size_t other = found->second;
    return MakeError(
        absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
        absl::StrCat("Engines fuse ", names[other], " and ", names[i],
                     " into one module, but they would differ: the first follows ",
                     Describe(rules[other]), ", the second ", Describe(rules[i]),
                     "; give both the same bits, group size and symmetry, or use format sinq."),
        {{"tensor", names[i]}, {"field", "recipe.rules"}});
  }
  return absl::OkStatus();
}

}  // namespace sinq
