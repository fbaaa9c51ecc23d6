// The mutex and condition variable of the server: Abseil's, but in ThreadSanitizer builds the
// standard library's. The packaged Abseil is not instrumented: ThreadSanitizer cannot see what its
// mutexes order and would report every access that they protect.
#ifndef SINQ_SERVER_BASE_MUTEX_H_
#define SINQ_SERVER_BASE_MUTEX_H_

#include "absl/synchronization/mutex.h"

#ifdef __SANITIZE_THREAD__  // g++
#define SINQ_THREAD_SANITIZER
#endif
#if defined(__clang__) && defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SINQ_THREAD_SANITIZER
#endif
#endif

#ifndef SINQ_THREAD_SANITIZER

namespace sinq {

using Mutex = absl::Mutex;
using MutexLock = absl::MutexLock;
using CondVar = absl::CondVar;

}  // namespace sinq

#else

#include <algorithm>
#include <condition_variable>
#include <mutex>

#include "absl/time/clock.h"

namespace sinq {

// The part of absl::Mutex that the server uses, with the same contracts.
class ABSL_LOCKABLE Mutex {
 public:
  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() { mutex_.lock(); }
  void Unlock() ABSL_UNLOCK_FUNCTION() {
    changed_.notify_all();  // any condition may have become true
    mutex_.unlock();
  }
  void AssertHeld() const ABSL_ASSERT_EXCLUSIVE_LOCK() {}
  // Both waits give the lock away, so they too tell of what was changed under it.
  void Await(const absl::Condition& condition) {
    changed_.notify_all();
    std::unique_lock<std::mutex> lock(mutex_, std::adopt_lock);
    changed_.wait(lock, [&condition] { return condition.Eval(); });
    lock.release();
  }
  bool AwaitWithTimeout(const absl::Condition& condition, absl::Duration timeout) {
    changed_.notify_all();
    std::unique_lock<std::mutex> lock(mutex_, std::adopt_lock);
    const auto deadline = absl::ToChronoTime(absl::Now() + timeout);
    const bool met = changed_.wait_until(lock, deadline, [&] { return condition.Eval(); });
    lock.release();
    return met;
  }

 private:
  friend class CondVar;
  std::mutex mutex_;
  std::condition_variable changed_;
};

class ABSL_SCOPED_LOCKABLE MutexLock {
 public:
  explicit MutexLock(Mutex* mutex) ABSL_EXCLUSIVE_LOCK_FUNCTION(mutex) : mutex_(mutex) {
    mutex_->Lock();
  }
  ~MutexLock() ABSL_UNLOCK_FUNCTION() { mutex_->Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex* const mutex_;
};

class CondVar {
 public:
  // True if the deadline passed.
  bool WaitWithDeadline(Mutex* mutex, absl::Time deadline) {
    std::unique_lock<std::mutex> lock(mutex->mutex_, std::adopt_lock);
    const auto until = absl::ToChronoTime(std::min(deadline, absl::Now() + absl::Hours(1)));
    const bool timed_out = changed_.wait_until(lock, until) == std::cv_status::timeout;
    lock.release();
    return timed_out;
  }
  bool WaitWithTimeout(Mutex* mutex, absl::Duration timeout) {
    return WaitWithDeadline(mutex, absl::Now() + timeout);
  }
  void SignalAll() { changed_.notify_all(); }

 private:
  std::condition_variable changed_;
};

}  // namespace sinq

#endif  // SINQ_THREAD_SANITIZER

#endif  // SINQ_SERVER_BASE_MUTEX_H_
