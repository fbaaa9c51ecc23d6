// One after another without waiting: who comes before its turn is called when it is there.
#ifndef SINQ_SERVER_WORKER_TURNS_H_
#define SINQ_SERVER_WORKER_TURNS_H_

#include <cstdint>
#include <functional>
#include <map>

#include "absl/base/thread_annotations.h"
#include "server/base/mutex.h"

namespace sinq {

// Thread-safe.
class Turns {
 public:
  // The next number. Whoever takes one must Begin with it some time, and then Pass.
  uint64_t Join() ABSL_LOCKS_EXCLUDED(mutex_);
  // True: it is this number's turn. Else `later` is called, once, by whoever passes the turn to it.
  bool Begin(uint64_t number, std::function<void()> later) ABSL_LOCKS_EXCLUDED(mutex_);
  // Ends the turn that there is.
  void Pass() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  Mutex mutex_;
  uint64_t joined_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t turn_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<uint64_t, std::function<void()>> early_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sinq

#endif  // SINQ_SERVER_WORKER_TURNS_H_
