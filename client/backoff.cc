#include "client/backoff.h"

#include <algorithm>

namespace sinq::client {

absl::Duration Backoff::Next() {
  const absl::Duration wait = next_;
  next_ = std::min(next_ * policy_.factor, policy_.longest);
  return wait * absl::Uniform(random_, 0.8, 1.2);
}

bool IsRetryable(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsAborted(status);
}

bool IsBrokenStream(const absl::Status& status) {
  // A connection that is cut in mid-stream surfaces as any of these, depending on which frame was
  // the last.
  return IsRetryable(status) || absl::IsUnknown(status) || absl::IsInternal(status) ||
         absl::IsCancelled(status) || absl::IsResourceExhausted(status);
}

}  // namespace sinq::client
