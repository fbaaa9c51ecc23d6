#include "client/local_file.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"

namespace sinq::client {
namespace {

constexpr int64_t kChunkBytes = 1024 * 1024;

absl::Status SyncDirectoryOf(const std::string& path) {
  const std::string beside = std::filesystem::path(path).parent_path().string();
  const std::string parent = beside.empty() ? std::string(".") : beside;
  const int descriptor = open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return FileError(parent, "cannot be opened", errno);
  const int result = fsync(descriptor);
  const int error_number = errno;
  close(descriptor);
  return result == 0 ? absl::OkStatus() : FileError(parent, "cannot be synced", error_number);
}

}  // namespace

absl::Status FileError(absl::string_view path, absl::string_view what, int error_number) {
  const std::string text =
      absl::StrCat(path, " ", what, ": ", std::generic_category().message(error_number), ".");
  switch (error_number) {
    case ENOENT:
    case ENOTDIR:
      return absl::NotFoundError(text);
    case EACCES:
    case EPERM:
      return absl::PermissionDeniedError(text);
    case EEXIST:
      return absl::AlreadyExistsError(text);
    default:
      return absl::UnknownError(text);
  }
}

bool Exists(const std::string& path) {
  struct stat info {};
  return lstat(path.c_str(), &info) == 0;
}

absl::StatusOr<LocalFile> LocalFile::Open(const std::string& path, int flags) {
  // O_NONBLOCK: opening a pipe must fail below instead of waiting for a peer.
  const int descriptor = open(path.c_str(), flags | O_CLOEXEC | O_NONBLOCK, 0666);
  if (descriptor < 0) return FileError(path, "cannot be opened", errno);
  LocalFile file(path, descriptor, 0);
  struct stat info {};
  if (fstat(descriptor, &info) != 0) return FileError(path, "cannot be examined", errno);
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is not a regular file."));
  }
  file.size_bytes_ = info.st_size;
  return file;
}

absl::StatusOr<LocalFile> LocalFile::OpenForRead(const std::string& path) {
  return Open(path, O_RDONLY);
}

absl::StatusOr<LocalFile> LocalFile::OpenForAppend(const std::string& path) {
  return Open(path, O_RDWR | O_CREAT | O_APPEND);
}

absl::StatusOr<LocalFile> LocalFile::Create(const std::string& path) {
  return Open(path, O_RDWR | O_CREAT | O_TRUNC | O_APPEND);
}

LocalFile::LocalFile(LocalFile&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      size_bytes_(other.size_bytes_) {}

LocalFile& LocalFile::operator=(LocalFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(size_bytes_, other.size_bytes_);
  return *this;
}

LocalFile::~LocalFile() {
  if (descriptor_ >= 0) close(descriptor_);
}

absl::StatusOr<std::string> LocalFile::Read(int64_t offset, int64_t count) const {
  std::string bytes(static_cast<size_t>(count), '\0');
  for (int64_t done = 0; done < count;) {
    const ssize_t got =
        pread(descriptor_, bytes.data() + done, static_cast<size_t>(count - done), offset + done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return FileError(path_, "cannot be read", errno);
    if (got == 0) {
      return absl::OutOfRangeError(
          absl::StrCat(path_, " ends at byte ", offset + done, ", more was expected."));
    }
    done += got;
  }
  return bytes;
}

absl::Status LocalFile::ForEachChunk(
    int64_t offset, int64_t count,
    const std::function<absl::Status(absl::string_view)>& use) const {
  for (int64_t done = 0; done < count;) {
    const int64_t piece = std::min(kChunkBytes, count - done);
    const auto bytes = Read(offset + done, piece);
    if (!bytes.ok()) return bytes.status();
    if (absl::Status status = use(*bytes); !status.ok()) return status;
    done += piece;
  }
  return absl::OkStatus();
}

absl::Status LocalFile::Append(absl::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t put = write(descriptor_, bytes.data(), bytes.size());
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return FileError(path_, "cannot be written", errno);
    bytes.remove_prefix(static_cast<size_t>(put));
    size_bytes_ += put;
  }
  return absl::OkStatus();
}

absl::Status LocalFile::Truncate(int64_t size_bytes) {
  if (ftruncate(descriptor_, size_bytes) != 0) return FileError(path_, "cannot be cut", errno);
  size_bytes_ = size_bytes;
  return absl::OkStatus();
}

absl::Status LocalFile::Sync() {
  return fsync(descriptor_) == 0 ? absl::OkStatus() : FileError(path_, "cannot be synced", errno);
}

absl::Status PublishFile(const std::string& temporary, const std::string& path, bool replace) {
  const unsigned flags = replace ? 0 : RENAME_NOREPLACE;
  const char *const from = temporary.c_str(), *const to = path.c_str();
  int done = renameat2(AT_FDCWD, from, AT_FDCWD, to, flags);
  // Where the file system does not know the flag (NFS, some of FUSE), a second name for the file
  // does the same.
  if (done != 0 && !replace && (errno == EINVAL || errno == ENOSYS)) {
    done = link(from, to) == 0 ? unlink(from) : -1;
  }
  if (done != 0) return FileError(path, "cannot be put in place", errno);
  return SyncDirectoryOf(path);
}

}  // namespace sinq::client
