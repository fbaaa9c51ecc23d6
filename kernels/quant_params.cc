#include "kernels/quant_params.h"

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

std::vector<std::string> Violations(const QuantParams& params) {
  std::vector<std::string> violations;
  const int b = params.bits;
  if (b != 2 && b != 3 && b != 4 && b != 5 && b != 6 && b != 8) {
    violations.push_back(absl::StrCat("bits must be one of 2, 3, 4, 5, 6, 8; got ", b));
  }
  const int g = params.group_size;
  if (g != 16 && g != 32 && g != 64 && g != 128) {
    violations.push_back(absl::StrCat("group_size must be one of 32, 64, 128; got ", g));
  }
  if (params.symmetric && b == 2 && params.profile == Profile::kUpstream) {
    violations.push_back(
        "symmetric with bits 2 has no scale in profile upstream (its divisor is 0); use profile "
        "default or "
        "bits 3 or more");
  }
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
