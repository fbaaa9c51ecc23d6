// The GGUF file of a model that a converter made: what our tensors are put into. Hostile as a
// source is.
#ifndef SINQ_SERVER_EXPORT_GGUF_TEMPLATE_H_
#define SINQ_SERVER_EXPORT_GGUF_TEMPLATE_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/base/file_system.h"
#include "server/export/gguf_file.h"

namespace sinq {

// Immutable after opening; thread-safe.
class GgufTemplate {
 public:
  // InvalidArgument as ReadGguf says, NotFound; both name gguf_template_uri.
  static absl::StatusOr<std::unique_ptr<GgufTemplate>> Open(const ResolvedPath& path);

  const GgufFile& file() const { return file_; }
  // Index into file().tensors, -1 if there is no such tensor.
  int Find(absl::string_view name) const;
  uint64_t size_bytes() const { return size_bytes_; }
  // Hex digest of the bytes before the data: metadata, and every tensor's name, type and place.
  const std::string& header_sha256() const { return header_sha256_; }
  // A hint that this range is read soon.
  void WillRead(uint64_t offset, uint64_t size_bytes) const { disk_->WillRead(offset, size_bytes); }
  // `offset` from the start of the file. OutOfRange if the file has become shorter.
  absl::Status Read(uint64_t offset, absl::Span<std::byte> out) const;

 private:
  GgufTemplate(std::unique_ptr<File> disk, GgufFile file)
      : disk_(std::move(disk)), file_(std::move(file)) {}
  absl::Status DigestHeader();

  // Constant after opening.
  const std::unique_ptr<File> disk_;
  const GgufFile file_;
  std::map<absl::string_view, int> index_;  // names are file_'s
  uint64_t size_bytes_ = 0;
  std::string header_sha256_;
};

}  // namespace sinq

#endif  // SINQ_SERVER_EXPORT_GGUF_TEMPLATE_H_
