#include "kernels/cuda_arena.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace sinq::kernels {

absl::StatusOr<std::unique_ptr<CudaArena>> CudaArena::Make(std::shared_ptr<CudaRuntime> runtime,
                                                           size_t size_bytes) {
  const absl::StatusOr<void*> base = runtime->AllocateDevice(size_bytes);
  if (!base.ok()) return base.status();
  return std::unique_ptr<CudaArena>(
      new CudaArena(std::move(runtime), static_cast<std::byte*>(*base), size_bytes));
}

CudaArena::~CudaArena() { runtime_->FreeDevice(base_); }

absl::StatusOr<std::byte*> CudaArena::Take(size_t size_bytes) {
  if (size_bytes > size_bytes_ - used_bytes_ ||
      ArenaBytes(size_bytes) > size_bytes_ - used_bytes_) {
    return absl::InternalError(absl::StrCat("the device arena has ", size_bytes_ - used_bytes_,
                                            " bytes left, not ", size_bytes));
  }
  std::byte* const piece = base_ + used_bytes_;
  used_bytes_ += ArenaBytes(size_bytes);
  peak_bytes_ = std::max(peak_bytes_, used_bytes_);
  return piece;
}

absl::StatusOr<std::byte*> MovingMemory::Take(size_t size_bytes) {
  if (size_bytes > left_bytes_) {
    return absl::InternalError(absl::StrCat("a piece of the tensor takes ", size_bytes,
                                            " bytes, and its memory plan left ", left_bytes_));
  }
  std::byte* const piece = at_;
  const size_t taken = std::min(ArenaBytes(size_bytes), left_bytes_);
  at_ += taken;
  left_bytes_ -= taken;
  return piece;
}

}  // namespace sinq::kernels
