#include "server/worker/host_buffer.h"

#include <utility>

namespace sinq {

absl::StatusOr<HostBuffer> HostBuffer::Allocate(kernels::HostMemory* memory, uint64_t size_bytes) {
  HostBuffer out;
  out.size_bytes_ = size_bytes;
  if (memory != nullptr && size_bytes > 0) {
    const size_t size = static_cast<size_t>(size_bytes);
    const absl::StatusOr<std::byte*> data = memory->Allocate(size);
    if (data.ok()) {
      out.special_ = {*data, HostMemoryFree{memory, size}};
      return out;
    }
  }
  absl::StatusOr<AlignedBuffer> pages = AlignedBuffer::Allocate(size_bytes);
  if (!pages.ok()) return pages.status();
  out.pages_ = *std::move(pages);
  return out;
}

}  // namespace sinq
