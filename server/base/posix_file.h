// File on a POSIX descriptor.
#ifndef SINQ_SERVER_BASE_POSIX_FILE_H_
#define SINQ_SERVER_BASE_POSIX_FILE_H_

#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "server/base/direct_reader.h"
#include "server/base/direct_writer.h"
#include "server/base/file_system.h"
#include "server/base/unique_fd.h"

namespace sinq {

// `label` stands for the file in messages: the name that the caller used, not a machine path.
class PosixFile final : public File {
 public:
  PosixFile(UniqueFd fd, std::string label) : fd_(std::move(fd)), label_(std::move(label)) {}

  absl::StatusOr<uint64_t> Size() const override;
  absl::Status ReadAt(uint64_t offset, absl::Span<std::byte> out) const override;
  absl::Status ReadOnceAt(uint64_t offset, absl::Span<std::byte> out) const override;
  void WillRead(uint64_t offset, uint64_t size_bytes) const override;
  absl::Status WriteAt(uint64_t offset, absl::Span<const std::byte> data) override;
  absl::Status WriteOnceAt(uint64_t offset, absl::Span<const std::byte> data) override;
  void WillSync(uint64_t offset, uint64_t size_bytes) override;
  absl::Status Preallocate(uint64_t size_bytes) override;
  absl::Status Sync() override;

 private:
  absl::Status Fail(int error_number, absl::string_view verb) const;
  // Opened by the first who asks; null if there is none.
  const DirectReader* DirectIn() const;
  const DirectWriter* DirectOut() const;

  const UniqueFd fd_;
  const std::string label_;
  mutable std::once_flag direct_in_once_, direct_out_once_;
  mutable std::unique_ptr<DirectReader> direct_in_;    // set under direct_in_once_
  mutable std::unique_ptr<DirectWriter> direct_out_;  // set under direct_out_once_
};

}  // namespace sinq

#endif  // SINQ_SERVER_BASE_POSIX_FILE_H_
