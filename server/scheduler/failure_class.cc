#include "server/scheduler/failure_class.h"

#include <algorithm>

#include "server/base/error.h"
#include "server/base/limits.h"
#include "server/base/text.h"

namespace sinq {

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
