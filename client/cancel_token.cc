#include "client/cancel_token.h"

#include <utility>

namespace sinq::client {

CancelToken::Scope::Scope(CancelToken& token, std::function<void()> action) : token_(token) {
  absl::MutexLock lock(&token_.mutex_);
  id_ = token_.next_id_++;
  if (token_.cancelled_) action();
  token_.actions_.emplace(id_, std::move(action));
}

CancelToken::Scope::~Scope() {
  absl::MutexLock lock(&token_.mutex_);
  token_.actions_.erase(id_);
}

void CancelToken::Cancel() {
  // The actions run under the lock, so that a Scope cannot end while its action is at work.
  absl::MutexLock lock(&mutex_);
  cancelled_ = true;
  for (auto& [id, action] : actions_) action();
}

bool CancelToken::cancelled() const {
  absl::MutexLock lock(&mutex_);
  return cancelled_;
}

bool CancelToken::SleepFor(absl::Duration duration) {
  absl::MutexLock lock(&mutex_);
  return !mutex_.AwaitWithTimeout(absl::Condition(&cancelled_), duration);
}

}  // namespace sinq::client
