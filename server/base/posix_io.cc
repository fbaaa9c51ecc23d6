#include "server/base/posix_io.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>

#include "absl/strings/str_cat.h"

namespace sinq {
namespace {

// The kernel moves at most about 2 GiB per call anyway.
constexpr size_t kMaxTransferBytes = size_t{1} << 30;

// Calls `move(done, want)`, one of the two system calls, until `size_bytes` are moved, it moves
// none, or an error comes.
template <class Move>
TransferOutcome MoveAll(size_t size_bytes, const Move& move) {
  size_t done = 0;
  while (done < size_bytes) {
    const ssize_t moved = move(done, std::min(size_bytes - done, kMaxTransferBytes));
    if (moved < 0 && errno == EINTR) continue;
    if (moved < 0) return {done, errno};
    if (moved == 0) break;
    done += static_cast<size_t>(moved);
  }
  return {done, 0};
}

}  // namespace

TransferOutcome ReadFrom(int fd, uint64_t offset, absl::Span<std::byte> out) {
  return MoveAll(out.size(), [&](size_t done, size_t want) {
    return ::pread(fd, out.data() + done, want, static_cast<off_t>(offset + done));
  });
}

TransferOutcome WriteTo(int fd, uint64_t offset, absl::Span<const std::byte> data) {
  TransferOutcome written = MoveAll(data.size(), [&](size_t done, size_t want) {
    return ::pwrite(fd, data.data() + done, want, static_cast<off_t>(offset + done));
  });
  // Trying for ever would be worse.
  if (written.error_number == 0 && written.bytes < data.size()) written.error_number = EIO;
  return written;
}

UniqueFd OpenPastCache(int fd) {
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0) return UniqueFd();
  const int access = flags & O_ACCMODE;
  const std::string self = absl::StrCat("/proc/self/fd/", fd);
  // EINVAL where there is no O_DIRECT.
  return UniqueFd(::open(self.c_str(), access | O_DIRECT | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
}

}  // namespace sinq
