// Disk as an interface: production uses POSIX beneath allow-listed roots, tests inject faults
// through the same calls.
#ifndef SINQ_SERVER_BASE_FILE_SYSTEM_H_
#define SINQ_SERVER_BASE_FILE_SYSTEM_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace sinq {

// An open file. All reads and writes are safe to call concurrently for any ranges.
class File {
 public:
  virtual ~File() = default;
  // Length now, in bytes.
  virtual absl::StatusOr<uint64_t> Size() const = 0;
  // Fills all of `out` from `offset`; OutOfRange naming offset and missing bytes if the file ends
  // before.
  virtual absl::Status ReadAt(uint64_t offset, absl::Span<std::byte> out) const = 0;
  // The same for large ranges of which nothing is wanted again. Whole blocks that the page cache
  // does not hold come past it where the file has a way, if `out` starts as far into a block of
  // memory as `offset` into one of the file (direct_blocks.h); else it is ReadAt.
  virtual absl::Status ReadOnceAt(uint64_t offset, absl::Span<std::byte> out) const = 0;
  // A hint that ReadOnceAt comes to this range soon; may start fetching it, never waits for it.
  virtual void WillRead(uint64_t offset, uint64_t size_bytes) const = 0;
  virtual absl::Status WriteAt(uint64_t offset, absl::Span<const std::byte> data) = 0;
  // The same for large ranges that this process does not come back to soon: past the page cache as
  // ReadOnceAt, under the same conditions.
  virtual absl::Status WriteOnceAt(uint64_t offset, absl::Span<const std::byte> data) = 0;
  // A hint that this range, written already, is synced soon; may start writing it to the disk.
  virtual void WillSync(uint64_t offset, uint64_t size_bytes) = 0;
  // Reserves and sets the length, so that a full disk is found before any work.
  virtual absl::Status Preallocate(uint64_t size_bytes) = 0;
  // Data (and length) on stable storage.
  virtual absl::Status Sync() = 0;
};

// One entry as it lies in the directory: a symlink is reported as such and never followed.
struct DirEntry {
  std::string name;
  bool is_directory = false;
  uint64_t size_bytes = 0;  // of a regular file; 0 otherwise
  bool is_regular_file = false;
  bool is_symlink = false;
};

// A directory opened by descriptor. Every name is relative, may contain slashes, and is resolved
// beneath this directory by the kernel (openat2 with RESOLVE_BENEATH and RESOLVE_NO_MAGICLINKS):
// "..", absolute paths and symlinks that leave it fail with PermissionDenied/kPathOutsideRoots. ""
// and "." mean the directory itself where one can be meant. Thread-safe.
class Directory {
 public:
  virtual ~Directory() = default;
  // Regular files only: a FIFO or device is refused without waiting for it.
  virtual absl::StatusOr<std::unique_ptr<File>> OpenForRead(absl::string_view name) const = 0;
  // Opens for reading and writing; creates it if missing. Never through a symlink.
  virtual absl::StatusOr<std::unique_ptr<File>> OpenForWrite(absl::string_view name) = 0;
  virtual absl::StatusOr<std::unique_ptr<Directory>> OpenDirectory(
      absl::string_view name) const = 0;
  // AlreadyExists if there is any entry of that name.
  virtual absl::Status MakeDirectory(absl::string_view name) = 0;
  // Sorted by name, without "." and "..". ResourceExhausted/kLimitExceeded beyond `max_entries`.
  virtual absl::StatusOr<std::vector<DirEntry>> List(size_t max_entries) const = 0;
  // Any entry, a dangling symlink too. False also when `name` may not be looked at.
  virtual bool Exists(absl::string_view name) const = 0;
  // Within this directory. AlreadyExists if `to` exists (renameat2 RENAME_NOREPLACE).
  virtual absl::Status Rename(absl::string_view from, absl::string_view to) = 0;
  virtual absl::Status RemoveFile(absl::string_view name) = 0;
  virtual absl::Status RemoveTree(absl::string_view name) = 0;  // OK if absent
  virtual absl::Status Sync() = 0;                              // makes entries durable
  virtual absl::StatusOr<uint64_t> FreeBytes() const = 0;
};

// A client's path, resolved: the allow-listed root's directory and the rest beneath it.
struct ResolvedPath {
  std::shared_ptr<Directory> root;
  std::string relative;  // "" is the root itself
  std::string display;   // what the client wrote, for messages and manifests
};

// Opens paths beneath the allow-listed roots only. Thread-safe.
class FileSystem {
 public:
  virtual ~FileSystem() = default;
  // `uri`: an absolute path, or file:///path with percent escapes; no other scheme, no host, no
  // "..", no NUL. PermissionDenied/kPathOutsideRoots outside every root; InvalidArgument for a
  // malformed URI. Nothing needs to exist. The longest matching root wins.
  virtual absl::StatusOr<ResolvedPath> Resolve(absl::string_view uri) const = 0;
};

// Roots must be existing directories; NotFound otherwise. FailedPrecondition on a kernel without
// openat2 (before Linux 5.6): there is no other way to confine names that holds against races.
absl::StatusOr<std::unique_ptr<FileSystem>> MakePosixFileSystem(
    const std::vector<std::string>& roots);
// One directory by path, for the server's own data; `create` also makes missing parents.
absl::StatusOr<std::unique_ptr<Directory>> OpenPosixDirectory(const std::string& path, bool create);

}  // namespace sinq

#endif  // SINQ_SERVER_BASE_FILE_SYSTEM_H_
