// A buffer that starts on a cache line, which SIMD loads and O_DIRECT-like readers want.
#ifndef SINQ_SERVER_BASE_ALIGNED_BUFFER_H_
#define SINQ_SERVER_BASE_ALIGNED_BUFFER_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace sinq {

// Large blocks are mappings of their own: given back to the system when freed, whatever the
// allocator would keep, and of huge pages where the system has them.
struct AlignedBufferFree {
  size_t mapped_bytes = 0;  // 0: from the allocator
  void operator()(std::byte* data) const;
};

// Movable, not thread-safe. The content of a new buffer is unspecified unless zeroed.
class AlignedBuffer {
 public:
  static constexpr size_t kAlignmentBytes = 64;

  AlignedBuffer() = default;
  // ResourceExhausted/kMemoryBudgetTooSmall when the allocator refuses; never throws. Bound
  // `size_bytes` by something real (a file's length, a budget) before asking.
  static absl::StatusOr<AlignedBuffer> Allocate(uint64_t size_bytes);
  // The same, filled with zeros.
  static absl::StatusOr<AlignedBuffer> AllocateZeroed(uint64_t size_bytes);

  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }
  uint64_t SizeBytes() const { return size_bytes_; }
  absl::Span<std::byte> span() { return {data_.get(), static_cast<size_t>(size_bytes_)}; }
  absl::Span<const std::byte> span() const {
    return {data_.get(), static_cast<size_t>(size_bytes_)};
  }

 private:
  AlignedBuffer(std::byte* data, uint64_t size_bytes, size_t mapped_bytes)
      : data_(data, AlignedBufferFree{mapped_bytes}), size_bytes_(size_bytes) {}
  static AlignedBuffer FromAllocator(uint64_t size_bytes);
  static AlignedBuffer FromMapping(uint64_t size_bytes);

  std::unique_ptr<std::byte[], AlignedBufferFree> data_;
  uint64_t size_bytes_ = 0;
};

// `size_bytes` rounded up, so that what follows it in a buffer is aligned like the buffer.
constexpr uint64_t AlignedBytes(uint64_t size_bytes) {
  constexpr uint64_t kAlignment = AlignedBuffer::kAlignmentBytes;
  return (size_bytes + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace sinq

#endif  // SINQ_SERVER_BASE_ALIGNED_BUFFER_H_
