// Errors with a stable reason. The text names the tensor, field, limit or byte offset and what to
// do; the reason and the metadata travel as a payload of the status, so that rpc can turn them into
// google.rpc.ErrorInfo and RetryInfo.
#ifndef SINQ_SERVER_BASE_ERROR_H_
#define SINQ_SERVER_BASE_ERROR_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace sinq {

// One enum shared by API, metrics and logs; ReasonName gives the wire spelling
// ("PATH_OUTSIDE_ROOTS").
enum class Reason : uint8_t {
  kUnspecified,
  kInvalidArgument,    // a field of a request
  kMalformedSource,    // safetensors header, index or config that cannot be right
  kUnsupportedSource,  // a dtype, an already quantized checkpoint
  kNonFiniteWeight,
  kPathOutsideRoots,
  kSourceNotFound,
  kOutputExists,
  kDiskFull,
  kIoError,
  kMemoryBudgetTooSmall,
  kLimitExceeded,
  kQueueFull,
  kJobNotFound,
  kArtifactNotFound,
  kRequestIdReused,  // same request id, other body
  kVersionChanged,   // a job begun by a sinqd with other arithmetic
  kIllegalTransition,
  kLeaseLost,
  kDraining,
  kCancelled,
  kInternal,
};
absl::string_view ReasonName(Reason reason);
// kUnspecified for an unknown name.
Reason ReasonFromName(absl::string_view name);

struct ErrorDetails {
  Reason reason = Reason::kUnspecified;
  std::map<std::string, std::string> metadata;  // "field", "limit", "tensor", "byte_offset", ...
  std::optional<absl::Duration> retry_after;    // set only when a retry can help
};

// A status with details. The message must be a whole sentence; it is cut at kMaxErrorMessageBytes
// and made printable UTF-8, because names in it come from hostile files.
absl::Status MakeError(absl::StatusCode code, Reason reason, absl::string_view message,
                       std::map<std::string, std::string> metadata = {},
                       std::optional<absl::Duration> retry_after = {});
// Details of a status made by MakeError; kUnspecified and empty for any other.
ErrorDetails GetErrorDetails(const absl::Status& status);

// Whether another attempt may succeed. Bad input, a missing source, a taken output and a full disk
// stay what they are, and need a person; a device or a file that could not be read may come back.
bool IsRetryable(const absl::Status& status);
// The same status with "context: " put before its message; code and payload are kept. OK stays OK.
absl::Status Annotate(const absl::Status& status, absl::string_view context);
// Status for errno: ENOSPC and EDQUOT are ResourceExhausted/kDiskFull, ENOENT and ENOTDIR are
// NotFound/kSourceNotFound, EEXIST is AlreadyExists/kOutputExists, others kIoError.
absl::Status ErrnoToStatus(int error_number, absl::string_view what);

}  // namespace sinq

#endif  // SINQ_SERVER_BASE_ERROR_H_
