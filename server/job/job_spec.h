// What a client asks for, in domain form. All validation of a request that needs no disk is here.
#ifndef SINQ_SERVER_JOB_JOB_SPEC_H_
#define SINQ_SERVER_JOB_JOB_SPEC_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/job/recipe_defaults.h"

namespace sinq {

// What some tensors get instead of the recipe's own values.
struct RecipeRule {
  std::string pattern = "";  // as JobSpec::include
  bool quantize = true;      // false: left as they are; the rest is then unset
  int bits = 0;              // 0: the recipe's, also when it chooses
  int group_size = 0;        // 0: the recipe's
  std::optional<bool> symmetric = std::nullopt;
  std::string method = "";  // "": the recipe's

  friend bool operator==(const RecipeRule&, const RecipeRule&) = default;
};

struct JobSpec {
  std::string source_uri;
  std::string output_uri;
  std::string method = "sinq";      // kernels::MethodNames()
  std::string profile = "default";  // default | upstream
  std::string format = DefaultFormat();
  std::string aux = DefaultAux(format);  // u8 | f16 | bf16 | f32; "": the dtype of the checkpoint
  int bits = 4;                          // 0: chosen per layer to meet the target
  int group_size = DefaultGroupSize(format);
  bool symmetric = DefaultSymmetric(format, bits);
  // RE2-free ECMAScript regexes on tensor names, full search; empty: all
  std::vector<std::string> include;
  std::vector<std::string> exclude;  // win over include
  std::string tiling = "1D";         // 1D | 2D
  std::string fold = "auto";         // auto | off
  // For bits 0, one of the two; 0: not set. Over the quantized weights, everything counted; and of
  // the whole output.
  double target_bits_per_weight = 0;
  uint64_t target_size_bytes = 0;
  std::string activations_uri;    // a .safetensors file; for the methods that need it
  std::string gguf_template_uri;  // a .gguf file of the same model; for format gguf
  std::vector<RecipeRule> rules;  // in order, the last that matches wins

  friend bool operator==(const JobSpec&, const JobSpec&) = default;
};

// Every violation at once, each with its field ("bits must be one of 2, 3, 4, 5, 6, 8; got 7").
absl::Status ValidateJobSpec(const JobSpec& spec, bool needs_output);
// The same without source and output, which do not change what comes out: for plan digest and
// manifest.
std::string RecipeToJson(const JobSpec& spec);
// Canonical JSON (sorted keys): stored, hashed for idempotency. Strict when parsed. Fields from
// `tiling` on are left out at their defaults, so that a specification stored by an older server
// reads and compares as before.
std::string JobSpecToJson(const JobSpec& spec);
absl::StatusOr<JobSpec> JobSpecFromJson(absl::string_view json);

}  // namespace sinq

#endif  // SINQ_SERVER_JOB_JOB_SPEC_H_
