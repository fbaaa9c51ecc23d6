// One buffer of host memory, from wherever the backend copies from fastest.
#ifndef SINQ_SERVER_WORKER_HOST_BUFFER_H_
#define SINQ_SERVER_WORKER_HOST_BUFFER_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/backend.h"
#include "server/base/aligned_buffer.h"

namespace sinq {

struct HostMemoryFree {
  kernels::HostMemory* memory = nullptr;
  size_t size_bytes = 0;
  void operator()(std::byte* data) const { memory->Free(data, size_bytes); }
};

// Movable, not thread-safe. Starts on 64 bytes; the content of a new buffer is unspecified.
class HostBuffer {
 public:
  static constexpr size_t kAlignmentBytes = AlignedBuffer::kAlignmentBytes;

  HostBuffer() = default;
  // From `memory`, or ordinary pages if that is null or has none left: those are only slower.
  // `memory` must outlive the buffer. ResourceExhausted as AlignedBuffer.
  static absl::StatusOr<HostBuffer> Allocate(kernels::HostMemory* memory, uint64_t size_bytes);

  const std::byte* data() const { return special_ != nullptr ? special_.get() : pages_.data(); }
  std::byte* data() { return special_ != nullptr ? special_.get() : pages_.data(); }
  absl::Span<std::byte> span() { return {data(), static_cast<size_t>(size_bytes_)}; }
  uint64_t SizeBytes() const { return size_bytes_; }

 private:
  // One of the two, or neither for an empty buffer.
  std::unique_ptr<std::byte[], HostMemoryFree> special_;
  AlignedBuffer pages_;
  uint64_t size_bytes_ = 0;
};

}  // namespace sinq

#endif  // SINQ_SERVER_WORKER_HOST_BUFFER_H_
