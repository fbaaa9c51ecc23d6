// What a client asks for, in domain form. All validation of a request that needs no disk is here.
#ifndef SINQ_SERVER_JOB_JOB_SPEC_H_
#define SINQ_SERVER_JOB_JOB_SPEC_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sinq {

struct JobSpec {
  std::string source_uri;
  std::string output_uri;
  std::string method = "sinq";      // sinq | rtn
  std::string profile = "default";  // default | upstream
  std::string format = "sinq";
  std::string aux = "u8";  // u8 | f16
  int bits = 4;
  int group_size = 64;
  bool symmetric = false;
  std::vector<std::string>
      include;  // RE2-free ECMAScript regexes on tensor names, full search; empty: all
  std::vector<std::string> exclude;  // win over include
  std::string fold = "auto";         // auto | off

  friend bool operator==(const JobSpec&, const JobSpec&) = default;
};

// Every violation at once, each with its field ("bits must be one of 2, 3, 4, 5, 6, 8; got 7").
absl::Status ValidateJobSpec(const JobSpec& spec, bool needs_output);
// The same without source and output, which do not change what comes out: for plan digest and
// manifest.
std::string RecipeToJson(const JobSpec& spec);
// Canonical JSON (sorted keys): stored, hashed for idempotency. Strict when parsed.
std::string JobSpecToJson(const JobSpec& spec);
absl::StatusOr<JobSpec> JobSpecFromJson(absl::string_view json);

}  // namespace sinq

#endif  // SINQ_SERVER_JOB_JOB_SPEC_H_
