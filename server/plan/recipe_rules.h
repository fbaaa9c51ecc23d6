// The rules of a recipe: what single tensors get instead of its own values.
#ifndef SINQ_SERVER_PLAN_RECIPE_RULES_H_
#define SINQ_SERVER_PLAN_RECIPE_RULES_H_

#include <regex>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/quant_params.h"
#include "server/job/job_spec.h"

namespace sinq {

inline constexpr int kNoRule = -1;

// What a recipe and one of its rules (kNoRule: none) ask for, before an exporter adapts it. `bits`
// is 0 where they are to be chosen.
kernels::QuantParams RequestedParams(const JobSpec& spec, int rule);

// Whether engines make one module out of several layers of this format, which must then be stored
// alike. They do not for the native format, hqq and gguf, whose readers take layers one by one.
bool EnginesFuse(absl::string_view format);

// Not thread-safe: it counts what matched.
class RecipeRules {
 public:
  // InvalidArgument naming the pattern that does not compile. `spec` must outlive the rules.
  static absl::StatusOr<RecipeRules> Make(const JobSpec& spec);
  // "rule 2 (\"down_proj\")", "the recipe itself".
  std::string Describe(int rule) const;
  // Index of the last rule whose pattern matches, or kNoRule. Call for every quantizable tensor.
  int RuleFor(const std::string& name);
  // InvalidArgument naming a pattern that matched no quantizable tensor.
  absl::Status CheckAllMatched() const;
  // InvalidArgument naming two rules (or the recipe) that make the parts of a module which engines
  // fuse differ in bits, group size, symmetry or in being quantized at all. `names` are quantizable
  // tensors, `rules` what RuleFor said of each.
  absl::Status CheckFusedAlike(const std::vector<std::string>& names,
                               const std::vector<int>& rules) const;

 private:
  explicit RecipeRules(const JobSpec& spec) : spec_(spec) {}
  bool Alike(int a, int b) const;

  const JobSpec& spec_;
  std::vector<std::regex> patterns_;
  std::vector<bool> matched_;
};

}  // namespace sinq

#endif  // SINQ_SERVER_PLAN_RECIPE_RULES_H_
