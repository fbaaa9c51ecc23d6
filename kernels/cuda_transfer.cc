#include "kernels/cuda_transfer.h"

#include "kernels/cuda_memory_plan.h"  // RawBytes

namespace sinq::kernels {

absl::StatusOr<const float*> CudaTransfer::CopyFloats(absl::Span<const float> values) {
  if (values.empty()) return nullptr;
  const size_t size_bytes = values.size() * sizeof(float);
  const absl::StatusOr<std::byte*> piece = slot_.arena().Take(size_bytes);
  if (!piece.ok()) return piece.status();
  const HostRows rows{reinterpret_cast<const std::byte*>(values.data()), size_bytes, 1,
                      size_bytes};
  if (absl::Status status = CopyIn(*piece, rows); !status.ok()) return status;
  return reinterpret_cast<const float*>(*piece);
}

absl::Status CudaTransfer::CopyFactors() {
  const absl::StatusOr<const float*> blocks = CopyFloats(in_.block_scales);
  if (!blocks.ok()) return blocks.status();
  const absl::StatusOr<const float*> rows = CopyFloats(in_.row_factor);
  if (!rows.ok()) return rows.status();
  const absl::StatusOr<const float*> columns = CopyFloats(in_.column_factor);
  if (!columns.ok()) return columns.status();
  factors_.block_scales = *blocks;
  factors_.block_scales_per_row = (in_.cols + kFp8BlockSize - 1) / kFp8BlockSize;
  factors_.row_factor = *rows;
  factors_.column_factor = *columns;
  return absl::OkStatus();
}

absl::StatusOr<DeviceWeights> CudaTransfer::Rectangle(const PanelExtent& extent,
                                                      MovingMemory& memory) {
  const int64_t rows = extent.rows.last - extent.rows.first;
  DeviceWeights weights = factors_;
  weights.first_row = extent.rows.first;
  weights.rows = rows;
  weights.first_col = extent.first_col;
  weights.cols = weights.stride = extent.cols;
  weights.dtype = in_.dtype;
  const absl::StatusOr<std::byte*> raw = memory.Take(RawBytes(in_, rows, extent.cols));
  if (!raw.ok()) return raw.status();
  weights.data = *raw;
  const size_t element_bytes = BytesPerElement(in_.dtype);
  const HostRows from{in_.data + static_cast<size_t>(extent.rows.first * in_.cols +
                                                     extent.first_col) *
                                     element_bytes,
                      static_cast<size_t>(extent.cols) * element_bytes, static_cast<size_t>(rows),
                      static_cast<size_t>(in_.cols) * element_bytes};
  if (absl::Status status = CopyIn(*raw, from); !status.ok()) return status;
  if (!in_.is_folded() || rows == 0) return weights;
  const absl::StatusOr<std::byte*> folded = memory.Take(FoldedBytes(weights));
  if (!folded.ok()) return folded.status();
  absl::Status status = Launched(LaunchFold(weights, *folded, slot_.stream()), "LaunchFold");
  if (!status.ok()) return status;
  return FoldedView(weights, *folded);
}

absl::Status CudaTransfer::CopyIn(void* to, const HostRows& from) {
  if (from.rows == 0 || from.row_bytes == 0) return absl::OkStatus();
  if (!pinned_.Contains(from.data, (from.rows - 1) * from.pitch_bytes + from.row_bytes))
    return slot_.staging().ToDevice(to, from);
  if (from.row_bytes == from.pitch_bytes)
    return runtime_.CopyToDevice(to, from.data, from.rows * from.row_bytes, slot_.stream());
  return runtime_.CopyToDevice2D(
      {to, from.row_bytes, from.data, from.pitch_bytes, from.row_bytes, from.rows}, slot_.stream());
}

absl::Status CudaTransfer::CopyOut(void* to, const void* from, size_t size_bytes) {
  if (size_bytes == 0) return absl::OkStatus();
  auto* const bytes = static_cast<std::byte*>(to);
  if (pinned_.Contains(bytes, size_bytes))
    return runtime_.CopyToHost(bytes, from, size_bytes, slot_.stream());
  return slot_.staging().ToHost(bytes, from, size_bytes);
}

absl::Status CudaTransfer::Launched(int cuda_error, const char* step) {
  absl::Status status = runtime_.CheckLaunch(cuda_error, step);
  launch_failed_ = launch_failed_ || !status.ok();
  return status;
}

}  // namespace sinq::kernels
