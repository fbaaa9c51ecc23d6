#include "server/rpc/tensor_stream.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "absl/strings/str_cat.h"
#include "server/base/aligned_buffer.h"
#include "server/base/error.h"
#include "server/base/limits.h"
#include "server/export/sinq_sidecar.h"

namespace sinq {
namespace {

constexpr uint64_t kMaxTensorBytes =
    uint64_t{1} << 40;  // far above any weight; keeps every size product in range
constexpr int64_t kFp8Block = 128;

absl::Status BadHeader(const std::string& tensor, const std::string& field,
                       const std::string& what) {
  return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
                   absl::StrCat("Tensor \"", tensor.substr(0, 200), "\": ", what),
                   {{"tensor", tensor.substr(0, 200)}, {"field", field}});
}

struct DtypeInfo {
  const char* name;
  kernels::WeightDtype dtype;
  const char* compute_dtype;
};
constexpr DtypeInfo kDtypes[] = {{"BF16", kernels::WeightDtype::kBf16, "bfloat16"},
                                 {"F16", kernels::WeightDtype::kF16, "float16"},
                                 {"F32", kernels::WeightDtype::kF32, "float32"},
                                 {"F8_E4M3", kernels::WeightDtype::kF8E4M3, "bfloat16"}};

const DtypeInfo* FindDtype(const std::string& name) {
  const auto* found = std::find_if(std::begin(kDtypes), std::end(kDtypes),
                                   [&](const DtypeInfo& info) { return name == info.name; });
  return found == std::end(kDtypes) ? nullptr : found;
}

absl::Status CheckShape(const sinq::v1::TensorHeader& header, uint64_t element_bytes) {
  const std::string& name = header.name();
  if (header.shape_size() != 2 || header.shape(0) < 1 || header.shape(1) < 1) {
    return BadHeader(name, "shape", "shape must be [out_features, in_features], both at least 1.");
  }
  const uint64_t rows = static_cast<uint64_t>(header.shape(0)),
                 cols = static_cast<uint64_t>(header.shape(1));
  if (rows > kMaxTensorBytes || cols > kMaxTensorBytes / element_bytes / rows) {
    return BadHeader(name, "shape",
                     absl::StrCat("the tensor is larger than ", kMaxTensorBytes, " bytes."));
  }
  if (header.size_bytes() < 0 ||
      static_cast<uint64_t>(header.size_bytes()) != rows * cols * element_bytes) {
    return BadHeader(name, "size_bytes",
                     absl::StrCat("size_bytes is ", header.size_bytes(), ", shape and dtype make ",
                                  rows * cols * element_bytes, "."));
  }
  const int64_t blocks = (header.shape(0) + kFp8Block - 1) / kFp8Block *
                         ((header.shape(1) + kFp8Block - 1) / kFp8Block);
  if (header.block_scales_size() != 0 &&
      (header.dtype() != "F8_E4M3" || header.block_scales_size() != blocks)) {
    return BadHeader(
        name, "block_scales",
        absl::StrCat("block_scales are for F8_E4M3 only, one for each of ", blocks, " blocks."));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<StreamedTensor> StreamedTensor::Make(const sinq::v1::TensorHeader& header,
                                                    const kernels::QuantParams& params,
                                                    const WorkerPool& workers) {
  const std::string& name = header.name();
  if (name.empty() || name.size() > kMaxTensorNameBytes) {
    return BadHeader(name, "name",
                     absl::StrCat("the name must have 1 to ", kMaxTensorNameBytes, " bytes."));
  }
  const DtypeInfo* dtype = FindDtype(header.dtype());
  if (dtype == nullptr) {
    return BadHeader(name, "dtype",
                     absl::StrCat("dtype must be BF16, F16, F32 or F8_E4M3; got \"",
                                  header.dtype().substr(0, 32), "\"."));
  }
  if (absl::Status status = CheckShape(header, kernels::BytesPerElement(dtype->dtype));
      !status.ok())
    return status;
  StreamedTensor tensor;
  tensor.layer_ = {name, header.shape(0), header.shape(1), params};
  tensor.dtype_ = dtype->dtype;
  tensor.compute_dtype_ = dtype->compute_dtype;
  tensor.weights_bytes_ = static_cast<uint64_t>(header.size_bytes());
  tensor.block_scales_.assign(header.block_scales().begin(), header.block_scales().end());
  const std::unique_ptr<Exporter> exporter = MakeSinqExporter();
  if (const auto refusal = exporter->Refusal(tensor.layer_))
    return BadHeader(name, "shape", absl::StrCat(*refusal, "."));
  absl::StatusOr<std::vector<OutputTensor>> outputs = exporter->Tensors(tensor.layer_);
  if (!outputs.ok()) return outputs.status();
  tensor.outputs_ = *std::move(outputs);
  tensor.total_bytes_ = AlignedBytes(tensor.weights_bytes_) +
                        workers.ScratchBytes(params, tensor.layer_.rows, tensor.layer_.cols);
  for (const OutputTensor& output : tensor.outputs_)
    tensor.total_bytes_ += AlignedBytes(output.size_bytes);
  return tensor;
}

absl::Status StreamedTensor::Allocate(BufferPool& pool, absl::FunctionRef<bool()> cancelled) {
  absl::StatusOr<PooledBuffer> buffer = pool.Acquire(total_bytes_, cancelled);
  if (!buffer.ok()) return Annotate(buffer.status(), name());
  buffer_ = *std::move(buffer);
  return absl::OkStatus();
}

absl::StatusOr<bool> StreamedTensor::TryAllocate(BufferPool& pool) {
  absl::StatusOr<std::optional<PooledBuffer>> buffer = pool.TryAcquire(total_bytes_);
  if (!buffer.ok()) return Annotate(buffer.status(), name());
  if (!buffer->has_value()) return false;
  buffer_ = **std::move(buffer);
  return true;
}

absl::Status StreamedTensor::Append(absl::string_view chunk) {
  if (chunk.size() > weights_bytes_ - received_bytes_) {
    return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
                     absl::StrCat("Tensor \"", name(), "\": the chunk at byte ", received_bytes_,
                                  " goes beyond the ", weights_bytes_, " bytes of its header."),
                     {{"tensor", name()}, {"byte_offset", absl::StrCat(received_bytes_)}});
  }
  std::memcpy(buffer_.buffer.data() + received_bytes_, chunk.data(), chunk.size());
  received_bytes_ += chunk.size();
  return absl::OkStatus();
}

absl::Status StreamedTensor::Incomplete() const {
  return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
                   absl::StrCat("Tensor \"", name(), "\" ended at byte ", received_bytes_, " of ",
                                weights_bytes_, "."),
                   {{"tensor", name()}, {"byte_offset", absl::StrCat(received_bytes_)}});
}

absl::Status StreamedTensor::Quantize(const Computing& computing,
                                      absl::FunctionRef<bool()> cancelled) {
  absl::Span<std::byte> rest = buffer_.buffer.span();
  const kernels::MatrixView in{rest.data(), layer_.rows, layer_.cols, dtype_, block_scales_};
  rest.remove_prefix(AlignedBytes(weights_bytes_));
  planes_.clear();  // an earlier try's
  for (const OutputTensor& output : outputs_) {
    planes_.push_back(rest.subspan(0, output.size_bytes));
    rest.remove_prefix(AlignedBytes(output.size_bytes));
  }
  const absl::Status status =
      computing.backend.Quantize(in, layer_.params, rest, planes_, computing.parallel_for,
                                 cancelled, &stats_);
  if (!absl::IsInvalidArgument(status)) return Annotate(status, name());
  return MakeError(status.code(), Reason::kNonFiniteWeight,
                   absl::StrCat(name(), ": ", status.message(), "."), {{"tensor", name()}});
}

void StreamedTensor::FillResult(sinq::v1::TensorResult* result) const {
  const kernels::QuantParams& params = layer_.params;
  result->set_name(name());
  result->set_array_count(static_cast<int32_t>(outputs_.size()));
  result->set_bits(params.bits);
  result->set_group_size(kernels::EffectiveGroupSize(layer_.cols, params.group_size));
  result->set_aux(
      std::string(kernels::AuxName(kernels::EffectiveAux(params, layer_.rows, layer_.cols))));
  result->set_packing(kernels::PackingFor(params.bits).name);
  result->set_relative_error(stats_.relative_error);
  result->set_imbalance_before(stats_.imbalance_before);
  result->set_imbalance_after(stats_.imbalance_after);
  result->set_mean_rounds(stats_.mean_rounds);
  result->set_sidecar_json(SinqSidecarEntryJson(layer_, compute_dtype_));
}

bool StreamedTensor::Next(sinq::v1::QuantizeTensorsResponse* response) {
  if (plane_ < 0) {
    FillResult(response->mutable_result());
    plane_ = 0;
    return true;
  }
  if (static_cast<size_t>(plane_) == planes_.size()) return false;
  const OutputTensor& output = outputs_[static_cast<size_t>(plane_)];
  if (!header_sent_) {
    sinq::v1::ArrayHeader* header = response->mutable_array();
    header->set_name(output.name);
    header->set_dtype(output.dtype);
    for (const int64_t extent : output.shape) header->add_shape(extent);
    header->set_size_bytes(static_cast<int64_t>(output.size_bytes));
    header_sent_ = output.size_bytes > 0;
    if (!header_sent_) ++plane_;
    return true;
  }
  const uint64_t size = std::min(kChunkBytes, output.size_bytes - sent_bytes_);
  response->set_chunk(
      reinterpret_cast<const char*>(planes_[static_cast<size_t>(plane_)].data()) + sent_bytes_,
      static_cast<size_t>(size));
  sent_bytes_ += size;
  if (sent_bytes_ == output.size_bytes) {
    ++plane_;
    header_sent_ = false;
    sent_bytes_ = 0;
  }
  return true;
}

}  // namespace sinq
