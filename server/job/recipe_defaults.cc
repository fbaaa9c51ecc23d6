#include "server/job/recipe_defaults.h"

#include "absl/strings/match.h"

namespace sinq {

const std::vector<absl::string_view>& RecipeFormats() {
  static const auto* const kNames = new std::vector<absl::string_view>{
      "sinq", "compressed-tensors", "awq", "gptq", "hqq", "dense", "bf16-presinq", "gguf"};
  return *kNames;
}

std::string DefaultFormat() { return SINQ_DEFAULT_FORMAT; }

bool DefaultSymmetric(absl::string_view format, int bits) {
  return format == "compressed-tensors" || format == "gptq" || (format == "gguf" && bits != 4);
}

std::string DefaultAux(absl::string_view format) {
  if (format == "compressed-tensors") return "";
  return format == "awq" || format == "gptq" || format == "hqq" || format == "gguf" ? "f16" : "u8";
}

int DefaultGroupSize(absl::string_view format) { return format == "gguf" ? 32 : 64; }

int DefaultBits(absl::string_view method) { return absl::EndsWith(method, "nf3") ? 3 : 4; }

std::vector<int> SelectableBits(absl::string_view format, bool symmetric) {
  if (format == "sinq") return {2, 3, 4, 5, 6, 8};
  if (format == "hqq") return {2, 3, 4, 8};
  const bool has_both =
      format == "compressed-tensors" || ((format == "gptq" || format == "gguf") && symmetric);
  if (has_both) return {4, 8};
  return {};
}

}  // namespace sinq
