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
#include "kernels/cuda_transfer.h"

namespace sinq::kernels {

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
        slot_(slot),
        plan_(plan),
        call_(call),
        transfer_(runtime, pinned, slot, call.in),
        tensor_(plan.tensor) {}

  // Errors as Backend::Quantize. ResourceExhausted: a smaller plan may do.
  absl::Status Run();
  // After Run: whether a launch was what failed, and where the time went (zero after an error).
  bool launch_failed() const { return transfer_.launch_failed(); }
  const CudaPhaseSeconds& seconds() const { return seconds_; }

 private:
  absl::Status RunSteps();
  absl::Status LayOut();
  absl::Status ClearSummary();
  absl::Status CopyResident();
  absl::Status ApplyKurtosisGate();
  absl::Status TakeMoments();
  absl::Status SearchColumnFactor();
  absl::Status CopyInputs();
  absl::Status NotePanel(const CudaTensor& search, const TilePanel& panel);
  absl::Status SearchRows(const RowRange& rows);
  absl::Status BalanceTiles();
  absl::Status BalancePanel(const TilePanel& panel);
  // What a panel of `tensor` works on.
  struct PanelPiece {
    DeviceWeights weights;
    std::byte* workspace = nullptr;
  };
  absl::StatusOr<PanelPiece> BringPanel(const CudaTensor& tensor, const TilePanel& panel);
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

  absl::Status StopIfCancelled() const;

  CudaRuntime& runtime_;
  CudaSlot& slot_;
  const CudaMemoryPlan& plan_;
  const CudaTensorCall& call_;
  CudaTransfer transfer_;
  CudaTensor tensor_;  // the plan's, after the kurtosis gate
  DeviceArrays arrays_;
  DeviceInputs inputs_;  // methods that need activations only
  DevicePlanes planes_;
  std::byte* arrays_memory_ = nullptr;
  std::byte* moving_ = nullptr;
  std::byte* workspace_ = nullptr;  // resident only
  std::byte* codes_ = nullptr;      // resident only
  std::byte* lines_ = nullptr;      // resident only
  DeviceWeights whole_;             // resident only
  CudaPhaseSeconds seconds_{};
};

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_CUDA_TENSOR_JOB_H_
