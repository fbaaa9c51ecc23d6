#include "server/worker/width_survey.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "nlohmann/json.hpp"
#include "server/base/aligned_buffer.h"
#include "server/base/mutex.h"
#include "server/worker/buffer_pool.h"
#include "server/worker/prefetcher.h"
#include "server/worker/quantize_unit.h"
#include "server/worker/weight_dtype.h"

namespace sinq {
namespace {

using nlohmann::json;

// One survey; on the stack of SurveyWidths. The thread that runs it reads; the pool's workers do
// the rest.
class Survey {
 public:
  Survey(const SurveyContext& context, OnSurveyed on_surveyed, absl::FunctionRef<bool()> cancelled)
      : context_(context),
        on_surveyed_(on_surveyed),
        cancelled_(cancelled),
        pool_(context.budget, context.workers.host_memory()) {}

  absl::Status Run(const std::set<std::string>& done) {
    // An exception must not leave tasks behind that use this object.
    absl::Cleanup give_up = [this] {
      failed_ = true;
      AwaitFewerThan(1);
    };
    for (const PlannedTensor& tensor : context_.plan.tensors) {
      if (!HasUnit(Phase::kWidths, tensor) || done.contains(tensor.source.name)) continue;
      AwaitFewerThan(context_.workers.UsefulTasks());
      absl::Status status = ReadAndSubmit(tensor);
      if (!status.ok()) {
        Fail(status);
        break;
      }
    }
    std::move(give_up).Cancel();
    AwaitFewerThan(1);
    MutexLock lock(&mutex_);
    return status_;
  }

 private:
  struct Item {
    const PlannedTensor& tensor;
    PooledBuffer buffer;  // [weights | scratch]
    std::vector<float> block_scales;
    std::vector<kernels::Measurement> measured;
  };

  bool Stopped() const { return failed_.load(std::memory_order_relaxed) || cancelled_(); }

  absl::Status ReadAndSubmit(const PlannedTensor& tensor) {
    if (Stopped()) return absl::CancelledError("stopped between tensors");
    const SourceTensor& source = tensor.source;
    const uint64_t size_bytes =
        std::max(AlignedBytes(source.size_bytes) + ScratchBytes(tensor),
                 Prefetcher::MemoryBytes(source.offset, source.size_bytes));
    absl::StatusOr<PooledBuffer> buffer = pool_.Acquire(size_bytes, [this] { return Stopped(); });
    if (!buffer.ok()) return WithTensor(buffer.status(), tensor);
    auto item = std::make_shared<Item>(Item{tensor, *std::move(buffer), {}, {}});
    if (absl::Status status = Read(*item); !status.ok()) return WithTensor(status, tensor);
    {
      MutexLock lock(&mutex_);
      ++in_flight_;
    }
    WorkerTask task;
    task.compute = [this, item](const Computing& computing) {
      return Measure(*item, computing);
    };
    task.finish = [this, item](const absl::Status& computed, absl::string_view) {
      Finish(*item, computed);
    };
    context_.workers.Submit(std::move(task));
    return absl::OkStatus();
  }

  uint64_t ScratchBytes(const PlannedTensor& tensor) const {
    uint64_t bytes = 0;
    for (const kernels::QuantParams& params : tensor.candidates) {
      bytes = std::max(bytes, context_.workers.ScratchBytes(params, tensor.source.shape[0],
                                                            tensor.source.shape[1]));
    }
    return bytes;
  }

  absl::Status Read(Item& item) {
    const SourceTensor& source = item.tensor.source;
    const auto fetch = prefetcher_.Begin(
        source.offset, source.size_bytes, item.buffer.buffer.data(),
        [this, &source](uint64_t at, absl::Span<std::byte> piece) {
          return context_.source.Read(source.file_index, source.offset + at, piece);
        });
    for (uint64_t there = 0; there < source.size_bytes;) {
      if (Stopped()) return absl::CancelledError("stopped while reading");
      const absl::StatusOr<uint64_t> ready_bytes = fetch->AwaitBeyond(there);
      if (!ready_bytes.ok()) return ready_bytes.status();
      there = *ready_bytes;
    }
    absl::StatusOr<std::vector<float>> block_scales =
        ReadBlockScales(context_.plan, context_.source, item.tensor);
    if (!block_scales.ok()) return block_scales.status();
    item.block_scales = *std::move(block_scales);
    return absl::OkStatus();
  }

  absl::Status Measure(Item& item, const Computing& computing) const {
    const SourceTensor& source = item.tensor.source;
    const absl::Span<std::byte> buffer = item.buffer.buffer.span();
    const kernels::MatrixView view{buffer.data(), source.shape[0], source.shape[1],
                                   WeightDtypeOf(source.dtype), item.block_scales};
    item.measured.assign(item.tensor.candidates.size(), {});
    return computing.backend.MeasureErrors(
        view, item.tensor.candidates, buffer.subspan(AlignedBytes(source.size_bytes)),
        absl::MakeSpan(item.measured), computing.parallel_for, [this] { return Stopped(); });
  }

  void Finish(Item& item, const absl::Status& computed) {
    pool_.Release(std::move(item.buffer));
    const absl::Status status = computed.ok() ? Report(item) : WithTensor(computed, item.tensor);
    if (!status.ok()) Fail(status);
    MutexLock lock(&mutex_);
    --in_flight_;  // last: Run may return now
  }

  absl::Status Report(const Item& item) {
    std::vector<double> errors;
    for (const kernels::Measurement& each : item.measured)
      errors.push_back(each.power > 0 ? each.error / each.power : 0);
    MutexLock lock(&report_mutex_);
    return on_surveyed_(item.tensor, std::move(errors));
  }

  void AwaitFewerThan(int count) {
    const auto is_reached = [this, count] {
      mutex_.AssertHeld();
      return in_flight_ < count;
    };
    MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&is_reached));
  }

  void Fail(const absl::Status& status) {
    MutexLock lock(&mutex_);
    // A cancellation that follows an error is its echo.
    if (status_.ok() || (absl::IsCancelled(status_) && !absl::IsCancelled(status)))
      status_ = status;
    failed_ = true;
  }

  const SurveyContext& context_;
  const OnSurveyed on_surveyed_;
  const absl::FunctionRef<bool()> cancelled_;
  BufferPool pool_;
  Prefetcher prefetcher_;
  std::atomic<bool> failed_ = false;
  Mutex report_mutex_;  // held while on_surveyed_ runs
  Mutex mutex_;
  int in_flight_ ABSL_GUARDED_BY(mutex_) = 0;  // items that the pool has
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
  return Survey(context, on_surveyed, cancelled).Run(done);
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
