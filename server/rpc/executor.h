// A few threads for work that must not block gRPC's own.
#ifndef SINQ_SERVER_RPC_EXECUTOR_H_
#define SINQ_SERVER_RPC_EXECUTOR_H_

#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace sinq {

// Thread-safe. The queue is bounded by its callers: at most one task per call or tensor that gRPC admitted.
class Executor {
 public:
  explicit Executor(int threads);
  // Runs what is queued, then joins.
  ~Executor();
  void Run(std::function<void()> task);

 private:
  void Loop();
  bool HasWork() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return stopping_ || !tasks_.empty(); }

  absl::Mutex mutex_;
  std::deque<std::function<void()>> tasks_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace sinq

#endif  // SINQ_SERVER_RPC_EXECUTOR_H_
