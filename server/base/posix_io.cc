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

}  // namespace

TransferOutcome ReadFrom(int fd, uint64_t offset, absl::Span<std::byte> out) {
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

TransferOutcome WriteTo(int fd, uint64_t offset, absl::Span<const std::byte> data) {
  size_t done = 0;
  while (done < data.size()) {
    const size_t want = std::min(data.size() - done, kMaxTransferBytes);
    const ssize_t put = ::pwrite(fd, data.data() + done, want, static_cast<off_t>(offset + done));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return {done, errno};
    if (put == 0) return {done, EIO};  // would loop for ever
    done += static_cast<size_t>(put);
  }
  return {done, 0};
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
