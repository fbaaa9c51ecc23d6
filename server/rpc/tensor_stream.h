// One tensor of a QuantizeTensors stream: its memory, what has arrived, and what goes back.
#ifndef SINQ_SERVER_RPC_TENSOR_STREAM_H_
#define SINQ_SERVER_RPC_TENSOR_STREAM_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/backend.h"
#include "server/export/exporter.h"
#include "server/worker/buffer_pool.h"
#include "server/worker/worker_pool.h"
#include "sinq/v1/tensor_service.pb.h"

namespace sinq {

// Not thread-safe; handed from step to step. Weights, planes and scratch are one buffer under one
// reservation, of the memory that the workers copy from fastest.
class StreamedTensor {
 public:
  // Checks the header: name, dtype, rank, size against shape, shape against the format. Allocates
  // nothing.
  static absl::StatusOr<StreamedTensor> Make(const sinq::v1::TensorHeader& header,
                                             const kernels::QuantParams& params,
                                             const WorkerPool& workers);
  // Waits for the budget.
  absl::Status Allocate(BufferPool& pool, absl::FunctionRef<bool()> cancelled);
  // The same without waiting: false while the budget has no room, or others wait for it.
  absl::StatusOr<bool> TryAllocate(BufferPool& pool);
  // What Allocate took, for the next tensor. Nothing else may be called after it.
  PooledBuffer TakeBuffer() { return std::move(buffer_); }
  // InvalidArgument naming tensor and byte offset if there is more than the header said.
  absl::Status Append(absl::string_view chunk);
  bool complete() const { return received_bytes_ == weights_bytes_; }
  // What is missing, for a stream that ends too early.
  absl::Status Incomplete() const;
  // The code of an error is the backend's. May be called again on another backend.
  absl::Status Quantize(const Computing& computing, absl::FunctionRef<bool()> cancelled);
  // The next message to send; false when all are sent. After Quantize.
  bool Next(sinq::v1::QuantizeTensorsResponse* response);

  const std::string& name() const { return layer_.name; }
  double weights() const {
    return static_cast<double>(layer_.rows) * static_cast<double>(layer_.cols);
  }
  uint64_t weights_bytes() const { return weights_bytes_; }
  const kernels::TensorStats& stats() const { return stats_; }

 private:
  void FillResult(sinq::v1::TensorResult* result) const;

  QuantizedLayer layer_;
  kernels::WeightDtype dtype_ = kernels::WeightDtype::kBf16;
  std::string compute_dtype_;
  uint64_t weights_bytes_ = 0, total_bytes_ = 0, received_bytes_ = 0;
  std::vector<float> block_scales_;
  std::vector<OutputTensor> outputs_;
  PooledBuffer buffer_;
  std::vector<absl::Span<std::byte>> planes_;
  kernels::TensorStats stats_;
  // Sending: next plane, and the next byte in it; -1: the result is still to be sent.
  int plane_ = -1;
  bool header_sent_ = false;
  uint64_t sent_bytes_ = 0;
};

}  // namespace sinq

#endif  // SINQ_SERVER_RPC_TENSOR_STREAM_H_
