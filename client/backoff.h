// Waiting times between attempts, and which failures deserve another attempt.
#ifndef SINQ_CLIENT_BACKOFF_H_
#define SINQ_CLIENT_BACKOFF_H_

#include "absl/random/random.h"
#include "absl/status/status.h"
#include "absl/time/time.h"

namespace sinq::client {

struct BackoffPolicy {
  absl::Duration first = absl::Milliseconds(200);
  absl::Duration longest = absl::Seconds(10);
  double factor = 2.0;
};

// Not thread-safe.
class Backoff {
 public:
  explicit Backoff(BackoffPolicy policy) : policy_(policy), next_(policy.first) {}
  // The next wait: grows by the factor up to the longest, with 20 % of jitter so that many clients
  // do not come back at once.
  absl::Duration Next();
  void Reset() { next_ = policy_.first; }

 private:
  BackoffPolicy policy_;
  absl::Duration next_;
  absl::BitGen random_;
};

// The same request may succeed when it is sent again. RESOURCE_EXHAUSTED is left to the user: the
// server named when.
bool IsRetryable(const absl::Status& status);
// A stream that broke like this may go on from where it was: also what a dying server or proxy
// leaves behind.
bool IsBrokenStream(const absl::Status& status);

}  // namespace sinq::client

#endif  // SINQ_CLIENT_BACKOFF_H_
