// What is done to one tensor: method, widths and storage of the auxiliaries.
#ifndef SINQ_KERNELS_QUANT_PARAMS_H_
#define SINQ_KERNELS_QUANT_PARAMS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace sinq::kernels {

enum class Method : uint8_t { kSinq, kRtn };           // kRtn: no balancing, t = 1
enum class Profile : uint8_t { kDefault, kUpstream };  // README.md sections 3 and 4
enum class AuxStorage : uint8_t {
  kU8,
  kF16
};  // scales and zeros: 8-bit (authors' quantAux) or F16

struct QuantParams {
  Method method = Method::kSinq;
  Profile profile = Profile::kDefault;
  AuxStorage aux = AuxStorage::kU8;
  int bits = 4;         // 2, 3, 4, 5, 6, 8
  int group_size = 64;  // 32, 64, 128 as requested by a user; a planner may pass the halved 16
  bool symmetric = false;

  friend bool operator==(const QuantParams&, const QuantParams&) = default;
};

// Every violated rule, one sentence each naming the field and the values that work; empty if valid.
std::vector<std::string> Violations(const QuantParams& params);
// OK, or InvalidArgument with all violations joined.
absl::Status Validate(const QuantParams& params);

absl::string_view MethodName(Method method);     // "sinq", "rtn"
absl::string_view ProfileName(Profile profile);  // "default", "upstream"
absl::string_view AuxName(AuxStorage aux);       // "u8", "f16"
bool ParseMethod(absl::string_view name, Method* out);
bool ParseProfile(absl::string_view name, Profile* out);
bool ParseAux(absl::string_view name, AuxStorage* out);

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_QUANT_PARAMS_H_
