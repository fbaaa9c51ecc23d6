#include "server/worker/range_writer.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "server/base/direct_blocks.h"

namespace sinq {
namespace {

constexpr size_t kPieceBytes = 4 << 20;       // each write waits for the disk
constexpr size_t kDirectFromBytes = 1 << 18;  // below, the cache gathers what the disk gets
constexpr size_t kDigestBytes = 1 << 18;      // copied and digested in the second-level cache

std::byte* FirstBlock(std::byte* memory) {
  return memory + BytesToNextBlock(reinterpret_cast<uintptr_t>(memory));
}

}  // namespace

uint64_t RangeWriter::StagingBytes(uint64_t range_bytes) {
  return 2 * kDirectBlockBytes + std::min<uint64_t>(range_bytes, kPieceBytes);
}

RangeWriter::RangeWriter(Sink& sink, FileDigester& digester, uint64_t offset, uint64_t size_bytes,
                         absl::Span<std::byte> staging)
    : sink_(sink),
      digester_(digester),
      size_bytes_(size_bytes),
      first_block_(FirstBlock(staging.data())),
      file_digest_(size_bytes == 0 ? nullptr : digester.TakeAt(offset)),
      at_(offset),
      left_bytes_(size_bytes) {
  BeginPiece();
}

void RangeWriter::BeginPiece() {
  piece_ = {first_block_ + BytesIntoBlock(at_), BytesOfPiece(at_, left_bytes_, kPieceBytes)};
  gathered_bytes_ = 0;
}

absl::Status RangeWriter::Append(absl::Span<const std::byte> data) {
  if (data.size() > left_bytes_ - gathered_bytes_) {
    return absl::InternalError(absl::StrCat(data.size(), " bytes at ", at_ + gathered_bytes_,
                                            " of \"", digester_.file_name(),
                                            "\" are more than were planned"));
  }
  while (!data.empty()) {
    const size_t room = std::min(piece_.size() - gathered_bytes_, kDigestBytes);
    const absl::Span<std::byte> to = piece_.subspan(gathered_bytes_, std::min(room, data.size()));
    std::memcpy(to.data(), data.data(), to.size());
    Digest(to);
    data.remove_prefix(to.size());
    gathered_bytes_ += to.size();
    if (gathered_bytes_ < piece_.size()) continue;
    if (absl::Status status = WritePiece(); !status.ok()) return status;
  }
  return absl::OkStatus();
}

void RangeWriter::Digest(absl::Span<const std::byte> data) {
  if (file_digest_ == nullptr) return digest_.Update(data);
  Sha256::UpdateBoth(*file_digest_, data, digest_, data);
}

absl::Status RangeWriter::WritePiece() {
  absl::Status status = piece_.size() < kDirectFromBytes
                            ? sink_.WriteAt(digester_.file_name(), at_, piece_)
                            : sink_.WriteOnceAt(digester_.file_name(), at_, piece_);
  at_ += piece_.size();
  left_bytes_ -= piece_.size();
  BeginPiece();
  return status;
}

std::string RangeWriter::Finish() {
  if (file_digest_ != nullptr) digester_.GiveBack(size_bytes_);
  return digest_.HexDigest();
}

}  // namespace sinq
