#include "kernels/quant_params.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace sinq::kernels {

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

absl::string_view MethodName(Method method) { return method == Method::kSinq ? "sinq" : "rtn"; }
absl::string_view ProfileName(Profile profile) {
  return profile == Profile::kDefault ? "default" : "upstream";
}
absl::string_view AuxName(AuxStorage aux) { return aux == AuxStorage::kU8 ? "u8" : "f16"; }

bool ParseMethod(absl::string_view name, Method* out) {
  *out = name == "rtn" ? Method::kRtn : Method::kSinq;
  return name == MethodName(*out);
}
bool ParseProfile(absl::string_view name, Profile* out) {
  *out = name == "upstream" ? Profile::kUpstream : Profile::kDefault;
  return name == ProfileName(*out);
}
bool ParseAux(absl::string_view name, AuxStorage* out) {
  *out = name == "f16" ? AuxStorage::kF16 : AuxStorage::kU8;
  return name == AuxName(*out);
}

}  // namespace sinq::kernels
