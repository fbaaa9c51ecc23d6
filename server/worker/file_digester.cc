#include "server/worker/file_digester.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace sinq {
namespace {

constexpr uint64_t kPieceBytes = 1 << 20;

}  // namespace

void FileDigester::MarkWritten(uint64_t offset, uint64_t size_bytes) {
  if (size_bytes > 0) written_[offset] = offset + size_bytes;
}

absl::Status FileDigester::Advance(const Sink& sink) {
  piece_.resize(kPieceBytes);
  for (auto next = written_.begin(); next != written_.end() && next->first == hashed_bytes_;
       next = written_.erase(next)) {
    while (hashed_bytes_ < next->second) {
      const absl::Span<std::byte> piece(piece_.data(),
                                        std::min(kPieceBytes, next->second - hashed_bytes_));
      if (absl::Status status = sink.ReadAt(file_name_, hashed_bytes_, piece); !status.ok())
        return status;
      digest_.Update(absl::Span<const std::byte>(piece));
      hashed_bytes_ += piece.size();
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> FileDigester::Finish(const Sink& sink) {
  if (absl::Status status = Advance(sink); !status.ok()) return status;
  if (hashed_bytes_ != size_bytes_) {
    return absl::InternalError(absl::StrCat(file_name_, " has a gap at byte ", hashed_bytes_));
  }
  return digest_.HexDigest();
}

}  // namespace sinq
