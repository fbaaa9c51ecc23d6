#include "server/base/posix_read.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace sinq {

ReadOutcome ReadFrom(int fd, uint64_t offset, absl::Span<std::byte> out) {
  size_t done = 0;
  while (done < out.size()) {
    const size_t want = std::min(out.size() - done, kMaxTransferBytes);
    const ssize_t got = ::pread(fd, out.data() + done, want, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return {done, errno};
    if (got == 0) break;
    done += static_cast<size_t>(got);
  }
  return {done, 0};
}

}  // namespace sinq
