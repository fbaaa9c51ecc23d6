// One tensor on one stream, from the caller's memory through the steps of cuda_steps.h and back.
#ifndef SINQ_KERNELS_CUDA_TENSOR_JOB_H_
#define SINQ_KERNELS_CUDA_TENSOR_JOB_H_

#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda_memory_plan.h"
#include "kernels/cuda_runtime.h"
#include "kernels/cuda_slot.h"
#include "kernels/cuda_staging.h"
#include "kernels/cuda_steps.h"

namespace sinq::kernels {

// Hands out the moving part of the arena, anew for every piece of the tensor: what was there before
// is read only by work that is earlier in the same stream.
class MovingMemory {
 public:
  MovingMemory() = default;
  MovingMemory(std::byte* base, size_t size_bytes) : at_(base), left_bytes_(size_bytes) {}
  // Internal error when the rest does not suffice: the memory plan promised that it does.
  absl::StatusOr<std::byte*> Take(size_t size_bytes);

 private:
  std::byte* at_ = nullptr;
  size_t left_bytes_ = 0;
};

// What a tensor is made of and where it goes; as in Backend::Quantize.
struct CudaTensorCall {
  const MatrixView& in;
  absl::Span<const absl::Span<std::byte>> planes;
  absl::FunctionRef<bool()> cancelled;
  TensorStats* stats;
};

// Used once. Nothing of the caller's memory is in use any more when Run returns.
class CudaTensorJob {
 public:
  CudaTensorJob(CudaRuntime& runtime, const CudaHostMemory& pinned, CudaSlot& slot,
                const CudaMemoryPlan& plan, const CudaTensorCall& call)
      : runtime_(runtime),
        pinned_(pinned),
        slot_(slot),
        plan_(plan),
        call_(call),
        tensor_(plan.tensor) {}

  // Errors as Backend::Quantize. ResourceExhausted: a smaller plan may do.
  absl::Status Run();
  // After Run: whether a launch was what failed, and where the time went (zero after an error).
  bool launch_failed() const { return launch_failed_; }
  const CudaPhaseSeconds& seconds() const { return seconds_; }

 private:
  absl::Status RunSteps();
  absl::Status LayOut();
  absl::Status ClearSummary();
  absl::Status CopyFactors();
  absl::StatusOr<const float*> CopyFactor(absl::Span<const float> factors);
  absl::Status CopyResident();
  absl::Status ApplyKurtosisGate();
  absl::Status TakeMoments();
  absl::Status BalanceTiles();
  absl::Status BalancePanel(const TilePanel& panel);
  absl::Status Store();
  absl::Status Encode();
  absl::Status EncodeRows(int64_t first, int64_t last);
  absl::Status CopyStrands(EncodeRange& range, MovingMemory& memory);
  absl::Status CopyOutPackedRows(const EncodeRange& range);
  size_t LinesBytes(const RowRange& rows) const;
  absl::Status PackApart(const RowRange& rows, const void* codes, std::byte* lines);
  absl::Status ReadBack();
  absl::Status ReadFigures();
  absl::Status CheckFaults(const DeviceSummary& summary) const;

  // A piece of the weights on the device, multiplied out if it is folded.
  absl::StatusOr<DeviceWeights> Rectangle(const PanelExtent& extent, MovingMemory& memory);
  absl::StatusOr<DeviceWeights> Rows(const RowRange& rows, MovingMemory& memory);
  absl::Status CopyIn(void* to, const HostRows& from);
  absl::Status CopyOut(std::byte* to, const void* from, size_t size_bytes);
  absl::Status Launched(int cuda_error, const char* step);
  absl::Status StopIfCancelled() const;

  CudaRuntime& runtime_;
  const CudaHostMemory& pinned_;
  CudaSlot& slot_;
  const CudaMemoryPlan& plan_;
  const CudaTensorCall& call_;
  CudaTensor tensor_;  // the plan's, after the kurtosis gate
  DeviceArrays arrays_;
  DevicePlanes planes_;
  std::byte* arrays_memory_ = nullptr;
  std::byte* moving_ = nullptr;
  std::byte* workspace_ = nullptr;  // resident only
  std::byte* codes_ = nullptr;      // resident only
  std::byte* lines_ = nullptr;      // resident only
  DeviceWeights whole_;             // resident: all of it; else only the factors
  bool launch_failed_ = false;
  CudaPhaseSeconds seconds_{};
};

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_CUDA_TENSOR_JOB_H_
