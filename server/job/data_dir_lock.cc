#include "server/job/data_dir_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "absl/memory/memory.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "server/base/error.h"
#include "server/base/text.h"

namespace sinq {
namespace {

std::string HolderOf(int descriptor) {
  std::array<char, 32> text = {};
  const ssize_t length = pread(descriptor, text.data(), text.size(), 0);
  if (length <= 0) return "another process";
  const absl::string_view pid(text.data(), static_cast<size_t>(length));
  return absl::StrCat("process ", PrintableText(absl::StripAsciiWhitespace(pid), 32));
}

// For the message of whoever comes second; the lock itself does not depend on it.
bool WritePid(int descriptor) {
  const std::string pid = absl::StrCat(getpid(), "\n");
  return ftruncate(descriptor, 0) == 0 &&
         pwrite(descriptor, pid.data(), pid.size(), 0) == static_cast<ssize_t>(pid.size());
}

}  // namespace

absl::StatusOr<std::unique_ptr<DataDirLock>> DataDirLock::Acquire(const std::string& lock_path) {
  const int descriptor = open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (descriptor < 0) return ErrnoToStatus(errno, absl::StrCat("Cannot open ", lock_path));
  auto lock = absl::WrapUnique(new DataDirLock(descriptor));
  if (flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return ErrnoToStatus(errno, absl::StrCat("Cannot lock ", lock_path));
    return MakeError(
        absl::StatusCode::kFailedPrecondition, Reason::kUnspecified,
        absl::StrCat("The data directory is in use by ", HolderOf(descriptor), " (", lock_path,
                     "); stop it, or start this one with another "
                     "--data-dir."));
  }
  if (!WritePid(descriptor)) {
    return ErrnoToStatus(errno, absl::StrCat("Cannot write ", lock_path));
  }
  return lock;
}

DataDirLock::~DataDirLock() { close(descriptor_); }

}  // namespace sinq
