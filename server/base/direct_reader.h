// Reading a file past the page cache (open(2), O_DIRECT): the disk writes to the caller's memory,
// without a copy, and without pushing what others read again out of the cache.
#ifndef SINQ_SERVER_BASE_DIRECT_READER_H_
#define SINQ_SERVER_BASE_DIRECT_READER_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/types/span.h"
#include "server/base/unique_fd.h"

namespace sinq {

// Thread-safe.
class DirectReader {
 public:
  // For the file behind `fd`, open for reading. Null where its file system reads through the cache
  // only, or the kernel does not tell this process what the cache holds (mincore(2): it tells
  // owners and those who may write): a file that was just downloaded is not to be read again from
  // a slow disk.
  static std::unique_ptr<DirectReader> Open(int fd);

  // Reads from the start of `out` on, as far as it gets, and returns how many bytes that were: 0 if
  // most of the range is in the page cache already, or on any error, which whoever then reads the
  // rest in the ordinary way will meet. `offset`, the address and the size of `out` are multiples
  // of kDirectBlockBytes.
  size_t Read(uint64_t offset, absl::Span<std::byte> out) const;
  // False once the file system has refused such a read: it may want larger blocks.
  bool works() const { return !refused_.load(std::memory_order_relaxed); }

 private:
  explicit DirectReader(UniqueFd fd) : fd_(std::move(fd)) {}

  const UniqueFd fd_;
  mutable std::atomic<bool> refused_ = false;
};

}  // namespace sinq

#endif  // SINQ_SERVER_BASE_DIRECT_READER_H_
