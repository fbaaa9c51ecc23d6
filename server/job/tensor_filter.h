// Which tensors a job may quantize: the include and exclude expressions, made safe to run.
#ifndef SINQ_SERVER_JOB_TENSOR_FILTER_H_
#define SINQ_SERVER_JOB_TENSOR_FILTER_H_

#include <regex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sinq {

// ECMAScript without look-ahead and back-references: both make the time exponential in the pattern.
// What is left runs in time proportional to name x pattern, so that a hostile pattern stalls
// nobody. InvalidArgument with the reason if `pattern` is too long, expands too far, or does not
// compile.
absl::StatusOr<std::regex> CompileTensorRegex(absl::string_view pattern);

// Immutable once made; thread-safe.
class TensorFilter {
 public:
  // Empty `include`: every tensor. `exclude` wins.
  static absl::StatusOr<TensorFilter> Make(const std::vector<std::string>& include,
                                           const std::vector<std::string>& exclude);
  // Searches (an expression may match any part of the name).
  bool Matches(absl::string_view tensor) const;

 private:
  TensorFilter() = default;

  std::vector<std::regex> include_;
  std::vector<std::regex> exclude_;
};

}  // namespace sinq

#endif  // SINQ_SERVER_JOB_TENSOR_FILTER_H_
