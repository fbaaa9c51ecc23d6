#include "server/worker/file_digester.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/direct_blocks.h"
#include "server/base/error.h"

namespace sinq {
namespace {

// Read back at once: enough for a disk past the page cache, and still in the second-level cache.
constexpr size_t kPieceBytes = 1 << 19;

absl::Status CheckReadBack(const WrittenRange& range, absl::string_view file_name,
                           absl::string_view sha256) {
  if (range.sha256 == sha256) return absl::OkStatus();
  return MakeError(absl::StatusCode::kDataLoss, Reason::kIoError,
                   absl::StrCat("Tensor \"", range.tensor, "\" reads back from \"", file_name,
                                "\" with other bytes than were written. Check the disk and that "
                                "nothing else writes there, then submit the job again."),
                   {{"tensor", range.tensor}, {"file", std::string(file_name)}});
}

}  // namespace

FileDigester::FileDigester(std::string file_name, uint64_t size_bytes, absl::string_view header)
    : file_name_(std::move(file_name)), size_bytes_(size_bytes), digested_bytes_(header.size()) {
  digest_.Update(header);
}

Sha256* FileDigester::TakeAt(uint64_t offset) {
  MutexLock lock(&mutex_);
  if (taken_ || offset != digested_bytes_) return nullptr;
  taken_ = true;
  return &digest_;
}

void FileDigester::GiveBack(uint64_t size_bytes) {
  MutexLock lock(&mutex_);
  digested_bytes_ += size_bytes;
  taken_ = false;
}

void FileDigester::MarkWritten(WrittenRange range) {
  MutexLock lock(&mutex_);
  if (range.size_bytes == 0 || range.offset < digested_bytes_) return;
  const uint64_t offset = range.offset;
  written_[offset] = std::move(range);
}

std::optional<WrittenRange> FileDigester::TakeNext() {
  MutexLock lock(&mutex_);
  const auto next = written_.begin();
  if (taken_ || next == written_.end() || next->first != digested_bytes_) return std::nullopt;
  taken_ = true;
  WrittenRange range = std::move(next->second);
  written_.erase(next);
  return range;
}

absl::StatusOr<bool> FileDigester::Advance(const Sink& sink) {
  const std::optional<WrittenRange> range = TakeNext();
  if (!range) return false;
  if (absl::Status status = DigestRange(sink, *range); !status.ok()) return status;
  GiveBack(range->size_bytes);
  return true;
}

// File and tensor in one pass, which takes little more than either.
absl::Status FileDigester::DigestRange(const Sink& sink, const WrittenRange& range) {
  piece_.resize(kPieceBytes + kDirectBlockBytes);
  std::byte* const block =
      piece_.data() + BytesToNextBlock(reinterpret_cast<uintptr_t>(piece_.data()));
  Sha256 tensor_digest;
  for (uint64_t at = 0; at < range.size_bytes;) {
    const uint64_t offset = range.offset + at;
    const absl::Span<std::byte> out(block + BytesIntoBlock(offset),
                                    BytesOfPiece(offset, range.size_bytes - at, kPieceBytes));
    if (absl::Status status = sink.ReadOnceAt(file_name_, offset, out); !status.ok())
      return status;
    at += out.size();
    const absl::Span<const std::byte> piece = out;
    if (range.tensor.empty()) {
      digest_.Update(piece);
    } else {
      Sha256::UpdateBoth(digest_, piece, tensor_digest, piece);
    }
  }
  if (range.tensor.empty()) return absl::OkStatus();
  return CheckReadBack(range, file_name_, tensor_digest.HexDigest());
}

absl::StatusOr<std::string> FileDigester::Finish(const Sink& sink) {
  absl::StatusOr<bool> more = true;
  while (more.ok() && *more) more = Advance(sink);
  if (!more.ok()) return more.status();
  MutexLock lock(&mutex_);
  if (taken_ || digested_bytes_ != size_bytes_) {
    return absl::InternalError(absl::StrCat(file_name_, " has a gap at byte ", digested_bytes_));
  }
  return digest_.HexDigest();
}

std::deque<FileDigester> DigestersFor(const Plan& plan) {
  std::deque<FileDigester> digesters;
  for (const PlannedFile& file : plan.files) {
    FileDigester& digester = digesters.emplace_back(file.name, file.size_bytes, file.header);
    for (const PlannedPadding& zeros : file.padding)
      digester.MarkWritten({zeros.offset, zeros.size_bytes});
  }
  for (const PlannedExtra& extra : plan.extras) {
    digesters[static_cast<size_t>(extra.range.file_index)].MarkWritten(
        {extra.range.offset, extra.range.tensor.size_bytes});
  }
  return digesters;
}

}  // namespace sinq
