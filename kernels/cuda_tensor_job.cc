#include "kernels/cuda_tensor_job.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/kurtosis.h"
#include "kernels/non_finite.h"

namespace sinq::kernels {
namespace {

// The rule of stats that all backends share: README.md section 7 and TensorStats.
void AddOutcomes(const std::vector<DeviceTileOutcome>& outcomes, TensorStats& stats) {
  int64_t rounds = 0;
  for (const DeviceTileOutcome& outcome : outcomes) {
    stats.imbalance_before = std::max<double>(stats.imbalance_before, outcome.imbalance_before);
    stats.imbalance_after = std::max<double>(stats.imbalance_after, outcome.imbalance_after);
    ++stats.tiles_by_rounds[static_cast<size_t>(outcome.rounds)];
    rounds += outcome.rounds;
  }
  stats.mean_rounds = static_cast<double>(rounds) / static_cast<double>(outcomes.size());
}

int64_t FirstBadRow(const std::vector<DeviceTileOutcome>& outcomes) {
  int64_t first = -1;
  for (const DeviceTileOutcome& outcome : outcomes) {
    if (outcome.bad_row >= 0 && (first < 0 || outcome.bad_row < first)) first = outcome.bad_row;
  }
  return first;
}

}  // namespace

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
  if (absl::Status status = CopyFactors(); !status.ok()) return status;
  if (absl::Status status = CopyResident(); !status.ok()) return status;
  if (absl::Status status = ApplyKurtosisGate(); !status.ok()) return status;
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

absl::StatusOr<const float*> CudaTensorJob::CopyFactor(absl::Span<const float> factors) {
  if (factors.empty()) return nullptr;
  const size_t size_bytes = factors.size() * sizeof(float);
  const absl::StatusOr<std::byte*> piece = slot_.arena().Take(size_bytes);
  if (!piece.ok()) return piece.status();
  const HostRows rows{reinterpret_cast<const std::byte*>(factors.data()), size_bytes, 1,
                      size_bytes};
  if (absl::Status status = CopyIn(*piece, rows); !status.ok()) return status;
  return reinterpret_cast<const float*>(*piece);
}

absl::Status CudaTensorJob::CopyFactors() {
  const MatrixView& in = call_.in;
  const absl::StatusOr<const float*> blocks = CopyFactor(in.block_scales);
  if (!blocks.ok()) return blocks.status();
  const absl::StatusOr<const float*> rows = CopyFactor(in.row_factor);
  if (!rows.ok()) return rows.status();
  const absl::StatusOr<const float*> columns = CopyFactor(in.column_factor);
  if (!columns.ok()) return columns.status();
  whole_.block_scales = *blocks;
  whole_.row_factor = *rows;
  whole_.column_factor = *columns;
  return absl::OkStatus();
}

absl::Status CudaTensorJob::CopyResident() {
  if (!plan_.resident) return absl::OkStatus();
  MovingMemory memory(moving_, plan_.moving_bytes);
  const absl::StatusOr<DeviceWeights> weights = Rows({0, tensor_.rows}, memory);
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

absl::StatusOr<DeviceWeights> CudaTensorJob::Rectangle(const PanelExtent& extent,
                                                       MovingMemory& memory) {
  const MatrixView& in = call_.in;
  const int64_t rows = extent.rows.last - extent.rows.first;
  DeviceWeights weights = whole_;
  weights.first_row = extent.rows.first;
  weights.rows = rows;
  weights.first_col = extent.first_col;
  weights.cols = weights.stride = extent.cols;
  weights.dtype = in.dtype;
  weights.block_scales_per_row = (in.cols + kFp8BlockSize - 1) / kFp8BlockSize;
  const absl::StatusOr<std::byte*> raw = memory.Take(RawBytes(in, rows, extent.cols));
  if (!raw.ok()) return raw.status();
  weights.data = *raw;
  const size_t element_bytes = BytesPerElement(in.dtype);
  const HostRows from{
      in.data + static_cast<size_t>(extent.rows.first * in.cols + extent.first_col) * element_bytes,
      static_cast<size_t>(extent.cols) * element_bytes, static_cast<size_t>(rows),
      static_cast<size_t>(in.cols) * element_bytes};
  if (absl::Status status = CopyIn(*raw, from); !status.ok()) return status;
  if (!in.is_folded() || rows == 0) return weights;
  const absl::StatusOr<std::byte*> folded = memory.Take(FoldedBytes(weights));
  if (!folded.ok()) return folded.status();
  absl::Status status = Launched(LaunchFold(weights, *folded, slot_.stream()), "LaunchFold");
  if (!status.ok()) return status;
  return FoldedView(weights, *folded);
}

absl::StatusOr<DeviceWeights> CudaTensorJob::Rows(const RowRange& rows, MovingMemory& memory) {
  return Rectangle({rows, 0, tensor_.cols}, memory);
}

absl::Status CudaTensorJob::ApplyKurtosisGate() {
  if (!HasKurtosisGate(tensor_.params)) return absl::OkStatus();
  if (absl::Status status = TakeMoments(); !status.ok()) return status;
  DeviceSummary summary;
  absl::Status status =
      CopyOut(reinterpret_cast<std::byte*>(&summary), arrays_.summary, sizeof summary);
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
      const absl::StatusOr<DeviceWeights> rows = Rows({first, last}, memory);
      if (!rows.ok()) return rows.status();
      weights = *rows;
      const absl::StatusOr<std::byte*> rest = memory.Take(MomentsBytes(last - first));
      if (!rest.ok()) return rest.status();
      workspace = *rest;
      if (absl::Status status = slot_.clock().Mark(CudaPhase::kCopyIn); !status.ok()) return status;
    }
    const int error = LaunchMoments(tensor_, weights, arrays_, workspace, slot_.stream());
    if (absl::Status status = Launched(error, "LaunchMoments"); !status.ok()) return status;
    if (absl::Status status = slot_.clock().Mark(CudaPhase::kCompute); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CudaTensorJob::BalanceTiles() {
  for (int64_t first = 0; first < tensor_.tiles; first += plan_.panel_tiles) {
    if (absl::Status status = StopIfCancelled(); !status.ok()) return status;
    const TilePanel panel{first, std::min(plan_.panel_tiles, tensor_.tiles - first)};
    if (absl::Status status = BalancePanel(panel); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CudaTensorJob::BalancePanel(const TilePanel& panel) {
  DeviceWeights weights = whole_;
  std::byte* workspace = workspace_;
  if (!plan_.resident) {
    MovingMemory memory(moving_, plan_.moving_bytes);
    const absl::StatusOr<DeviceWeights> around = Rectangle(ExtentOf(tensor_, panel), memory);
    if (!around.ok()) return around.status();
    weights = *around;
    const absl::StatusOr<std::byte*> rest = memory.Take(PanelBytes(tensor_, panel.tiles));
    if (!rest.ok()) return rest.status();
    workspace = *rest;
    if (absl::Status status = slot_.clock().Mark(CudaPhase::kCopyIn); !status.ok()) return status;
  }
  int error = LaunchBalance(tensor_, weights, panel, arrays_, workspace, slot_.stream());
  if (absl::Status status = Launched(error, "LaunchBalance"); !status.ok()) return status;
  error = LaunchFit(tensor_, weights, panel, arrays_, workspace, slot_.stream());
  if (absl::Status status = Launched(error, "LaunchFit"); !status.ok()) return status;
  return slot_.clock().Mark(CudaPhase::kCompute);
}

absl::Status CudaTensorJob::Store() {
  return Launched(LaunchStore(tensor_, arrays_, planes_, slot_.stream()), "LaunchStore");
}

absl::Status CudaTensorJob::Encode() {
  const int64_t packed_rows = PackedRowsOf(tensor_).rows;
  for (int64_t first = 0; first < packed_rows; first += plan_.encode_rows) {
    if (absl::Status status = StopIfCancelled(); !status.ok()) return status;
    const int64_t last = std::min(first + plan_.encode_rows, packed_rows);
    if (absl::Status status = EncodeRows(first, last); !status.ok()) return status;
  }
  return Launched(LaunchSumErrors(tensor_, arrays_, slot_.stream()), "LaunchSumErrors");
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
  if (absl::Status status = Launched(error, "LaunchEncode"); !status.ok()) return status;
  absl::Status status =
      IsPackedApart(tensor_) ? PackApart(rows, range.codes, lines) : CopyOutPackedRows(range);
  if (!status.ok()) return status;
  return slot_.clock().Mark(CudaPhase::kCopyOut);
}

absl::Status CudaTensorJob::CopyOutPackedRows(const EncodeRange& range) {
  if (absl::Status status = slot_.clock().Mark(CudaPhase::kCompute); !status.ok()) return status;
  const size_t row_bytes = PackedRowsOf(tensor_).row_bytes;
  return CopyOut(call_.planes[0].data() + static_cast<size_t>(range.first) * row_bytes, range.codes,
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
  if (absl::Status status = Launched(error, "LaunchPack"); !status.ok()) return status;
  if (absl::Status status = slot_.clock().Mark(CudaPhase::kCompute); !status.ok()) return status;
  const PackedPiece piece = PieceOf(tensor_, rows);
  std::byte* const plane = call_.planes[0].data() + piece.plane_offset_bytes;
  if (piece.line_bytes == piece.plane_pitch_bytes) return CopyOut(plane, lines, LinesBytes(rows));
  for (size_t n = 0; n < static_cast<size_t>(piece.lines); ++n) {
    absl::Status status = CopyOut(plane + n * piece.plane_pitch_bytes, lines + n * piece.line_bytes,
                                  piece.line_bytes);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CudaTensorJob::CopyStrands(EncodeRange& range, MovingMemory& memory) {
  const int strands = PackedRowsOf(tensor_).strands;
  for (int s = 0; s < strands; ++s) {
    const RowRange rows = RowsOfStrand(tensor_, range.first, range.last, s);
    const absl::StatusOr<DeviceWeights> weights = Rows(rows, memory);
    if (!weights.ok()) return weights.status();
    range.strands[s] = *weights;
  }
  return absl::OkStatus();
}

absl::Status CudaTensorJob::ReadBack() {
  if (absl::Status status = slot_.clock().Mark(CudaPhase::kCompute); !status.ok()) return status;
  for (size_t p = 1; p < call_.planes.size(); ++p) {
    const absl::Span<std::byte> plane = call_.planes[p];
    if (absl::Status status = CopyOut(plane.data(), planes_.plane[p], plane.size()); !status.ok())
      return status;
  }
  return ReadFigures();
}

absl::Status CudaTensorJob::ReadFigures() {
  std::vector<DeviceTileOutcome> outcomes(static_cast<size_t>(tensor_.tiles));
  DeviceSummary summary;
  absl::Status status = CopyOut(reinterpret_cast<std::byte*>(outcomes.data()), arrays_.outcomes,
                                outcomes.size() * sizeof outcomes[0]);
  if (!status.ok()) return status;
  status = CopyOut(reinterpret_cast<std::byte*>(&summary), arrays_.summary, sizeof summary);
  if (!status.ok()) return status;
  if (status = slot_.clock().Mark(CudaPhase::kCopyOut); !status.ok()) return status;
  if (status = slot_.staging().Flush(); !status.ok()) return status;
  if (status = slot_.Drain(); !status.ok()) return status;
  if (const int64_t row = FirstBadRow(outcomes); row >= 0) return FirstNonFinite(call_.in, row);
  if (status = CheckFaults(summary); !status.ok()) return status;
  AddOutcomes(outcomes, *call_.stats);
  call_.stats->relative_error = summary.power == 0 ? 0 : std::sqrt(summary.error / summary.power);
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

absl::Status CudaTensorJob::CopyIn(void* to, const HostRows& from) {
  if (from.rows == 0 || from.row_bytes == 0) return absl::OkStatus();
  if (!pinned_.Contains(from.data, (from.rows - 1) * from.pitch_bytes + from.row_bytes))
    return slot_.staging().ToDevice(to, from);
  if (from.row_bytes == from.pitch_bytes)
    return runtime_.CopyToDevice(to, from.data, from.rows * from.row_bytes, slot_.stream());
  return runtime_.CopyToDevice2D(
      {to, from.row_bytes, from.data, from.pitch_bytes, from.row_bytes, from.rows}, slot_.stream());
}

absl::Status CudaTensorJob::CopyOut(std::byte* to, const void* from, size_t size_bytes) {
  if (size_bytes == 0) return absl::OkStatus();
  if (pinned_.Contains(to, size_bytes))
    return runtime_.CopyToHost(to, from, size_bytes, slot_.stream());
  return slot_.staging().ToHost(to, from, size_bytes);
}

absl::Status CudaTensorJob::Launched(int cuda_error, const char* step) {
  absl::Status status = runtime_.CheckLaunch(cuda_error, step);
  launch_failed_ = launch_failed_ || !status.ok();
  return status;
}

absl::Status CudaTensorJob::StopIfCancelled() const {
  return call_.cancelled() ? absl::CancelledError("stopped between panels") : absl::OkStatus();
}

}  // namespace sinq::kernels
