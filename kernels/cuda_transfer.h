// Copies between the caller of a backend and one slot of a device, and pieces of a tensor's weights
// there.
#ifndef SINQ_KERNELS_CUDA_TRANSFER_H_
#define SINQ_KERNELS_CUDA_TRANSFER_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cuda_arena.h"  // MovingMemory
#include "kernels/cuda_runtime.h"
#include "kernels/cuda_slot.h"
#include "kernels/cuda_staging.h"
#include "kernels/cuda_steps.h"
#include "kernels/matrix_view.h"

namespace sinq::kernels {

// One tensor's. Used by one thread, with the slot's device in use. Everything happens in the
// stream's order: memory of the caller is in use until the slot is drained.
class CudaTransfer {
 public:
  CudaTransfer(CudaRuntime& runtime, const CudaHostMemory& pinned, CudaSlot& slot,
               const MatrixView& in)
      : runtime_(runtime), pinned_(pinned), slot_(slot), in_(in) {}

  // Block scales and folded factors into the arena; before the first Rectangle.
  absl::Status CopyFactors();
  // Values into the arena; null if there are none.
  absl::StatusOr<const float*> CopyFloats(absl::Span<const float> values);
  // A piece of the weights, multiplied out if it is folded. Takes WeightsBytes of `memory`.
  absl::StatusOr<DeviceWeights> Rectangle(const PanelExtent& extent, MovingMemory& memory);
  absl::StatusOr<DeviceWeights> Rows(const RowRange& rows, MovingMemory& memory) {
    return Rectangle({rows, 0, in_.cols}, memory);
  }
  // `to` holds the bytes once the staging is flushed and the stream drained.
  absl::Status CopyOut(void* to, const void* from, size_t size_bytes);

  // What a launcher of cuda_steps.h returned.
  absl::Status Launched(int cuda_error, const char* step);
  bool launch_failed() const { return launch_failed_; }

 private:
  absl::Status CopyIn(void* to, const HostRows& from);

  CudaRuntime& runtime_;
  const CudaHostMemory& pinned_;
  CudaSlot& slot_;
  const MatrixView& in_;
  DeviceWeights factors_;  // what all pieces have in common
  bool launch_failed_ = false;
};

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_CUDA_TRANSFER_H_
