// Text rules for paths. The kernel enforces confinement; these rules give early and clear errors.
#ifndef SINQ_SERVER_BASE_POSIX_PATH_H_
#define SINQ_SERVER_BASE_POSIX_PATH_H_

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sinq {

// Accepts a name relative to a directory: not empty, no leading slash, no ".." component, no NUL,
// at most kMaxUriBytes.
absl::Status CheckRelativeName(absl::string_view name);

// The absolute, normalised path that a client's URI means (see FileSystem::Resolve): no "." or
// empty components, no trailing slash ("/" itself is "").
absl::StatusOr<std::string> ParseLocalUri(absl::string_view uri);

// "a/b/c" -> {"a/b", "c"}; "c" -> {"", "c"}. Trailing slashes are ignored.
std::pair<std::string, std::string> SplitParent(absl::string_view name);

// "a/b" from "a" and "b"; either may be empty.
std::string JoinPath(absl::string_view parent, absl::string_view name);

}  // namespace sinq

#endif  // SINQ_SERVER_BASE_POSIX_PATH_H_
