// What a recipe's unset fields stand for, and the names of the output formats.
#ifndef SINQ_SERVER_JOB_RECIPE_DEFAULTS_H_
#define SINQ_SERVER_JOB_RECIPE_DEFAULTS_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace sinq {

// Every name that a recipe may give; which of them this build writes, MakeExporter says.
const std::vector<absl::string_view>& RecipeFormats();
// The format of a recipe that names none (SINQ_DEFAULT_FORMAT of the build; the client's help names
// the same).
std::string DefaultFormat();
// True for the formats whose fast kernels take no zero points, compressed-tensors and gptq, and for
// gguf but for its 4 bits: its 8 bits have no zeros, and so have widths that can be chosen (0).
bool DefaultSymmetric(absl::string_view format, int bits);
// "u8", "f16" or "": the dtype of the checkpoint.
std::string DefaultAux(absl::string_view format);
// 32 for gguf, whose blocks have no other size; 64 otherwise.
int DefaultGroupSize(absl::string_view format);
// Of the codebook for nf3, 4 otherwise.
int DefaultBits(absl::string_view method);
// Widths among which `bits` 0 may choose: those that the format's readers open. Empty: the format
// has one width only.
std::vector<int> SelectableBits(absl::string_view format, bool symmetric);

}  // namespace sinq

#endif  // SINQ_SERVER_JOB_RECIPE_DEFAULTS_H_
