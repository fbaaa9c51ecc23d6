// Writing a file past the page cache (open(2), O_DIRECT): the disk takes the bytes from the
// caller's memory. Fresh pages of the cache cost more than all else about writing, most of all in a
// virtual machine, which may have to get each of them from its host.
#ifndef SINQ_SERVER_BASE_DIRECT_WRITER_H_
#define SINQ_SERVER_BASE_DIRECT_WRITER_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/types/span.h"
#include "server/base/unique_fd.h"

namespace sinq {

// Thread-safe.
class DirectWriter {
 public:
  // For the file behind `fd`, open for writing. Null where its file system writes
  // through the cache only.
  static std::unique_ptr<DirectWriter> Open(int fd);

  // Writes from the start of `data` on, as far as it gets, and returns how many bytes that were; on
  // any error whoever then writes the rest in the ordinary way will meet it. `offset`, the address
  // and the size of `data` are multiples of kDirectBlockBytes. Durable after fdatasync(2), like
  // anything else.
  size_t Write(uint64_t offset, absl::Span<const std::byte> data) const;

 private:
  explicit DirectWriter(UniqueFd fd) : fd_(std::move(fd)) {}

  const UniqueFd fd_;
  mutable std::atomic<bool> refused_ = false;  // by the file system: it may want larger blocks
};

}  // namespace sinq

#endif  // SINQ_SERVER_BASE_DIRECT_WRITER_H_
