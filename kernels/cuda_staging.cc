#include "kernels/cuda_staging.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace sinq::kernels {

CudaHostMemory::~CudaHostMemory() {
  for (const auto& [memory, size_bytes] : pieces_) runtime_->FreePinned(memory);
}

absl::StatusOr<std::byte*> CudaHostMemory::Allocate(size_t size_bytes) {
  const absl::StatusOr<void*> memory = runtime_->AllocatePinned(std::max<size_t>(size_bytes, 1));
  if (!memory.ok()) return memory.status();
  std::byte* const bytes = static_cast<std::byte*>(*memory);
  const std::lock_guard<std::mutex> lock(mutex_);
  pieces_[bytes] = size_bytes;
  return bytes;
}

void CudaHostMemory::Free(std::byte* memory, size_t /*size_bytes*/) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    pieces_.erase(memory);
  }
  runtime_->FreePinned(memory);
}

bool CudaHostMemory::Contains(const std::byte* memory, size_t size_bytes) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto after = pieces_.upper_bound(memory);
  if (after == pieces_.begin()) return false;
  const auto& [begin, piece_bytes] = *std::prev(after);
  const size_t offset = static_cast<size_t>(memory - begin);
  return offset <= piece_bytes && size_bytes <= piece_bytes - offset;
}

absl::StatusOr<std::unique_ptr<StagingRing>> StagingRing::Make(std::shared_ptr<CudaRuntime> runtime,
                                                               CudaStream stream,
                                                               size_t chunk_bytes) {
  std::unique_ptr<StagingRing> ring(new StagingRing(std::move(runtime), stream, chunk_bytes));
  if (absl::Status status = ring->AllocateChunks(); !status.ok()) return status;
  return ring;
}

absl::Status StagingRing::AllocateChunks() {
  for (size_t i = 0; i < kStagingChunks; ++i) {
    const absl::StatusOr<void*> memory = runtime_->AllocatePinned(chunk_bytes_);
    if (!memory.ok()) return memory.status();
    chunks_.push_back({static_cast<std::byte*>(*memory), nullptr, false, nullptr, 0});
    const absl::StatusOr<CudaEvent> event = runtime_->CreateEvent();
    if (!event.ok()) return event.status();
    chunks_.back().event = *event;
  }
  return absl::OkStatus();
}

StagingRing::~StagingRing() {
  for (const Chunk& chunk : chunks_) {
    if (chunk.event != nullptr) runtime_->DestroyEvent(chunk.event);
    runtime_->FreePinned(chunk.memory);
  }
}

absl::Status StagingRing::Release(Chunk& chunk) {
  if (!chunk.in_use) return absl::OkStatus();
  if (absl::Status status = runtime_->SynchronizeEvent(chunk.event); !status.ok()) return status;
  if (chunk.deliver_to != nullptr) std::memcpy(chunk.deliver_to, chunk.memory, chunk.deliver_bytes);
  chunk.in_use = false;
  chunk.deliver_to = nullptr;
  return absl::OkStatus();
}

absl::StatusOr<StagingRing::Chunk*> StagingRing::NextChunk() {
  Chunk& chunk = chunks_[next_];
  next_ = (next_ + 1) % chunks_.size();
  if (absl::Status status = Release(chunk); !status.ok()) return status;
  return &chunk;
}

absl::Status StagingRing::SendChunk(Chunk& chunk, std::byte* to, size_t size_bytes) {
  // In use even if recording fails: the copy may have begun.
  chunk.in_use = true;
  absl::Status status = runtime_->CopyToDevice(to, chunk.memory, size_bytes, stream_);
  if (!status.ok()) return status;
  return runtime_->Record(chunk.event, stream_);
}

absl::Status StagingRing::ToDevice(void* to, const HostRows& from) {
  std::byte* target = static_cast<std::byte*>(to);
  size_t row = 0, column = 0;  // of the next byte, in bytes
  while (row < from.rows && from.row_bytes > 0) {
    const absl::StatusOr<Chunk*> chunk = NextChunk();
    if (!chunk.ok()) return chunk.status();
    size_t filled = 0;
    while (filled < chunk_bytes_ && row < from.rows) {
      const size_t run = std::min(chunk_bytes_ - filled, from.row_bytes - column);
      std::memcpy((*chunk)->memory + filled, from.data + row * from.pitch_bytes + column, run);
      filled += run;
      column += run;
      if (column == from.row_bytes) ++row, column = 0;
    }
    if (absl::Status status = SendChunk(**chunk, target, filled); !status.ok()) return status;
    target += filled;
  }
  return absl::OkStatus();
}

absl::Status StagingRing::ToHost(std::byte* to, const void* from, size_t size_bytes) {
  const std::byte* const source = static_cast<const std::byte*>(from);
  for (size_t done = 0; done < size_bytes;) {
    const absl::StatusOr<Chunk*> chunk = NextChunk();
    if (!chunk.ok()) return chunk.status();
    const size_t run = std::min(chunk_bytes_, size_bytes - done);
    (*chunk)->in_use = true;
    absl::Status status = runtime_->CopyToHost((*chunk)->memory, source + done, run, stream_);
    if (!status.ok()) return status;
    if (status = runtime_->Record((*chunk)->event, stream_); !status.ok()) return status;
    (*chunk)->deliver_to = to + done;
    (*chunk)->deliver_bytes = run;
    done += run;
  }
  return absl::OkStatus();
}

absl::Status StagingRing::Flush() {
  for (size_t i = 0; i < chunks_.size(); ++i) {
    Chunk& chunk = chunks_[(next_ + i) % chunks_.size()];
    if (chunk.deliver_to == nullptr) continue;
    if (absl::Status status = Release(chunk); !status.ok()) return status;
  }
  return absl::OkStatus();
}

void StagingRing::Abandon() {
  for (Chunk& chunk : chunks_) {
    chunk.in_use = false;
    chunk.deliver_to = nullptr;
  }
}

}  // namespace sinq::kernels
