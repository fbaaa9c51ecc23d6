// Directory on a descriptor, confined by openat2.
#ifndef SINQ_SERVER_BASE_POSIX_DIRECTORY_H_
#define SINQ_SERVER_BASE_POSIX_DIRECTORY_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "server/base/file_system.h"
#include "server/base/unique_fd.h"

namespace sinq {

// See Directory. Operations that the kernel offers only for a parent descriptor and a name (mkdir,
// rename, unlink) open the parent beneath this directory first and pass a single component.
class PosixDirectory final : public Directory {
 public:
  // `fd`: a directory open for reading.
  explicit PosixDirectory(UniqueFd fd) : fd_(std::move(fd)) {}
  // Opens `path` (trusted, from the operator) and checks that the kernel can confine names.
  static absl::StatusOr<std::unique_ptr<PosixDirectory>> Open(const std::string& path);

  absl::StatusOr<std::unique_ptr<File>> OpenForRead(absl::string_view name) const override;
  absl::StatusOr<std::unique_ptr<File>> OpenForWrite(absl::string_view name) override;
  absl::StatusOr<std::unique_ptr<Directory>> OpenDirectory(absl::string_view name) const override;
  absl::Status MakeDirectory(absl::string_view name) override;
  absl::StatusOr<std::vector<DirEntry>> List(size_t max_entries) const override;
  bool Exists(absl::string_view name) const override;
  absl::Status Rename(absl::string_view from, absl::string_view to) override;
  absl::Status RemoveFile(absl::string_view name) override;
  absl::Status RemoveTree(absl::string_view name) override;
  absl::Status Sync() override;
  absl::StatusOr<uint64_t> FreeBytes() const override;

 private:
  struct Place {
    UniqueFd parent;
    std::string leaf;
  };
  absl::StatusOr<Place> FindPlace(absl::string_view name) const;

  const UniqueFd fd_;
};

}  // namespace sinq

#endif  // SINQ_SERVER_BASE_POSIX_DIRECTORY_H_
