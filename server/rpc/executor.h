// Threads for work that must not block gRPC's own.
#ifndef SINQ_SERVER_RPC_EXECUTOR_H_
#define SINQ_SERVER_RPC_EXECUTOR_H_

#include <cstddef>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "server/base/mutex.h"

namespace sinq {

// Thread-safe. Threads are started when there is more work than idle ones, up to a limit, and then
// kept. The queue is bounded by its callers: at most one task per call or tensor that gRPC
// admitted.
class Executor {
 public:
  explicit Executor(int max_threads) : max_threads_(static_cast<size_t>(max_threads)) {}
  // Runs what is queued, then joins.
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;
  // `task` must not throw.
  void Run(std::function<void()> task);

 private:
  void Loop();
  bool HasWork() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return stopping_ || !tasks_.empty(); }

  const size_t max_threads_;
  Mutex mutex_;
  std::deque<std::function<void()>> tasks_ ABSL_GUARDED_BY(mutex_);
  size_t idle_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sinq

#endif  // SINQ_SERVER_RPC_EXECUTOR_H_
