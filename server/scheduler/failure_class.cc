#include "server/scheduler/failure_class.h"

#include <algorithm>

#include "server/base/error.h"
#include "server/base/limits.h"
#include "server/base/text.h"

namespace sinq {

bool IsRetryable(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kDeadlineExceeded:
      return true;
    case absl::StatusCode::kResourceExhausted:
      // Too many open files passes; a full disk or a budget that is too small does not.
      return GetErrorDetails(status).reason == Reason::kIoError;
    default:
      return false;
  }
}

absl::Duration RetryDelay(int attempt) {
  constexpr absl::Duration kLongest = absl::Minutes(1);
  absl::Duration delay = absl::Seconds(1);
  for (int i = 1; i < attempt && delay < kLongest; ++i) delay *= 4;
  return std::min(delay, kLongest);
}

JobError ToJobError(const absl::Status& status) {
  return {absl::StatusCodeToString(status.code()), GetErrorDetails(status).reason,
          PrintableText(status.message(), kMaxErrorMessageBytes)};
}

}  // namespace sinq
