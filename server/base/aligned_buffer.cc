#include "server/base/aligned_buffer.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "server/base/error.h"

namespace sinq {
namespace {

constexpr uint64_t kMappedFromBytes = 1 << 20;  // below, a mapping costs more than it gives
constexpr size_t kHugePageBytes = 2 << 20;
constexpr uint64_t kMaxBytes =
    static_cast<uint64_t>(std::numeric_limits<ptrdiff_t>::max()) - 2 * kHugePageBytes;

size_t RoundUp(uint64_t size_bytes, size_t multiple) {
  return (static_cast<size_t>(size_bytes) + multiple - 1) / multiple * multiple;
}

// Pages of `size` bytes, a multiple of kHugePageBytes, starting at one; nullptr if refused.
std::byte* MapAligned(size_t size) {
  void* mapped = mmap(nullptr, size + kHugePageBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(mapped);
  const size_t head = RoundUp(begin, kHugePageBytes) - begin;
  std::byte* data = static_cast<std::byte*>(mapped) + head;
  if (head > 0) munmap(mapped, head);
  if (head < kHugePageBytes) munmap(data + size, kHugePageBytes - head);
  madvise(data, size, MADV_HUGEPAGE);  // a hint: refused where there are none
  return data;
}

}  // namespace

void AlignedBufferFree::operator()(std::byte* data) const {
  if (mapped_bytes == 0) {
    std::free(data);
  } else {
    munmap(data, mapped_bytes);
  }
}

AlignedBuffer AlignedBuffer::FromAllocator(uint64_t size_bytes) {
  // aligned_alloc wants a multiple of the alignment.
  void* data = std::aligned_alloc(kAlignmentBytes, RoundUp(size_bytes, kAlignmentBytes));
  return AlignedBuffer(static_cast<std::byte*>(data), size_bytes, 0);
}

AlignedBuffer AlignedBuffer::FromMapping(uint64_t size_bytes) {
  const size_t mapped_bytes = RoundUp(size_bytes, kHugePageBytes);
  return AlignedBuffer(MapAligned(mapped_bytes), size_bytes, mapped_bytes);
}

absl::StatusOr<AlignedBuffer> AlignedBuffer::Allocate(uint64_t size_bytes) {
  if (size_bytes == 0) return AlignedBuffer();
  if (size_bytes <= kMaxBytes) {
    AlignedBuffer buffer =
        size_bytes < kMappedFromBytes ? FromAllocator(size_bytes) : FromMapping(size_bytes);
    if (buffer.data() != nullptr) return buffer;
  }
  return MakeError(absl::StatusCode::kResourceExhausted, Reason::kMemoryBudgetTooSmall,
                   absl::StrCat("Cannot allocate ", size_bytes,
                                " bytes. Lower --memory-budget or --workers, or add memory."));
}

absl::StatusOr<AlignedBuffer> AlignedBuffer::AllocateZeroed(uint64_t size_bytes) {
  absl::StatusOr<AlignedBuffer> buffer = Allocate(size_bytes);
  const bool zero_already = size_bytes >= kMappedFromBytes;  // fresh pages are
  if (buffer.ok() && size_bytes > 0 && !zero_already) {
    std::memset(buffer->data(), 0, static_cast<size_t>(size_bytes));
  }
  return buffer;
}

}  // namespace sinq
