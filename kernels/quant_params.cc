#include "kernels/quant_params.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace sinq::kernels {
namespace {

struct MethodTraits {
  Method method;
  absl::string_view name;
  Rounding rounding;
  bool balances;
  bool needs_activations;
};

constexpr std::array kMethods = {
    MethodTraits{Method::kSinq, "sinq", Rounding::kUniform, true, false},
    MethodTraits{Method::kRtn, "rtn", Rounding::kUniform, false, false},
    MethodTraits{Method::kSinqHqq, "sinq_hqq", Rounding::kHqq, true, false},
    MethodTraits{Method::kHqq, "hqq", Rounding::kHqq, false, false},
    MethodTraits{Method::kSinqNf4, "sinq_nf4", Rounding::kNf4, true, false},
    MethodTraits{Method::kNf4, "nf4", Rounding::kNf4, false, false},
    MethodTraits{Method::kSinqNf3, "sinq_nf3", Rounding::kNf3, true, false},
    MethodTraits{Method::kNf3, "nf3", Rounding::kNf3, false, false},
    MethodTraits{Method::kAsinq, "asinq", Rounding::kUniform, true, true},
    MethodTraits{Method::kAsinqL2, "asinq_l2", Rounding::kUniform, true, true},
    MethodTraits{Method::kAwq, "awq", Rounding::kUniform, false, true},
    MethodTraits{Method::kHadamard, "hadamard", Rounding::kHadamard, false, false},
};

const MethodTraits& TraitsOf(Method method) { return kMethods[static_cast<size_t>(method)]; }
static_assert(kMethods[static_cast<size_t>(Method::kHadamard)].method == Method::kHadamard);

constexpr std::array<std::pair<AuxStorage, absl::string_view>, 4> kAuxNames = {{
    {AuxStorage::kU8, "u8"},
    {AuxStorage::kF16, "f16"},
    {AuxStorage::kBf16, "bf16"},
    {AuxStorage::kF32, "f32"},
}};

bool HoldsColumnScale(Layout layout) { return layout == Layout::kSinq || layout == Layout::kDense; }

}  // namespace

Rounding RoundingOf(Method method) { return TraitsOf(method).rounding; }
bool Balances(Method method) { return TraitsOf(method).balances; }
bool NeedsActivations(Method method) { return TraitsOf(method).needs_activations; }

bool MakesColumnScale(const QuantParams& params) {
  return (Balances(params.method) || NeedsActivations(params.method)) &&
         HoldsColumnScale(params.layout) && params.own_column_scale;
}

bool ScalesGroups(const QuantParams& params) {
  const Rounding rounding = RoundingOf(params.method);
  return params.profile == Profile::kDefault && params.method != Method::kRtn &&
         !MakesColumnScale(params) && rounding != Rounding::kHqq &&
         rounding != Rounding::kHadamard;
}

ZeroRule ZeroRuleOf(const QuantParams& params) {
  switch (params.layout) {
    case Layout::kCompressedTensors:
    case Layout::kAwq:
    case Layout::kGptqV2:
      return ZeroRule::kInteger;
    case Layout::kGptq:
      return ZeroRule::kIntegerFromOne;
    case Layout::kSinq:
    case Layout::kDense:
      return params.aux == AuxStorage::kU8 ? ZeroRule::kSixteenths : ZeroRule::kReal;
    default:
      return ZeroRule::kReal;
  }
}

namespace {

using Sentences = std::vector<std::string>;

void CheckWidths(const QuantParams& params, Sentences& violations) {
  const int b = params.bits, g = params.group_size;
  if (b != 2 && b != 3 && b != 4 && b != 5 && b != 6 && b != 8)
    violations.push_back(absl::StrCat("bits must be one of 2, 3, 4, 5, 6, 8; got ", b));
  if (g != 16 && g != 32 && g != 64 && g != 128)
    violations.push_back(absl::StrCat("group_size must be one of 32, 64, 128; got ", g));
  if (params.symmetric && b == 2 && params.profile == Profile::kUpstream) {
    violations.push_back(
        "symmetric with bits 2 has no scale in profile upstream (its divisor is 0); use profile "
        "default or bits 3 or more");
  }
}

void CheckCodebook(const QuantParams& params, Sentences& violations) {
  const Rounding rounding = RoundingOf(params.method);
  if (rounding != Rounding::kNf4 && rounding != Rounding::kNf3) return;
  const int bits = rounding == Rounding::kNf4 ? 4 : 3;
  if (params.bits != bits) {
    violations.push_back(absl::StrCat("method ", MethodName(params.method), " needs bits ", bits,
                                      "; got ", params.bits));
  }
  if (!HoldsColumnScale(params.layout)) {
    violations.push_back(absl::StrCat("method ", MethodName(params.method),
                                      " has a codebook that only layouts sinq and dense hold"));
  }
}

bool HoldsRealZeros(Layout layout) {
  return HoldsColumnScale(layout) || layout == Layout::kHqq || layout == Layout::kGgufQ4_1;
}

void CheckMethod(const QuantParams& params, Sentences& violations) {
  const Rounding rounding = RoundingOf(params.method);
  const absl::string_view name = MethodName(params.method);
  CheckCodebook(params, violations);
  if (params.symmetric && rounding != Rounding::kUniform && rounding != Rounding::kHadamard) {
    violations.push_back(absl::StrCat("symmetric does not go with method ", name,
                                      ", whose zeros are real; use symmetric false"));
  }
  if (rounding == Rounding::kHqq && !HoldsRealZeros(params.layout)) {
    violations.push_back(absl::StrCat("method ", name,
                                      " makes real zeros; use layout sinq, hqq, gguf_q4_1 or "
                                      "dense"));
  }
  if (NeedsActivations(params.method) && !MakesColumnScale(params)) {
    violations.push_back(absl::StrCat("method ", name,
                                      " makes a column scale of its own; use layout sinq or dense "
                                      "with own_column_scale true"));
  }
  if (rounding == Rounding::kHadamard && params.layout != Layout::kDense) {
    violations.push_back(
        "method hadamard leaves transformed weights that no format reads; use "
        "layout dense");
  }
  if (rounding == Rounding::kHadamard && params.tiling == Tiling::k2D)
    violations.push_back("method hadamard has no tiles; use tiling 1D");
  if (rounding == Rounding::kHadamard && params.profile == Profile::kUpstream)
    violations.push_back("method hadamard is not the authors'; use profile default");
}

struct LayoutRule {
  Layout layout;
  absl::string_view name;
  std::array<int, 4> bits;  // 0: no further width
  bool f16_only;
  int least_group;
  enum { kEither, kOnly, kNever } symmetric;
};

constexpr std::array kLayoutRules = {
    LayoutRule{Layout::kHqq, "hqq", {2, 3, 4, 8}, false, 16, LayoutRule::kEither},
    LayoutRule{Layout::kAwq, "awq", {4, 0, 0, 0}, true, 16, LayoutRule::kEither},
    LayoutRule{Layout::kGptq, "gptq", {2, 3, 4, 8}, true, 16, LayoutRule::kEither},
    LayoutRule{Layout::kGptqV2, "gptq_v2", {2, 3, 4, 8}, true, 16, LayoutRule::kEither},
    LayoutRule{Layout::kGgufQ4_0, "gguf_q4_0", {4, 0, 0, 0}, true, 32, LayoutRule::kOnly},
    LayoutRule{Layout::kGgufQ4_1, "gguf_q4_1", {4, 0, 0, 0}, true, 32, LayoutRule::kNever},
    LayoutRule{Layout::kGgufQ8_0, "gguf_q8_0", {8, 0, 0, 0}, true, 32, LayoutRule::kOnly},
};

std::string BitsOf(const LayoutRule& rule) {
  std::string bits;
  for (const int width : rule.bits) {
    if (width != 0) absl::StrAppend(&bits, bits.empty() ? "" : ", ", width);
  }
  return bits;
}

void CheckRule(const QuantParams& params, const LayoutRule& rule, Sentences& violations) {
  if (std::find(rule.bits.begin(), rule.bits.end(), params.bits) == rule.bits.end()) {
    violations.push_back(
        absl::StrCat("layout ", rule.name, " holds bits ", BitsOf(rule), "; got ", params.bits));
  }
  if (rule.f16_only && params.aux != AuxStorage::kF16) {
    violations.push_back(
        absl::StrCat("layout ", rule.name, " holds aux f16; got ", AuxName(params.aux)));
  }
  if (params.group_size % rule.least_group != 0) {
    violations.push_back(absl::StrCat("layout ", rule.name, " holds group_size 32, 64 or 128; got ",
                                      params.group_size));
  }
  if (rule.symmetric == LayoutRule::kOnly && !params.symmetric)
    violations.push_back(absl::StrCat("layout ", rule.name, " has no zeros; use symmetric true"));
  if (rule.symmetric == LayoutRule::kNever && params.symmetric)
    violations.push_back(absl::StrCat("layout ", rule.name, " has minima; use symmetric false"));
}

void CheckLayout(const QuantParams& params, Sentences& violations) {
  const bool is_ours = HoldsColumnScale(params.layout);
  if (params.tiling == Tiling::k2D && !is_ours) {
    violations.push_back(
        "tiling 2D has a column scale for each square, which only layouts sinq and dense hold");
  }
  if (!is_ours && params.aux == AuxStorage::kU8)
    violations.push_back("aux u8 is only for layouts sinq and dense; use f16, bf16 or f32");
  const bool is_plain_hqq = params.layout == Layout::kHqq && !params.symmetric;
  if (!is_ours && !is_plain_hqq && params.profile == Profile::kUpstream) {
    violations.push_back(
        "profile upstream makes zeros that only layouts sinq, dense and, with symmetric false, hqq "
        "hold; use profile default");
  }
  for (const LayoutRule& rule : kLayoutRules) {
    if (rule.layout == params.layout) CheckRule(params, rule, violations);
  }
}

}  // namespace

std::vector<std::string> Violations(const QuantParams& params) {
  std::vector<std::string> violations;
  CheckWidths(params, violations);
  CheckMethod(params, violations);
  CheckLayout(params, violations);
  return violations;
}

absl::Status Validate(const QuantParams& params) {
  const std::vector<std::string> violations = Violations(params);
  if (violations.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrJoin(violations, "; "));
}

absl::string_view MethodName(Method method) { return TraitsOf(method).name; }
absl::string_view ProfileName(Profile profile) {
  return profile == Profile::kDefault ? "default" : "upstream";
}
absl::string_view AuxName(AuxStorage aux) { return kAuxNames[static_cast<size_t>(aux)].second; }
absl::string_view TilingName(Tiling tiling) { return tiling == Tiling::k1D ? "1D" : "2D"; }

bool ParseMethod(absl::string_view name, Method* out) {
  for (const MethodTraits& traits : kMethods) {
    if (traits.name != name) continue;
    *out = traits.method;
    return true;
  }
  return false;
}
bool ParseProfile(absl::string_view name, Profile* out) {
  *out = name == "upstream" ? Profile::kUpstream : Profile::kDefault;
  return name == ProfileName(*out);
}
bool ParseAux(absl::string_view name, AuxStorage* out) {
  for (const auto& [aux, aux_name] : kAuxNames) {
    if (aux_name != name) continue;
    *out = aux;
    return true;
  }
  return false;
}
bool ParseTiling(absl::string_view name, Tiling* out) {
  *out = name == "2D" ? Tiling::k2D : Tiling::k1D;
  return name == TilingName(*out);
}

std::vector<absl::string_view> MethodNames() {
  std::vector<absl::string_view> names;
  for (const MethodTraits& traits : kMethods) names.push_back(traits.name);
  return names;
}

}  // namespace sinq::kernels
