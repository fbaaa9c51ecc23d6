#include "kernels/cuda_tensor_job.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/cuda_outcomes.h"
#include "kernels/kurtosis.h"
#include "kernels/non_finite.h"

namespace sinq::kernels {
absl::Status CudaTensorJob::Run() {
  absl::Status status = RunSteps();
  const absl::Status drained = slot_.Drain();
  return status.ok() ? drained : status;
}

absl::Status CudaTensorJob::RunSteps() {
  if (absl::Status status = LayOut(); !status.ok()) return status;
  if (absl::Status status = StopIfCancelled(); !status.ok()) return status;
  if (absl::Status status = slot_.clock().Start(); !status.ok()) return status;
  if (absl::Status status = ClearSummary(); !status.ok()) return status;
  if (absl::Status status = transfer_.CopyFactors(); !status.ok()) return status;
  if (absl::Status status = CopyResident(); !status.ok()) return status;
  if (absl::Status status = ApplyKurtosisGate(); !status.ok()) return status;
  if (absl::Status status = SearchColumnFactor(); !status.ok()) return status;
  if (absl::Status status = BalanceTiles(); !status.ok()) return status;
  if (absl::Status status = Store(); !status.ok()) return status;
  if (absl::Status status = Encode(); !status.ok()) return status;
  if (absl::Status status = ReadBack(); !status.ok()) return status;
  const absl::StatusOr<CudaPhaseSeconds> seconds = slot_.clock().Read();
  if (!seconds.ok()) return seconds.status();
  seconds_ = *seconds;
  return absl::OkStatus();
}

absl::Status CudaTensorJob::LayOut() {
  CudaArena& arena = slot_.arena();
  arena.Clear();
  absl::StatusOr<std::byte*> piece = arena.Take(plan_.arrays_bytes);
  if (!piece.ok()) return piece.status();
  arrays_memory_ = *piece;
  arrays_ = LayOutDeviceArrays(tensor_, arrays_memory_);
  for (size_t p = 1; p < call_.planes.size(); ++p) {
    if (piece = arena.Take(call_.planes[p].size()); !piece.ok()) return piece.status();
    planes_.plane[p] = *piece;
  }
  if (piece = arena.Take(plan_.moving_bytes); !piece.ok()) return piece.status();
  moving_ = *piece;
  return absl::OkStatus();
}

absl::Status CudaTensorJob::ClearSummary() {
  return runtime_.SetBytes(arrays_.summary, 0, sizeof(DeviceSummary), slot_.stream());
}

absl::Status CudaTensorJob::CopyResident() {
  if (!plan_.resident) return absl::OkStatus();
  MovingMemory memory(moving_, plan_.moving_bytes);
  const absl::StatusOr<DeviceWeights> weights = transfer_.Rows({0, tensor_.rows}, memory);
  if (!weights.ok()) return weights.status();
  whole_ = *weights;
  const absl::StatusOr<std::byte*> codes = memory.Take(CodesBytes(tensor_, plan_.encode_rows));
  if (!codes.ok()) return codes.status();
  codes_ = *codes;
  const absl::StatusOr<std::byte*> lines = memory.Take(LinesBytes({0, tensor_.rows}));
  if (!lines.ok()) return lines.status();
  lines_ = *lines;
  const absl::StatusOr<std::byte*> workspace = memory.Take(0);
  if (!workspace.ok()) return workspace.status();
  workspace_ = *workspace;
  return slot_.clock().Mark(CudaPhase::kCopyIn);
}

absl::Status CudaTensorJob::ApplyKurtosisGate() {
  if (!HasKurtosisGate(tensor_.params)) return absl::OkStatus();
  if (absl::Status status = TakeMoments(); !status.ok()) return status;
  DeviceSummary summary;
  absl::Status status =
      transfer_.CopyOut(&summary, arrays_.summary, sizeof summary);
  if (!status.ok()) return status;
  if (status = slot_.staging().Flush(); !status.ok()) return status;
  TensorStats& stats = *call_.stats;
  stats.kurtosis = KurtosisOfSums(summary.moments, tensor_.rows, tensor_.cols);
  if (!std::isfinite(stats.kurtosis)) return FirstNonFinite(call_.in, 0);
  if (stats.kurtosis <= kKurtosisGate) return absl::OkStatus();
  stats.kurtosis_gate_closed = true;
  QuantParams params = tensor_.params;
  params.method = Method::kRtn;
  tensor_ = PlanTensor(params, tensor_.rows, tensor_.cols, call_.in.dtype);
  arrays_ = LayOutDeviceArrays(tensor_, arrays_memory_);
  return ClearSummary();
}

absl::Status CudaTensorJob::TakeMoments() {
  for (int64_t first = 0; first < tensor_.rows; first += plan_.moment_rows) {
    if (absl::Status status = StopIfCancelled(); !status.ok()) return status;
    const int64_t last = std::min(first + plan_.moment_rows, tensor_.rows);
    DeviceWeights weights = whole_;
    std::byte* workspace = workspace_;
    if (!plan_.resident) {
      MovingMemory memory(moving_, plan_.moving_bytes);
      const absl::StatusOr<DeviceWeights> rows = transfer_.Rows({first, last}, memory);
      if (!rows.ok()) return rows.status();
      weights = *rows;
      const absl::StatusOr<std::byte*> rest = memory.Take(MomentsBytes(last - first));
      if (!rest.ok()) return rest.status();
      workspace = *rest;
      if (absl::Status status = slot_.clock().Mark(CudaPhase::kCopyIn); !status.ok()) return status;
    }
    const int error = LaunchMoments(tensor_, weights, arrays_, workspace, slot_.stream());
    if (absl::Status status = transfer_.Launched(error, "LaunchMoments"); !status.ok())
      return status;
    if (absl::Status status = slot_.clock().Mark(CudaPhase::kCompute); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CudaTensorJob::CopyInputs() {
  const ActivationView& given = *call_.in.activations;
  inputs_.are_moments = given.samples.empty();
  inputs_.rows = inputs_.are_moments ? tensor_.cols : given.tokens;
  const absl::StatusOr<const float*> values =
      transfer_.CopyFloats(inputs_.are_moments ? given.second_moments : given.samples);
  if (!values.ok()) return values.status();
  inputs_.values = *values;
  return slot_.clock().Mark(CudaPhase::kCopyIn);
}

absl::Status CudaTensorJob::SearchColumnFactor() {
  if (!tensor_.has_candidates) return absl::OkStatus();
  if (absl::Status status = CopyInputs(); !status.ok()) return status;
  const CudaTensor search = SearchTensorOf(tensor_);
  for (int64_t first = 0; first < search.tiles; first += plan_.search_tiles) {
    const TilePanel panel{first, std::min(plan_.search_tiles, search.tiles - first)};
    if (absl::Status status = NotePanel(search, panel); !status.ok()) return status;
  }
  int error = LaunchCandidates(tensor_, inputs_, arrays_, slot_.stream());
  if (absl::Status status = transfer_.Launched(error, "LaunchCandidates"); !status.ok())
    return status;
  for (int64_t first = 0; first < tensor_.rows; first += plan_.search_rows) {
    const RowRange rows{first, std::min(first + plan_.search_rows, tensor_.rows)};
    if (absl::Status status = SearchRows(rows); !status.ok()) return status;
  }
  error = LaunchChooseFactor(tensor_, arrays_, slot_.stream());
  if (absl::Status status = transfer_.Launched(error, "LaunchChooseFactor"); !status.ok())
    return status;
  return slot_.clock().Mark(CudaPhase::kCompute);
}

absl::Status CudaTensorJob::NotePanel(const CudaTensor& search, const TilePanel& panel) {
  if (absl::Status status = StopIfCancelled(); !status.ok()) return status;
  const absl::StatusOr<PanelPiece> piece = BringPanel(search, panel);
  if (!piece.ok()) return piece.status();
  const auto& [weights, workspace] = *piece;
  int error = LaunchBalance(search, weights, panel, arrays_, workspace, slot_.stream());
  if (absl::Status status = transfer_.Launched(error, "LaunchBalance"); !status.ok())
    return status;
  error = LaunchNoteTiles(search, weights, panel, arrays_, workspace, slot_.stream());
  if (absl::Status status = transfer_.Launched(error, "LaunchNoteTiles"); !status.ok())
    return status;
  return slot_.clock().Mark(CudaPhase::kCompute);
}

absl::Status CudaTensorJob::SearchRows(const RowRange& rows) {
  if (absl::Status status = StopIfCancelled(); !status.ok()) return status;
  DeviceWeights weights = whole_;
  if (!plan_.resident) {
    MovingMemory memory(moving_, plan_.moving_bytes);
    const absl::StatusOr<DeviceWeights> piece = transfer_.Rows(rows, memory);
    if (!piece.ok()) return piece.status();
    weights = *piece;
    if (absl::Status status = slot_.clock().Mark(CudaPhase::kCopyIn); !status.ok()) return status;
  }
  const int error = LaunchSearch(tensor_, weights, inputs_, arrays_, slot_.stream());
  if (absl::Status status = transfer_.Launched(error, "LaunchSearch"); !status.ok()) return status;
  return slot_.clock().Mark(CudaPhase::kCompute);
}

absl::Status CudaTensorJob::BalanceTiles() {
  for (int64_t first = 0; first < tensor_.tiles; first += plan_.panel_tiles) {
    if (absl::Status status = StopIfCancelled(); !status.ok()) return status;
    const TilePanel panel{first, std::min(plan_.panel_tiles, tensor_.tiles - first)};
    if (absl::Status status = BalancePanel(panel); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<CudaTensorJob::PanelPiece> CudaTensorJob::BringPanel(const CudaTensor& tensor,
                                                                    const TilePanel& panel) {
  if (plan_.resident) return PanelPiece{whole_, workspace_};
  MovingMemory memory(moving_, plan_.moving_bytes);
  const absl::StatusOr<DeviceWeights> around =
      transfer_.Rectangle(ExtentOf(tensor, panel), memory);
  if (!around.ok()) return around.status();
  const absl::StatusOr<std::byte*> rest = memory.Take(PanelBytes(tensor, panel.tiles));
  if (!rest.ok()) return rest.status();
  if (absl::Status status = slot_.clock().Mark(CudaPhase::kCopyIn); !status.ok()) return status;
  return PanelPiece{*around, *rest};
}

absl::Status CudaTensorJob::BalancePanel(const TilePanel& panel) {
  const absl::StatusOr<PanelPiece> piece = BringPanel(tensor_, panel);
  if (!piece.ok()) return piece.status();
  const auto& [weights, workspace] = *piece;
  int error = LaunchBalance(tensor_, weights, panel, arrays_, workspace, slot_.stream());
  if (absl::Status status = transfer_.Launched(error, "LaunchBalance"); !status.ok())
    return status;
  if (tensor_.has_candidates) {
    error = LaunchScaleColumns(tensor_, panel, arrays_, workspace, slot_.stream());
    if (absl::Status status = transfer_.Launched(error, "LaunchScaleColumns"); !status.ok())
      return status;
  }
  error = LaunchFit(tensor_, weights, panel, arrays_, workspace, slot_.stream());
  if (absl::Status status = transfer_.Launched(error, "LaunchFit"); !status.ok()) return status;
  return slot_.clock().Mark(CudaPhase::kCompute);
}

absl::Status CudaTensorJob::Store() {
  return transfer_.Launched(LaunchStore(tensor_, arrays_, planes_, slot_.stream()), "LaunchStore");
}

absl::Status CudaTensorJob::Encode() {
  const int64_t packed_rows = PackedRowsOf(tensor_).rows;
  for (int64_t first = 0; first < packed_rows; first += plan_.encode_rows) {
    if (absl::Status status = StopIfCancelled(); !status.ok()) return status;
    const int64_t last = std::min(first + plan_.encode_rows, packed_rows);
    if (absl::Status status = EncodeRows(first, last); !status.ok()) return status;
  }
  return transfer_.Launched(LaunchSumErrors(tensor_, arrays_, slot_.stream()), "LaunchSumErrors");
}

absl::Status CudaTensorJob::EncodeRows(int64_t first, int64_t last) {
  EncodeRange range{first, last, {}, codes_};
  std::fill_n(range.strands, kMaxStrands, whole_);
  const RowRange rows{first / tensor_.groups_per_row, last / tensor_.groups_per_row};
  std::byte* lines = lines_;
  if (!plan_.resident) {
    MovingMemory memory(moving_, plan_.moving_bytes);
    if (absl::Status status = CopyStrands(range, memory); !status.ok()) return status;
    const absl::StatusOr<std::byte*> codes = memory.Take(CodesBytes(tensor_, last - first));
    if (!codes.ok()) return codes.status();
    range.codes = *codes;
    const absl::StatusOr<std::byte*> apart = memory.Take(LinesBytes(rows));
    if (!apart.ok()) return apart.status();
    lines = *apart;
    if (absl::Status status = slot_.clock().Mark(CudaPhase::kCopyIn); !status.ok()) return status;
  }
  const int error = LaunchEncode(tensor_, range, arrays_, slot_.stream());
  if (absl::Status status = transfer_.Launched(error, "LaunchEncode"); !status.ok()) return status;
  absl::Status status =
      IsPackedApart(tensor_) ? PackApart(rows, range.codes, lines) : CopyOutPackedRows(range);
  if (!status.ok()) return status;
  return slot_.clock().Mark(CudaPhase::kCopyOut);
}

absl::Status CudaTensorJob::CopyOutPackedRows(const EncodeRange& range) {
  if (absl::Status status = slot_.clock().Mark(CudaPhase::kCompute); !status.ok()) return status;
  const size_t row_bytes = PackedRowsOf(tensor_).row_bytes;
  return transfer_.CopyOut(
      call_.planes[0].data() + static_cast<size_t>(range.first) * row_bytes, range.codes,
      static_cast<size_t>(range.last - range.first) * row_bytes);
}

size_t CudaTensorJob::LinesBytes(const RowRange& rows) const {
  if (!IsPackedApart(tensor_)) return 0;
  const PackedPiece piece = PieceOf(tensor_, rows);
  return static_cast<size_t>(piece.lines) * piece.line_bytes;
}

absl::Status CudaTensorJob::PackApart(const RowRange& rows, const void* codes, std::byte* lines) {
  const int error =
      LaunchPack(tensor_, rows, static_cast<const uint8_t*>(codes), arrays_, lines, slot_.stream());
  if (absl::Status status = transfer_.Launched(error, "LaunchPack"); !status.ok()) return status;
  if (absl::Status status = slot_.clock().Mark(CudaPhase::kCompute); !status.ok()) return status;
  const PackedPiece piece = PieceOf(tensor_, rows);
  std::byte* const plane = call_.planes[0].data() + piece.plane_offset_bytes;
  if (piece.line_bytes == piece.plane_pitch_bytes)
    return transfer_.CopyOut(plane, lines, LinesBytes(rows));
  for (size_t n = 0; n < static_cast<size_t>(piece.lines); ++n) {
    absl::Status status = transfer_.CopyOut(plane + n * piece.plane_pitch_bytes,
                                            lines + n * piece.line_bytes, piece.line_bytes);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CudaTensorJob::CopyStrands(EncodeRange& range, MovingMemory& memory) {
  const int strands = PackedRowsOf(tensor_).strands;
  for (int s = 0; s < strands; ++s) {
    const RowRange rows = RowsOfStrand(tensor_, range.first, range.last, s);
    const absl::StatusOr<DeviceWeights> weights = transfer_.Rows(rows, memory);
    if (!weights.ok()) return weights.status();
    range.strands[s] = *weights;
  }
  return absl::OkStatus();
}

absl::Status CudaTensorJob::ReadBack() {
  if (absl::Status status = slot_.clock().Mark(CudaPhase::kCompute); !status.ok()) return status;
  for (size_t p = 1; p < call_.planes.size(); ++p) {
    const absl::Span<std::byte> plane = call_.planes[p];
    absl::Status status = transfer_.CopyOut(plane.data(), planes_.plane[p], plane.size());
    if (!status.ok()) return status;
  }
  return ReadFigures();
}

absl::Status CudaTensorJob::ReadFigures() {
  std::vector<DeviceTileOutcome> outcomes(static_cast<size_t>(tensor_.tiles));
  DeviceSummary summary;
  absl::Status status = transfer_.CopyOut(outcomes.data(), arrays_.outcomes,
                                outcomes.size() * sizeof outcomes[0]);
  if (!status.ok()) return status;
  status = transfer_.CopyOut(&summary, arrays_.summary, sizeof summary);
  if (!status.ok()) return status;
  if (status = slot_.clock().Mark(CudaPhase::kCopyOut); !status.ok()) return status;
  if (status = slot_.staging().Flush(); !status.ok()) return status;
  if (status = slot_.Drain(); !status.ok()) return status;
  if (status = CheckFinite(outcomes, call_.in); !status.ok()) return status;
  if (status = CheckFaults(summary); !status.ok()) return status;
  AddOutcomes(outcomes, *call_.stats);
  SetErrorFigures(summary, *call_.stats);
  return absl::OkStatus();
}

absl::Status CudaTensorJob::CheckFaults(const DeviceSummary& summary) const {
  if (summary.faults == 0) return absl::OkStatus();
  const char* what = "zero";
  float value = summary.largest_zero;
  if (summary.faults & kScaleFault) {
    what = tensor_.aux == AuxStorage::kU8 ? "scale or zero" : "scale";
    value = summary.largest_scale;
  }
  if (summary.faults & kColumnScaleFault) {
    what = "column scale";
    value = summary.largest_column;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("a ", what, " of ", value,
                   " does not fit F16 (largest 65504); exclude this tensor or rescale the model"));
}

absl::Status CudaTensorJob::StopIfCancelled() const {
  return call_.cancelled() ? absl::CancelledError("stopped between panels") : absl::OkStatus();
}

}  // namespace sinq::kernels
