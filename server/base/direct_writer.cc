#include "server/base/direct_writer.h"

#include <cerrno>

#include "server/base/direct_blocks.h"
#include "server/base/posix_io.h"

namespace sinq {

std::unique_ptr<DirectWriter> DirectWriter::Open(int fd) {
  UniqueFd direct = OpenPastCache(fd);
  if (direct.get() < 0) return nullptr;
  return std::unique_ptr<DirectWriter>(new DirectWriter(std::move(direct)));
}

size_t DirectWriter::Write(uint64_t offset, absl::Span<const std::byte> data) const {
  if (refused_.load(std::memory_order_relaxed)) return 0;
  const TransferOutcome written = WriteTo(fd_.get(), offset, data);
  if (written.error_number == EINVAL) refused_ = true;
  // A disk that fills up may stop within a block.
  return written.bytes - BytesIntoBlock(written.bytes);
}

}  // namespace sinq
