#include "server/worker/range_writer.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "server/base/direct_blocks.h"

namespace sinq {
namespace {

constexpr size_t kPieceBytes = 4 << 20;       // each write waits for the disk
constexpr size_t kDirectFromBytes = 1 << 18;  // below, the cache gathers what the disk gets

std::byte* FirstBlock(std::byte* memory) {
  return memory + BytesToNextBlock(reinterpret_cast<uintptr_t>(memory));
}

}  // namespace

uint64_t RangeWriter::StagingBytes(uint64_t range_bytes) {
  return 2 * kDirectBlockBytes + std::min<uint64_t>(range_bytes, kPieceBytes);
}

RangeWriter::RangeWriter(Sink& sink, absl::string_view file_name, uint64_t offset,
                         uint64_t size_bytes, absl::Span<std::byte> staging)
    : sink_(sink),
      file_name_(file_name),
      first_block_(FirstBlock(staging.data())),
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
                                            " of \"", file_name_,
                                            "\" are more than were planned"));
  }
  while (!data.empty()) {
    const size_t room = piece_.size() - gathered_bytes_;
    const absl::Span<std::byte> to = piece_.subspan(gathered_bytes_, std::min(room, data.size()));
    std::memcpy(to.data(), data.data(), to.size());
    data.remove_prefix(to.size());
    gathered_bytes_ += to.size();
    if (gathered_bytes_ < piece_.size()) continue;
    if (absl::Status status = WritePiece(); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status RangeWriter::WritePiece() {
  absl::Status status = piece_.size() < kDirectFromBytes
                            ? sink_.WriteAt(file_name_, at_, piece_)
                            : sink_.WriteOnceAt(file_name_, at_, piece_);
  at_ += piece_.size();
  left_bytes_ -= piece_.size();
  BeginPiece();
  return status;
}

}  // namespace sinq
