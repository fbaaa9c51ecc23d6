#include "kernels/cuda_measure_job.h"

#include <algorithm>

#include "kernels/cuda_outcomes.h"

namespace sinq::kernels {

absl::Status CudaMeasureJob::Run() {
  absl::Status status = RunSteps();
  const absl::Status drained = slot_.Drain();
  return status.ok() ? drained : status;
}

absl::Status CudaMeasureJob::RunSteps() {
  if (absl::Status status = LayOut(); !status.ok()) return status;
  if (absl::Status status = slot_.clock().Start(); !status.ok()) return status;
  if (absl::Status status = transfer_.CopyFactors(); !status.ok()) return status;
  for (int64_t first = 0; first < tensor().tiles; first += plan_.panel_tiles) {
    if (call_.cancelled()) return absl::CancelledError("stopped between panels");
    const TilePanel panel{first, std::min(plan_.panel_tiles, tensor().tiles - first)};
    if (absl::Status status = MeasurePanel(panel); !status.ok()) return status;
  }
  if (absl::Status status = SumScores(); !status.ok()) return status;
  if (absl::Status status = slot_.clock().Mark(CudaPhase::kCompute); !status.ok()) return status;
  if (absl::Status status = ReadBack(); !status.ok()) return status;
  const absl::StatusOr<CudaPhaseSeconds> seconds = slot_.clock().Read();
  if (!seconds.ok()) return seconds.status();
  seconds_ = *seconds;
  return absl::OkStatus();
}

absl::Status CudaMeasureJob::LayOut() {
  CudaArena& arena = slot_.arena();
  arena.Clear();
  for (const CudaTensor& tensor : plan_.tensors) {
    const absl::StatusOr<std::byte*> piece = arena.Take(DeviceArraysBytes(tensor));
    if (!piece.ok()) return piece.status();
    arrays_.push_back(LayOutDeviceArrays(tensor, *piece));
  }
  const absl::StatusOr<std::byte*> moving = arena.Take(plan_.moving_bytes);
  if (!moving.ok()) return moving.status();
  moving_ = *moving;
  return absl::OkStatus();
}

absl::Status CudaMeasureJob::MeasurePanel(const TilePanel& panel) {
  MovingMemory memory(moving_, plan_.moving_bytes);
  const absl::StatusOr<DeviceWeights> weights =
      transfer_.Rectangle(ExtentOf(tensor(), panel), memory);
  if (!weights.ok()) return weights.status();
  const absl::StatusOr<std::byte*> workspace = memory.Take(PanelBytes(tensor(), panel.tiles));
  if (!workspace.ok()) return workspace.status();
  if (absl::Status status = slot_.clock().Mark(CudaPhase::kCopyIn); !status.ok()) return status;
  const int error =
      LaunchBalance(tensor(), *weights, panel, arrays_.front(), *workspace, slot_.stream());
  if (absl::Status status = transfer_.Launched(error, "LaunchBalance"); !status.ok())
    return status;
  if (absl::Status status = ScorePanel(*weights, panel, *workspace); !status.ok()) return status;
  return slot_.clock().Mark(CudaPhase::kCompute);
}

absl::Status CudaMeasureJob::ScorePanel(const DeviceWeights& weights, const TilePanel& panel,
                                        void* workspace) {
  for (size_t c = 0; c < call_.measured.size(); ++c) {
    const int error =
        LaunchScore(plan_.tensors[c], weights, panel, arrays_[c], workspace, slot_.stream());
    if (absl::Status status = transfer_.Launched(error, "LaunchScore"); !status.ok())
      return status;
  }
  return absl::OkStatus();
}

absl::Status CudaMeasureJob::SumScores() {
  for (size_t c = 0; c < call_.measured.size(); ++c) {
    const int error = LaunchSumScores(plan_.tensors[c], arrays_[c], slot_.stream());
    if (absl::Status status = transfer_.Launched(error, "LaunchSumScores"); !status.ok())
      return status;
  }
  return absl::OkStatus();
}

absl::Status CudaMeasureJob::ReadBack() {
  std::vector<DeviceTileOutcome> outcomes(static_cast<size_t>(tensor().tiles));
  absl::Status status = transfer_.CopyOut(outcomes.data(), arrays_.front().outcomes,
                                          outcomes.size() * sizeof outcomes[0]);
  std::vector<DeviceSummary> summaries(call_.measured.size());
  for (size_t c = 0; c < summaries.size() && status.ok(); ++c)
    status = transfer_.CopyOut(&summaries[c], arrays_[c].summary, sizeof summaries[c]);
  if (status.ok()) {
    status = transfer_.CopyOut(call_.columns.data(), arrays_.front().column,
                               call_.columns.size() * sizeof(float));
  }
  if (status.ok()) status = slot_.clock().Mark(CudaPhase::kCopyOut);
  if (status.ok()) status = slot_.staging().Flush();
  if (status.ok()) status = slot_.Drain();
  if (status.ok()) status = CheckFinite(outcomes, call_.in);
  if (!status.ok()) return status;
  for (size_t c = 0; c < summaries.size(); ++c)
    call_.measured[c] = {summaries[c].error, summaries[c].power};
  return absl::OkStatus();
}

}  // namespace sinq::kernels
