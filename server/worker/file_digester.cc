#include "server/worker/file_digester.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "server/base/checksum.h"
#include "server/base/error.h"

namespace sinq {
namespace {

constexpr uint64_t kPieceBytes = 1 << 18;  // stays in the second-level cache

absl::Status CheckReadBack(const WrittenRange& range, absl::string_view file_name,
                           uint64_t checksum, absl::string_view sha256) {
  const bool same_checksum = !range.checksum || *range.checksum == checksum;
  const bool same_digest = range.sha256.empty() || range.sha256 == sha256;
  if (same_checksum && same_digest) return absl::OkStatus();
  return MakeError(absl::StatusCode::kDataLoss, Reason::kIoError,
                   absl::StrCat("Tensor \"", range.tensor, "\" reads back from \"", file_name,
                                "\" with other bytes than were written. Check the disk and that "
                                "nothing else writes there, then submit the job again."),
                   {{"tensor", range.tensor}, {"file", std::string(file_name)}});
}

}  // namespace

void FileDigester::MarkWritten(WrittenRange range) {
  if (range.size_bytes > 0) {
    const uint64_t offset = range.offset;
    written_[offset] = std::move(range);
  } else if (!range.tensor.empty()) {
    tensor_digests_[range.tensor] = Sha256Hex("");  // has no place of its own
  }
}

absl::StatusOr<bool> FileDigester::Advance(const Sink& sink) {
  const auto next = written_.begin();
  if (next == written_.end() || next->first != hashed_bytes_) return false;
  if (absl::Status status = DigestRange(sink, next->second); !status.ok()) return status;
  written_.erase(next);
  return true;
}

// File and tensor in one pass, which takes little more than either.
absl::Status FileDigester::DigestRange(const Sink& sink, const WrittenRange& range) {
  piece_.resize(kPieceBytes);
  Sha256 tensor_digest;
  Checksum checksum;
  for (uint64_t end = range.offset + range.size_bytes; hashed_bytes_ < end;) {
    const absl::Span<std::byte> out(piece_.data(), std::min(kPieceBytes, end - hashed_bytes_));
    if (absl::Status status = sink.ReadAt(file_name_, hashed_bytes_, out); !status.ok())
      return status;
    hashed_bytes_ += out.size();
    const absl::Span<const std::byte> piece = out;
    if (range.tensor.empty()) {
      digest_.Update(piece);
      continue;
    }
    Sha256::UpdateBoth(digest_, piece, tensor_digest, piece);
    checksum.Update(piece);
  }
  if (range.tensor.empty()) return absl::OkStatus();
  std::string sha256 = tensor_digest.HexDigest();
  absl::Status status = CheckReadBack(range, file_name_, checksum.Value(), sha256);
  tensor_digests_[range.tensor] = std::move(sha256);
  return status;
}

absl::StatusOr<std::string> FileDigester::Finish(const Sink& sink) {
  absl::StatusOr<bool> more = true;
  while (more.ok() && *more) more = Advance(sink);
  if (!more.ok()) return more.status();
  if (hashed_bytes_ != size_bytes_) {
    return absl::InternalError(absl::StrCat(file_name_, " has a gap at byte ", hashed_bytes_));
  }
  return digest_.HexDigest();
}

absl::StatusOr<std::string> FileDigester::TensorDigest(absl::string_view tensor) const {
  const auto found = tensor_digests_.find(tensor);
  if (found != tensor_digests_.end()) return found->second;
  return absl::InternalError(absl::StrCat(file_name_, " has no tensor ", tensor));
}

}  // namespace sinq
