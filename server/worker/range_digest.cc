#include "server/worker/range_digest.h"

namespace sinq {

RangeDigest::RangeDigest(FileDigester& digester, uint64_t offset, uint64_t size_bytes)
    : digester_(digester),
      size_bytes_(size_bytes),
      file_digest_(size_bytes == 0 ? nullptr : digester.TakeAt(offset)) {}

void RangeDigest::Update(absl::Span<const std::byte> data) {
  if (file_digest_ == nullptr) return digest_.Update(data);
  Sha256::UpdateBoth(*file_digest_, data, digest_, data);
}

std::string RangeDigest::Finish() {
  if (file_digest_ != nullptr) digester_.GiveBack(size_bytes_);
  return digest_.HexDigest();
}

}  // namespace sinq
