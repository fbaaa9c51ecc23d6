// pread(2) and pwrite(2) in full, and files opened past the page cache.
#ifndef SINQ_SERVER_BASE_POSIX_IO_H_
#define SINQ_SERVER_BASE_POSIX_IO_H_

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"
#include "server/base/unique_fd.h"

namespace sinq {

// How far a read or write came. A read without an error that gave fewer bytes than wanted has met
// the end of the file; a write without an error is complete.
struct TransferOutcome {
  size_t bytes = 0;
  int error_number = 0;
};

// Until `out` is full, the file ends or an error comes; a signal is none. The range fits off_t.
TransferOutcome ReadFrom(int fd, uint64_t offset, absl::Span<std::byte> out);
// Until all of `data` is written or an error comes; a signal is none. The range fits off_t.
TransferOutcome WriteTo(int fd, uint64_t offset, absl::Span<const std::byte> data);

// The file behind `fd` once more, past the page cache (O_DIRECT), whatever its name leads to by
// now, and for no more than `fd` is open for. -1 where its file system has no such way.
UniqueFd OpenPastCache(int fd);

}  // namespace sinq

#endif  // SINQ_SERVER_BASE_POSIX_IO_H_
