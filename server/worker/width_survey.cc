#include "server/worker/width_survey.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "nlohmann/json.hpp"
#include "server/base/aligned_buffer.h"
#include "server/base/mutex.h"
#include "server/worker/quantize_unit.h"
#include "server/worker/weight_dtype.h"

namespace sinq {
namespace {

using nlohmann::json;

constexpr uint64_t kReadBytes = 4 << 20;  // between two looks at `cancelled`

uint64_t Aligned(uint64_t bytes) {
  constexpr uint64_t kAlignment = AlignedBuffer::kAlignmentBytes;
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// One survey; on the stack of SurveyWidths.
class Survey {
 public:
  Survey(const SurveyContext& context, const std::set<std::string>& done, OnSurveyed on_surveyed,
         absl::FunctionRef<bool()> cancelled)
      : context_(context), on_surveyed_(on_surveyed), cancelled_(cancelled) {
    for (const PlannedTensor& tensor : context.plan.tensors) {
      if (!tensor.candidates.empty() && !done.contains(tensor.source.name))
        tensors_.push_back(&tensor);
    }
  }

  absl::Status Run() {
    const size_t count =
        std::min(tensors_.size(), static_cast<size_t>(std::max(context_.threads, 1)));
    std::vector<std::thread> threads;
    for (size_t i = 0; i < count; ++i) threads.emplace_back([this] { Work(); });
    for (std::thread& thread : threads) thread.join();
    MutexLock lock(&mutex_);
    return status_;
  }

 private:
  bool Stopped() const { return failed_ || cancelled_(); }

  void Work() {
    for (size_t i = next_++; i < tensors_.size(); i = next_++) {
      if (Stopped()) return Fail(absl::CancelledError("stopped between tensors"));
      absl::StatusOr<std::vector<double>> errors = Measure(*tensors_[i]);
      if (!errors.ok()) return Fail(WithTensor(errors.status(), *tensors_[i]));
      MutexLock lock(&report_mutex_);
      if (absl::Status status = on_surveyed_(*tensors_[i], *std::move(errors)); !status.ok())
        return Fail(status);
    }
  }

  absl::StatusOr<std::vector<double>> Measure(const PlannedTensor& tensor) {
    const int64_t rows = tensor.source.shape[0], cols = tensor.source.shape[1];
    uint64_t scratch_bytes = 0;
    for (const kernels::QuantParams& params : tensor.candidates) {
      scratch_bytes =
          std::max<uint64_t>(scratch_bytes, context_.backend.ScratchBytes(params, rows, cols));
    }
    const uint64_t weights_bytes = Aligned(tensor.source.size_bytes);
    const auto stopped = [this] { return Stopped(); };
    const auto reservation = context_.budget.Reserve(weights_bytes + scratch_bytes, stopped);
    if (!reservation.ok()) return reservation.status();
    absl::StatusOr<AlignedBuffer> buffer = AlignedBuffer::Allocate(weights_bytes + scratch_bytes);
    if (!buffer.ok()) return buffer.status();
    const absl::Span<std::byte> weights = buffer->span().subspan(0, tensor.source.size_bytes);
    if (absl::Status status = Read(tensor.source, weights); !status.ok()) return status;
    const absl::StatusOr<std::vector<float>> block_scales =
        ReadBlockScales(context_.plan, context_.source, tensor);
    if (!block_scales.ok()) return block_scales.status();
    const kernels::MatrixView view{weights.data(), rows, cols, WeightDtypeOf(tensor.source.dtype),
                                   *block_scales};
    std::vector<kernels::Measurement> measured(tensor.candidates.size());
    if (absl::Status status = context_.backend.MeasureErrors(
            view, tensor.candidates, buffer->span().subspan(weights_bytes),
            absl::MakeSpan(measured), kernels::RunSerially, stopped);
        !status.ok())
      return status;
    std::vector<double> errors;
    for (const kernels::Measurement& each : measured)
      errors.push_back(each.power > 0 ? each.error / each.power : 0);
    return errors;
  }

  absl::Status Read(const SourceTensor& tensor, absl::Span<std::byte> out) const {
    for (uint64_t at = 0; at < out.size(); at += kReadBytes) {
      if (Stopped()) return absl::CancelledError("stopped while reading");
      absl::Status status =
          context_.source.Read(tensor.file_index, tensor.offset + at, out.subspan(at, kReadBytes));
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  void Fail(const absl::Status& status) {
    MutexLock lock(&mutex_);
    // A cancellation that follows an error is its echo.
    if (status_.ok()) status_ = status;
    failed_ = true;
  }

  const SurveyContext& context_;
  const OnSurveyed on_surveyed_;
  const absl::FunctionRef<bool()> cancelled_;
  std::vector<const PlannedTensor*> tensors_;  // constant after construction
  std::atomic<size_t> next_ = 0;
  std::atomic<bool> failed_ = false;
  Mutex report_mutex_;  // held while on_surveyed_ runs; taken before mutex_
  Mutex mutex_;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

absl::Status Damaged(const PlannedTensor& tensor) {
  return absl::DataLossError(
      absl::StrCat("the measured errors of ", tensor.source.name,
                   " in the job store do not fit its candidates; delete the job and submit again"));
}

}  // namespace

absl::Status SurveyWidths(const SurveyContext& context, const std::set<std::string>& done,
                          OnSurveyed on_surveyed, absl::FunctionRef<bool()> cancelled) {
  return Survey(context, done, on_surveyed, cancelled).Run();
}

std::string SurveyToJson(const PlannedTensor& tensor, const std::vector<double>& errors) {
  json widths = json::array();
  for (size_t i = 0; i < errors.size(); ++i) {
    const kernels::QuantParams& params = tensor.candidates[i];
    widths.push_back({params.bits, params.group_size, errors[i]});
  }
  return json{{"widths", widths}}.dump();
}

absl::StatusOr<std::vector<double>> SurveyFromJson(const PlannedTensor& tensor,
                                                   absl::string_view text) {
  const json in = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!in.is_object() || !in.contains("widths") || !in["widths"].is_array() ||
      in["widths"].size() != tensor.candidates.size())
    return Damaged(tensor);
  std::vector<double> errors;
  for (const kernels::QuantParams& params : tensor.candidates) {
    const json& width = in["widths"][errors.size()];
    const bool fits = width.is_array() && width.size() == 3 && width[0] == params.bits &&
                      width[1] == params.group_size && width[2].is_number();
    if (!fits) return Damaged(tensor);
    errors.push_back(width[2].get<double>());
  }
  return errors;
}

}  // namespace sinq
