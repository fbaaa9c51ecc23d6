#include "server/worker/pipeline.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include "kernels/quant_params.h"

namespace sinq {
namespace {

constexpr size_t kReadsAtOnce = 2;
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
  const kernels::DeviceStats before = context_.workers.DeviceTotals();
  if (absl::Status status = ReadAhead(UnitsLeft(finished), cancelled); !status.ok()) Fail(status);
  AwaitAll();
  ObserveDeviceStages(before);
  MutexLock lock(&mutex_);
  return status_;
}

Pipeline::Units Pipeline::UnitsLeft(const std::set<std::string>& finished) const {
  Units left;
  for (const PlannedTensor& tensor : context_.plan.tensors) {
    if (HasUnit(context_.phase, tensor) && !finished.contains(tensor.source.name))
      left.push_back(&tensor);
  }
  std::reverse(left.begin(), left.end());
  return left;
}

// Here and not on a worker: one that waits for memory would hold up those that have it.
absl::Status Pipeline::ReadAhead(Units waiting, Cancelled cancelled) {
  std::vector<UnitRead> reads;
  while (!waiting.empty() || !reads.empty()) {
    absl::Status status = BeginReads(waiting, reads, cancelled);
    if (status.ok() && cancelled()) status = absl::CancelledError("stopped while reading");
    if (status.ok() && !reads.empty())
      status = ReadPieces(context_, reads.front(), reads.size() > 1 ? &reads.back() : nullptr);
    if (status.ok()) status = SubmitComplete(reads, cancelled);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Pipeline::BeginReads(Units& waiting, std::vector<UnitRead>& reads,
                                  Cancelled cancelled) {
  while (!waiting.empty() && reads.size() < kReadsAtOnce) {
    absl::StatusOr<std::optional<UnitRead>> read = std::nullopt;
    AwaitRoomBeside(reads.size());
    if (cancelled()) return absl::CancelledError("stopped between tensors");
    if (reads.empty()) {
      read = BeginRead(context_, *waiting.back(), cancelled);
    } else {
      read = TryBeginRead(context_, *waiting.back());
    }
    if (!read.ok()) return read.status();
    if (!read->has_value()) return absl::OkStatus();
    waiting.pop_back();
    reads.push_back(**std::move(read));
    if (absl::Status status = SubmitComplete(reads, cancelled); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Pipeline::SubmitComplete(std::vector<UnitRead>& reads, Cancelled cancelled) {
  for (auto read = reads.begin(); read != reads.end();) {
    if (read->bytes_left > 0) {
      ++read;
      continue;
    }
    if (absl::Status status = Submit(std::move(*read), cancelled); !status.ok()) return status;
    read = reads.erase(read);
  }
  return absl::OkStatus();
}

void Pipeline::AwaitRoomBeside(size_t reads) {
  // The first of two reads leaves room for the second.
  const int most = context_.workers.UsefulTasks() - (reads == 0 ? 1 : 0);
  const auto has_room = [this, most, reads] {
    mutex_.AssertHeld();
    return in_flight_ + static_cast<int>(reads) <= most;
  };
  MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(&has_room));
}

void Pipeline::AwaitAll() {
  const auto none_left = [this] {
    mutex_.AssertHeld();
    return in_flight_ == 0;
  };
  MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(&none_left));
}

absl::Status Pipeline::Submit(UnitRead read, Cancelled cancelled) {
  const PlannedTensor& tensor = *read.tensor;
  absl::StatusOr<UnitMemory> memory = FinishRead(context_, std::move(read), cancelled);
  if (!memory.ok()) return memory.status();
  const auto item = std::make_shared<Item>(Item{tensor, *std::move(memory), {}, 0});
  {
    MutexLock lock(&mutex_);
    ++in_flight_;
  }
  WorkerTask task;
  if (NeedsBackend(context_.phase, item->tensor)) {
    task.compute = [this, item, cancelled](const kernels::Backend& backend) {
      return Compute(*item, backend, cancelled);
    };
  }
  task.finish = [this, item, cancelled](const absl::Status& computed, absl::string_view kind) {
    Finish(*item, computed, kind, cancelled);
  };
  context_.workers.Submit(std::move(task));
  return absl::OkStatus();
}

absl::Status Pipeline::Compute(Item& item, const kernels::Backend& backend, Cancelled cancelled) {
  // After a failure the rest is only gone through, so that its memory is given back.
  if (failed_.load(std::memory_order_relaxed)) return absl::CancelledError("the job has failed");
  const auto begin = std::chrono::steady_clock::now();
  absl::Status status =
      ComputeUnit(context_, item.tensor, backend, item.memory, cancelled, &item.stats);
  item.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return status;
}

void Pipeline::Finish(Item& item, const absl::Status& computed, absl::string_view worker_kind,
                      Cancelled cancelled) {
  absl::StatusOr<UnitRecord> record =
      computed.ok() ? Write(item, cancelled) : absl::StatusOr<UnitRecord>(computed);
  context_.pool.Release(std::move(item.memory.buffer));
  if (!record.ok()) {
    Fail(record.status());
  } else {
    if (record->quantized) Count(item, worker_kind);
    Done(item.tensor, *std::move(record));
  }
  MutexLock lock(&mutex_);
  --in_flight_;  // last: Run may return now
}

absl::StatusOr<UnitRecord> Pipeline::Write(Item& item, Cancelled cancelled) {
  if (failed_.load(std::memory_order_relaxed)) return absl::CancelledError("the job has failed");
  if (context_.phase == Phase::kMeasure) return MeasuredUnit(item.tensor, item.memory);
  if (item.tensor.action == TensorAction::kCopy)
    return CopyUnit(context_, item.tensor, item.memory, cancelled);
  if (item.tensor.action == TensorAction::kFold)
    return FoldUnit(context_, item.tensor, item.memory);
  return WriteUnit(context_, item.tensor, item.memory, item.stats);
}

void Pipeline::Fail(const absl::Status& status) {
  MutexLock lock(&mutex_);
  // A cancellation that follows an error is its echo.
  if (status_.ok() || (absl::IsCancelled(status_) && !absl::IsCancelled(status))) status_ = status;
  failed_ = true;
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

void Pipeline::Count(const Item& item, absl::string_view worker_kind) {
  const SourceTensor& source = item.tensor.source;
  const double weights =
      static_cast<double>(source.shape[0]) * static_cast<double>(source.shape[1]);
  const std::string backend(worker_kind);
  metrics_.Add("sinq_weights_quantized_total", weights, {{"backend", backend}});
  metrics_.Observe("sinq_relative_error", item.stats.relative_error,
                   {{"method", std::string(kernels::MethodName(item.tensor.params.method))}});
  metrics_.Observe("sinq_sinkhorn_rounds", item.stats.mean_rounds);
  if (source.size_bytes >= kThroughputFromBytes && item.seconds > 0) {
    metrics_.Observe("sinq_quantize_throughput_weights_per_second", weights / item.seconds,
                     {{"backend", backend}});
  }
}

// Of all devices together, and with what tensor streams did meanwhile. The stage "quantize" is the
// whole time of the pipeline, whoever computes.
void Pipeline::ObserveDeviceStages(const kernels::DeviceStats& before) {
  const kernels::DeviceStats after = context_.workers.DeviceTotals();
  const auto observe = [this](const char* stage, double seconds) {
    if (seconds > 0) metrics_.Observe("sinq_job_stage_seconds", seconds, {{"stage", stage}});
  };
  observe("h2d", after.h2d_seconds - before.h2d_seconds);
  observe("d2h", after.d2h_seconds - before.d2h_seconds);
}

JobProgress Pipeline::progress() const {
  MutexLock lock(&mutex_);
  return progress_;
}

}  // namespace sinq
