// One switch that stops whatever the client is doing: calls, waits, loops.
#ifndef SINQ_CLIENT_CANCEL_TOKEN_H_
#define SINQ_CLIENT_CANCEL_TOKEN_H_

#include <cstdint>
#include <functional>
#include <map>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace sinq::client {

// Thread-safe. Cannot be called from a signal handler; a thread that waits for signals calls
// Cancel.
class CancelToken {
 public:
  // While it lives, Cancel runs `action` (at once when cancelled already). The action must not
  // block.
  class Scope {
   public:
    Scope(CancelToken& token, std::function<void()> action);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    CancelToken& token_;
    int64_t id_;
  };

  void Cancel();
  bool cancelled() const;
  // False as soon as the token is cancelled, true after `duration`.
  bool SleepFor(absl::Duration duration);

 private:
  mutable absl::Mutex mutex_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  int64_t next_id_ ABSL_GUARDED_BY(mutex_) = 1;
  std::map<int64_t, std::function<void()>> actions_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sinq::client

#endif  // SINQ_CLIENT_CANCEL_TOKEN_H_
