#include "kernels/cuda_slot.h"

#include <utility>

namespace sinq::kernels {

absl::StatusOr<std::unique_ptr<CudaSlot>> CudaSlot::Make(std::shared_ptr<CudaRuntime> runtime,
                                                         size_t arena_bytes) {
  const absl::StatusOr<CudaStream> stream = runtime->CreateStream();
  if (!stream.ok()) return stream.status();
  std::unique_ptr<CudaSlot> slot(new CudaSlot(runtime, *stream));
  absl::StatusOr<std::unique_ptr<CudaArena>> arena = CudaArena::Make(runtime, arena_bytes);
  if (!arena.ok()) return arena.status();
  slot->arena_ = std::move(*arena);
  absl::StatusOr<std::unique_ptr<StagingRing>> staging =
      StagingRing::Make(runtime, *stream, kStagingChunkBytes);
  if (!staging.ok()) return staging.status();
  slot->staging_ = std::move(*staging);
  absl::StatusOr<std::unique_ptr<CudaPhaseClock>> clock = CudaPhaseClock::Make(runtime, *stream);
  if (!clock.ok()) return clock.status();
  slot->clock_ = std::move(*clock);
  return slot;
}

CudaSlot::~CudaSlot() {
  clock_.reset();
  staging_.reset();
  arena_.reset();
  runtime_->DestroyStream(stream_);
}

absl::Status CudaSlot::Drain() {
  const absl::Status status = runtime_->Synchronize(stream_);
  staging_->Abandon();
  return status;
}

}  // namespace sinq::kernels
