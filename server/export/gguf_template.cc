#include "server/export/gguf_template.h"

#include <algorithm>
#include <vector>

#include "server/base/error.h"
#include "server/base/limits.h"
#include "server/base/sha256.h"

namespace sinq {
namespace {

constexpr absl::string_view kField = "gguf_template_uri";
constexpr uint64_t kDigestBytes = 1 * kMiB;

}  // namespace

absl::StatusOr<std::unique_ptr<GgufTemplate>> GgufTemplate::Open(const ResolvedPath& path) {
  absl::StatusOr<std::unique_ptr<File>> disk = path.root->OpenForRead(path.relative);
  if (!disk.ok()) return Annotate(disk.status(), kField);
  absl::StatusOr<GgufFile> file = ReadGguf(**disk, path.display);
  if (!file.ok()) return Annotate(file.status(), kField);
  std::unique_ptr<GgufTemplate> opened(new GgufTemplate(*std::move(disk), *std::move(file)));
  for (size_t i = 0; i < opened->file_.tensors.size(); ++i)
    opened->index_[opened->file_.tensors[i].name] = static_cast<int>(i);
  if (absl::Status status = opened->DigestHeader(); !status.ok()) return Annotate(status, kField);
  return opened;
}

absl::Status GgufTemplate::DigestHeader() {
  const absl::StatusOr<uint64_t> size = disk_->Size();
  if (!size.ok()) return size.status();
  size_bytes_ = *size;
  // A file without tensors may end before its padding does.
  const uint64_t end = std::min(file_.data_offset, size_bytes_);
  std::vector<std::byte> piece(std::min(kDigestBytes, end));
  Sha256 digest;
  for (uint64_t at = 0; at < end; at += piece.size()) {
    const absl::Span<std::byte> part =
        absl::MakeSpan(piece).subspan(0, std::min<uint64_t>(piece.size(), end - at));
    if (absl::Status status = disk_->ReadAt(at, part); !status.ok()) return status;
    digest.Update(absl::Span<const std::byte>(part));
  }
  header_sha256_ = digest.HexDigest();
  return absl::OkStatus();
}

int GgufTemplate::Find(absl::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? -1 : found->second;
}

absl::Status GgufTemplate::Read(uint64_t offset, absl::Span<std::byte> out) const {
  return disk_->ReadOnceAt(offset, out);
}

}  // namespace sinq
