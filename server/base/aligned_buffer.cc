#include "server/base/aligned_buffer.h"

#include <cstdlib>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "server/base/error.h"

namespace sinq {

void AlignedBuffer::Free::operator()(std::byte* data) const { std::free(data); }

absl::StatusOr<AlignedBuffer> AlignedBuffer::Allocate(uint64_t size_bytes) {
  if (size_bytes == 0) return AlignedBuffer();
  constexpr uint64_t kMax = static_cast<uint64_t>(std::numeric_limits<ptrdiff_t>::max());
  void* data = nullptr;
  if (size_bytes <= kMax - kAlignmentBytes) {
    // aligned_alloc wants a multiple of the alignment.
    const size_t rounded =
        (static_cast<size_t>(size_bytes) + kAlignmentBytes - 1) / kAlignmentBytes * kAlignmentBytes;
    data = std::aligned_alloc(kAlignmentBytes, rounded);
  }
  if (data == nullptr) {
    return MakeError(absl::StatusCode::kResourceExhausted, Reason::kMemoryBudgetTooSmall,
                     absl::StrCat("Cannot allocate ", size_bytes,
                                  " bytes. Lower --memory-budget or --workers, or add memory."));
  }
  return AlignedBuffer(static_cast<std::byte*>(data), size_bytes);
}

absl::StatusOr<AlignedBuffer> AlignedBuffer::AllocateZeroed(uint64_t size_bytes) {
  absl::StatusOr<AlignedBuffer> buffer = Allocate(size_bytes);
  if (buffer.ok() && size_bytes > 0) {
    std::memset(buffer->data(), 0, static_cast<size_t>(size_bytes));
  }
  return buffer;
}

}  // namespace sinq
