#include "server/worker/pipeline.h"

#include <chrono>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/quant_params.h"

namespace sinq {
namespace {

constexpr uint64_t kThroughputFromBytes = 1 << 20;  // smaller tensors say nothing about speed

}  // namespace

absl::Status Pipeline::Run(const std::set<std::string>& finished, JobProgress progress,
                           absl::FunctionRef<bool()> stopped) {
  {
    MutexLock lock(&mutex_);
    progress_ = progress;
  }
  const auto cancelled = [&] {
    return failed_.load(std::memory_order_relaxed) || stopped() || checkpointer_.Failed();
  };
  std::thread reader([&] { ReadAhead(finished, cancelled); });
  std::vector<std::thread> workers;
  for (int i = 0; i < workers_; ++i) workers.emplace_back([&] { Work(cancelled); });
  reader.join();
  for (std::thread& worker : workers) worker.join();
  MutexLock lock(&mutex_);
  return status_;
}

void Pipeline::ReadAhead(const std::set<std::string>& finished,
                         absl::FunctionRef<bool()> cancelled) {
  for (const PlannedTensor& tensor : context_.plan.tensors) {
    if (!HasUnit(context_.phase, tensor) || finished.contains(tensor.source.name)) continue;
    if (cancelled()) {
      Fail(absl::CancelledError("stopped between tensors"));
      break;
    }
    Item item{&tensor, {}};
    if (tensor.action != TensorAction::kCopy) {
      absl::StatusOr<UnitMemory> memory = ReadUnit(context_, tensor, cancelled);
      if (!memory.ok()) {
        Fail(memory.status());
        break;
      }
      item.memory = *std::move(memory);
    }
    if (!queue_.Push(std::move(item))) break;
  }
  queue_.Close();
}

void Pipeline::Work(absl::FunctionRef<bool()> cancelled) {
  while (std::optional<Item> item = queue_.Pop()) {
    // After a failure the rest of the queue is only emptied, so that its memory is given back.
    if (failed_.load(std::memory_order_relaxed)) continue;
    absl::StatusOr<UnitRecord> record = Process(*item, cancelled);
    if (!record.ok()) {
      Fail(record.status());
      continue;
    }
    Done(*item->tensor, *std::move(record));
  }
}

absl::StatusOr<UnitRecord> Pipeline::Process(Item& item, absl::FunctionRef<bool()> cancelled) {
  if (item.tensor->action == TensorAction::kCopy)
    return CopyUnit(context_, *item.tensor, cancelled);
  kernels::TensorStats stats;
  const auto begin = std::chrono::steady_clock::now();
  absl::StatusOr<UnitRecord> record = Compute(item, cancelled, &stats);
  context_.pool.Release(std::move(item.memory.buffer));
  if (record.ok() && record->quantized)
    Count(*item.tensor, stats,
          std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  return record;
}

absl::StatusOr<UnitRecord> Pipeline::Compute(Item& item, absl::FunctionRef<bool()> cancelled,
                                             kernels::TensorStats* stats) {
  if (context_.phase == Phase::kMeasure)
    return MeasureUnit(context_, *item.tensor, item.memory, cancelled);
  if (item.tensor->action == TensorAction::kFold)
    return FoldUnit(context_, *item.tensor, item.memory);
  return QuantizeUnit(context_, *item.tensor, item.memory, cancelled, stats);
}

void Pipeline::Fail(const absl::Status& status) {
  MutexLock lock(&mutex_);
  // A cancellation that follows an error is its echo.
  if (status_.ok() || (absl::IsCancelled(status_) && !absl::IsCancelled(status))) status_ = status;
  failed_ = true;
  queue_.Close();
}

void Pipeline::Done(const PlannedTensor& tensor, UnitRecord record) {
  const bool measured = context_.phase == Phase::kMeasure;
  const absl::string_view action = measured ? "measure" : ActionName(tensor.action);
  metrics_.Add("sinq_tensors_total", 1, {{"action", std::string(action)}});
  metrics_.Add("sinq_weight_bytes_in_total", static_cast<double>(tensor.source.size_bytes),
               {{"source", "file"}});
  double bytes_out = 0;
  for (const OutputRange& range : tensor.outputs)
    bytes_out += measured ? 0 : static_cast<double>(range.tensor.size_bytes);
  metrics_.Add("sinq_weight_bytes_out_total", bytes_out, {{"sink", "dir"}});
  checkpointer_.Add(tensor, std::move(record));
  MutexLock lock(&mutex_);
  ++progress_.tensors_done;
  progress_.bytes_done += tensor.source.size_bytes;
  on_progress_(progress_, tensor.source.name);
}

void Pipeline::Count(const PlannedTensor& tensor, const kernels::TensorStats& stats,
                     double seconds) {
  const double weights =
      static_cast<double>(tensor.source.shape[0]) * static_cast<double>(tensor.source.shape[1]);
  const std::string backend = context_.backend.GetCapabilities().name;
  metrics_.Add("sinq_weights_quantized_total", weights, {{"backend", backend}});
  metrics_.Observe("sinq_relative_error", stats.relative_error,
                   {{"method", std::string(kernels::MethodName(tensor.params.method))}});
  metrics_.Observe("sinq_sinkhorn_rounds", stats.mean_rounds);
  if (tensor.source.size_bytes >= kThroughputFromBytes && seconds > 0) {
    metrics_.Observe("sinq_quantize_throughput_weights_per_second", weights / seconds,
                     {{"backend", backend}});
  }
}

JobProgress Pipeline::progress() const {
  MutexLock lock(&mutex_);
  return progress_;
}

}  // namespace sinq
