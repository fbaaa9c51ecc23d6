// One measuring call on one stream: panels of tiles are balanced, and each candidate fits and
// scores them. Nothing but figures comes back.
#ifndef SINQ_KERNELS_CUDA_MEASURE_JOB_H_
#define SINQ_KERNELS_CUDA_MEASURE_JOB_H_

#include <vector>

#include "kernels/backend.h"  // Measurement
#include "kernels/cuda_memory_plan.h"
#include "kernels/cuda_transfer.h"

namespace sinq::kernels {

// What is measured and where the answer goes. Either columns [cols], or measured: one for each
// tensor of the plan.
struct CudaMeasureCall {
  const MatrixView& in;
  absl::Span<float> columns;
  absl::Span<Measurement> measured;
  absl::FunctionRef<bool()> cancelled;
};

// Used once, as CudaTensorJob.
class CudaMeasureJob {
 public:
  CudaMeasureJob(CudaRuntime& runtime, const CudaHostMemory& pinned, CudaSlot& slot,
                 const CudaMeasurePlan& plan, const CudaMeasureCall& call)
      : slot_(slot),
        plan_(plan),
        call_(call),
        transfer_(runtime, pinned, slot, call.in) {}

  // Errors as Backend::MeasureErrors. ResourceExhausted: a smaller plan may do.
  absl::Status Run();
  bool launch_failed() const { return transfer_.launch_failed(); }
  const CudaPhaseSeconds& seconds() const { return seconds_; }

 private:
  const CudaTensor& tensor() const { return plan_.tensors.front(); }  // whose tiles all share
  absl::Status RunSteps();
  absl::Status LayOut();
  absl::Status MeasurePanel(const TilePanel& panel);
  absl::Status ScorePanel(const DeviceWeights& weights, const TilePanel& panel, void* workspace);
  absl::Status SumScores();
  absl::Status ReadBack();

  CudaSlot& slot_;
  const CudaMeasurePlan& plan_;
  const CudaMeasureCall& call_;
  CudaTransfer transfer_;
  std::vector<DeviceArrays> arrays_;  // of each tensor
  std::byte* moving_ = nullptr;
  CudaPhaseSeconds seconds_{};
};

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_CUDA_MEASURE_JOB_H_
