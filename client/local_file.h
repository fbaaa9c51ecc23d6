// Files on this machine: read at an offset, append, sync, and replace atomically.
#ifndef SINQ_CLIENT_LOCAL_FILE_H_
#define SINQ_CLIENT_LOCAL_FILE_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sinq::client {

// Owns a descriptor. Reads are thread-safe; writes are not. Errors name the path; a missing file is
// NotFound.
class LocalFile {
 public:
  // A regular file only: a pipe or device would hang or never end.
  static absl::StatusOr<LocalFile> OpenForRead(const std::string& path);
  // Created if missing; appends after what is there.
  static absl::StatusOr<LocalFile> OpenForAppend(const std::string& path);
  // Created or emptied; can be read back.
  static absl::StatusOr<LocalFile> Create(const std::string& path);
  LocalFile(LocalFile&& other) noexcept;
  LocalFile& operator=(LocalFile&& other) noexcept;
  ~LocalFile();

  const std::string& path() const { return path_; }
  // As it was when opened, plus what was appended.
  int64_t size_bytes() const { return size_bytes_; }
  // Exactly `count` bytes, or OutOfRange if the file is shorter.
  absl::StatusOr<std::string> Read(int64_t offset, int64_t count) const;
  // The range in pieces of at most 1 MiB.
  absl::Status ForEachChunk(int64_t offset, int64_t count,
                            const std::function<absl::Status(absl::string_view)>& use) const;
  absl::Status Append(absl::string_view bytes);
  absl::Status Truncate(int64_t size_bytes);
  absl::Status Sync();

 private:
  LocalFile(std::string path, int descriptor, int64_t size_bytes)
      : path_(std::move(path)), descriptor_(descriptor), size_bytes_(size_bytes) {}
  static absl::StatusOr<LocalFile> Open(const std::string& path, int flags);

  std::string path_;
  int descriptor_ = -1;
  int64_t size_bytes_ = 0;
};

// NotFound for ENOENT, PermissionDenied for EACCES and EPERM, Unknown otherwise; "PATH: what:
// reason."
absl::Status FileError(absl::string_view path, absl::string_view what, int error_number);
bool Exists(const std::string& path);
// Moves a synced temporary file to its final name and syncs the directory. AlreadyExists if the
// name is taken and `replace` is not set.
absl::Status PublishFile(const std::string& temporary, const std::string& path, bool replace);

}  // namespace sinq::client

#endif  // SINQ_CLIENT_LOCAL_FILE_H_
