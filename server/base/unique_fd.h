// A file descriptor that is closed when its owner goes.
#ifndef SINQ_SERVER_BASE_UNIQUE_FD_H_
#define SINQ_SERVER_BASE_UNIQUE_FD_H_

#include <unistd.h>

#include <utility>

namespace sinq {

// Movable, not copyable. -1 means none.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(other.Release()) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) Reset(other.Release());
    return *this;
  }
  ~UniqueFd() { Reset(-1); }

  int get() const { return fd_; }
  int Release() { return std::exchange(fd_, -1); }

 private:
  // Errors of close() are not looked at: whoever needs durable data has called fsync before.
  void Reset(int fd) {
    if (fd_ >= 0) ::close(fd_);
    fd_ = fd;
  }

  int fd_ = -1;
};

}  // namespace sinq

#endif  // SINQ_SERVER_BASE_UNIQUE_FD_H_
