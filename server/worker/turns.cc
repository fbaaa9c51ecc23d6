#include "server/worker/turns.h"

#include <utility>

namespace sinq {

uint64_t Turns::Join() {
  MutexLock lock(&mutex_);
  return joined_++;
}

bool Turns::Begin(uint64_t number, std::function<void()> later) {
  MutexLock lock(&mutex_);
  if (number == turn_) return true;
  early_.emplace(number, std::move(later));
  return false;
}

void Turns::Pass() {
  std::function<void()> next;  // called outside the lock
  {
    MutexLock lock(&mutex_);
    if (auto found = early_.extract(++turn_); !found.empty()) next = std::move(found.mapped());
  }
  if (next) next();
}

}  // namespace sinq
