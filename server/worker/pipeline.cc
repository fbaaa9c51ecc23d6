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

// What the reads at once take that are not kept.
uint64_t RoomBytes(const UnitContext& context) {
  return kReadsAtOnce * LargestUnitBytes(context.plan, context.workers);
}

}  // namespace

Pipeline::Pipeline(const UnitContext& context, PhaseLedger* measuring, FoldScales* scales,
                   PhaseLedger& quantizing, MemoryBudget& budget, Metrics& metrics,
                   OnProgress on_progress)
    : context_(context),
      measuring_(measuring),
      scales_(scales),
      quantizing_(quantizing),
      metrics_(metrics),
      on_progress_(on_progress),
      stages_(FoldStagesOf(context.plan)),
      has_scales_(stages_.size(), false),
      unmeasured_(stages_.size(), 0),
      kept_(budget, RoomBytes(context), [this] { return IsIdle(); }) {}

absl::Status Pipeline::Run(JobProgress progress, absl::FunctionRef<bool()> stopped) {
  {
    MutexLock lock(&mutex_);
    progress_ = progress;
  }
  Steps steps = StepsLeft();
  if (measuring_ != nullptr) {
    MutexLock lock(&mutex_);
    measured_ = std::move(measuring_->finished);  // only the steps had to know their names
  }
  const auto cancelled = [&] {
    return failed_.load(std::memory_order_relaxed) || stopped() ||
           quantizing_.checkpointer.Failed() ||
           (measuring_ != nullptr && measuring_->checkpointer.Failed());
  };
  const kernels::DeviceStats before = context_.workers.DeviceTotals();
  if (absl::Status status = ReadAhead(std::move(steps), cancelled); !status.ok()) Fail(status);
  AwaitAll();
  ObserveDeviceStages(before);
  MutexLock lock(&mutex_);
  return status_;
}

Pipeline::Steps Pipeline::StepsLeft() {
  Steps steps;
  for (size_t stage = 0; stage < stages_.size(); ++stage) {
    AddMeasuring(stage, steps.measuring);
    AddQuantizing(stage, steps.quantizing);
  }
  return steps;
}

std::deque<Pipeline::Step>& Pipeline::NextOf(Steps& waiting) const {
  if (waiting.measuring.empty()) return waiting.quantizing;
  if (waiting.quantizing.empty()) return waiting.measuring;
  const Step& measure = waiting.measuring.front();
  const size_t stage = waiting.quantizing.front().stage;
  if (measure.stage <= stage) return waiting.measuring;  // its scales are wanted
  const uint64_t kept_bytes = KeptMemoryBytes(TensorAt(measure.index), context_.workers);
  const bool is_early = measure.stage > stage + 1 || !kept_.HasRoom(kept_bytes);
  return is_early ? waiting.quantizing : waiting.measuring;
}

bool Pipeline::IsQuantized(const FoldStage& stage) const {
  return std::all_of(stage.tensors.begin(), stage.tensors.end(), [this](int index) {
    const PlannedTensor& tensor = TensorAt(index);
    return !HasUnit(Phase::kQuantize, tensor) ||
           quantizing_.finished.contains(tensor.source.name);
  });
}

void Pipeline::AddMeasuring(size_t stage, std::deque<Step>& steps) {
  const bool is_needed = !IsQuantized(stages_[stage]);
  for (const int index : stages_[stage].tensors) {
    const PlannedTensor& tensor = TensorAt(index);
    if (!HasUnit(Phase::kMeasure, tensor) || measuring_->finished.contains(tensor.source.name))
      continue;
    if (is_needed) {
      steps.push_back({Phase::kMeasure, stage, index});
    } else {
      MutexLock lock(&mutex_);
      CountUnit(tensor);
    }
  }
}

void Pipeline::AddQuantizing(size_t stage, std::deque<Step>& steps) const {
  for (const int index : stages_[stage].tensors) {
    const PlannedTensor& tensor = TensorAt(index);
    if (HasUnit(Phase::kQuantize, tensor) && !quantizing_.finished.contains(tensor.source.name))
      steps.push_back({Phase::kQuantize, stage, index});
  }
}

// Here and not on a worker: one that waits for memory would hold up those that have it.
absl::Status Pipeline::ReadAhead(Steps waiting, Cancelled cancelled) {
  std::vector<Reading> reads;
  while (!waiting.empty() || !reads.empty()) {
    absl::Status status = BeginReads(waiting, reads, cancelled);
    if (status.ok() && cancelled()) status = absl::CancelledError("stopped while reading");
    if (status.ok() && !reads.empty()) {
      UnitRead* const second = reads.size() > 1 ? &reads.back().read : nullptr;
      status = ReadPieces(reads.front().read, second);
    }
    if (status.ok()) status = SubmitComplete(reads, cancelled);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Pipeline::BeginReads(Steps& waiting, std::vector<Reading>& reads,
                                  Cancelled cancelled) {
  while (!waiting.empty() && reads.size() < kReadsAtOnce) {
    std::deque<Step>& next = NextOf(waiting);
    const Step step = next.front();
    if (step.phase == Phase::kQuantize && !has_scales_[step.stage]) {
      // What is being read may have to be measured for it.
      if (!reads.empty()) return absl::OkStatus();
      if (absl::Status status = MakeScales(step.stage); !status.ok()) return status;
    }
    AwaitRoomBeside(reads.size());
    if (cancelled()) return absl::CancelledError("stopped between tensors");
    absl::StatusOr<std::optional<UnitRead>> read = Begin(step, reads.empty(), cancelled);
    if (!read.ok()) return read.status();
    if (!read->has_value()) return absl::OkStatus();
    next.pop_front();
    reads.push_back({step, **std::move(read)});
    if (absl::Status status = SubmitComplete(reads, cancelled); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<UnitRead>> Pipeline::Begin(const Step& step, bool may_wait,
                                                        Cancelled cancelled) {
  const PlannedTensor& tensor = TensorAt(step.index);
  if (step.phase == Phase::kQuantize) {
    if (std::optional<UnitMemory> kept = kept_.Take(step.index))
      return ReadOfKept(tensor, *std::move(kept));
  }
  uint64_t kept_bytes =
      step.phase == Phase::kMeasure ? KeptMemoryBytes(tensor, context_.workers) : 0;
  if (kept_bytes > 0 && !kept_.Admit(kept_bytes)) kept_bytes = 0;
  absl::StatusOr<std::optional<UnitRead>> read = std::nullopt;
  if (may_wait) {
    read = BeginRead(context_, step.phase, tensor, kept_bytes, cancelled);
  } else {
    read = TryBeginRead(context_, step.phase, tensor, kept_bytes);
  }
  if (kept_bytes > 0 && (!read.ok() || !read->has_value())) kept_.Drop(kept_bytes);
  return read;
}

absl::Status Pipeline::MakeScales(size_t stage) {
  has_scales_[stage] = true;
  if (stages_[stage].pairs.empty()) return absl::OkStatus();
  std::map<std::string, UnitRecord> measured;
  {
    const auto all_measured = [this, stage] {
      mutex_.AssertHeld();
      return unmeasured_[stage] == 0;
    };
    MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&all_measured));
    if (!status_.ok()) return status_;
    for (const int index : stages_[stage].tensors) {
      auto record = measured_.extract(TensorAt(index).source.name);
      if (!record.empty()) measured.insert(std::move(record));
    }
  }
  for (const int pair : stages_[stage].pairs) {
    absl::Status status = scales_->Add(pair, context_.source, measured);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

bool Pipeline::IsIdle() const {
  MutexLock lock(&mutex_);
  return in_flight_ == 0;
}

absl::Status Pipeline::SubmitComplete(std::vector<Reading>& reads, Cancelled cancelled) {
  for (auto read = reads.begin(); read != reads.end();) {
    if (read->read.bytes_left > 0) {
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

absl::Status Pipeline::Submit(Reading reading, Cancelled cancelled) {
  const Step step = reading.step;
  const bool was_kept = reading.read.was_kept;
  absl::StatusOr<UnitMemory> memory = FinishRead(context_, std::move(reading.read), cancelled);
  if (!memory.ok()) return memory.status();
  const auto item = std::make_shared<Item>(
      Item{step, TensorAt(step.index), *std::move(memory), was_kept, {}, 0});
  {
    MutexLock lock(&mutex_);
    ++in_flight_;
    if (step.phase == Phase::kMeasure) ++unmeasured_[step.stage];
  }
  WorkerTask task;
  if (NeedsBackend(step.phase, item->tensor)) {
    task.compute = [this, item, cancelled](const Computing& computing) {
      return Compute(*item, computing, cancelled);
    };
  }
  task.finish = [this, item, cancelled](const absl::Status& computed, absl::string_view kind) {
    Finish(*item, computed, kind, cancelled);
  };
  context_.workers.Submit(std::move(task));
  return absl::OkStatus();
}

absl::Status Pipeline::Compute(Item& item, const Computing& computing, Cancelled cancelled) {
  // After a failure the rest is only gone through, so that its memory is given back.
  if (failed_.load(std::memory_order_relaxed)) return absl::CancelledError("the job has failed");
  const auto begin = std::chrono::steady_clock::now();
  absl::Status status =
      ComputeUnit(item.step.phase, item.tensor, computing, item.memory, cancelled, &item.stats);
  item.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return status;
}

void Pipeline::Finish(Item& item, const absl::Status& computed, absl::string_view worker_kind,
                      Cancelled cancelled) {
  absl::StatusOr<UnitRecord> record =
      computed.ok() ? Write(item, cancelled) : absl::StatusOr<UnitRecord>(computed);
  GiveBack(item, record.ok());
  if (!record.ok()) {
    Fail(record.status());
  } else {
    if (record->quantized) Count(item, worker_kind);
    Done(item, *std::move(record));
  }
  MutexLock lock(&mutex_);
  if (item.step.phase == Phase::kMeasure) --unmeasured_[item.step.stage];
  --in_flight_;  // last: Run may return now
}

void Pipeline::GiveBack(Item& item, bool succeeded) {
  const uint64_t kept_bytes =
      item.step.phase == Phase::kMeasure ? item.memory.kept_bytes : 0;
  if (kept_bytes > 0 && succeeded) return kept_.Keep(item.step.index, std::move(item.memory));
  if (kept_bytes > 0) kept_.Drop(kept_bytes);
  context_.pool.Release(std::move(item.memory.buffer));
}

absl::StatusOr<UnitRecord> Pipeline::Write(Item& item, Cancelled cancelled) {
  if (failed_.load(std::memory_order_relaxed)) return absl::CancelledError("the job has failed");
  if (item.step.phase == Phase::kMeasure) return MeasuredUnit(item.tensor, item.memory);
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

void Pipeline::Done(const Item& item, UnitRecord record) {
  const PlannedTensor& tensor = item.tensor;
  const bool measured = item.step.phase == Phase::kMeasure;
  const absl::string_view action = measured ? "measure" : ActionName(tensor.action);
  metrics_.Add("sinq_tensors_total", 1, {{"action", std::string(action)}});
  metrics_.Add("sinq_weight_bytes_in_total",
               item.was_kept ? 0 : static_cast<double>(tensor.source.size_bytes),
               {{"source", "file"}});
  double bytes_out = 0;
  for (const OutputRange& range : tensor.outputs)
    bytes_out += measured ? 0 : static_cast<double>(range.tensor.size_bytes);
  metrics_.Add("sinq_weight_bytes_out_total", bytes_out, {{"sink", "dir"}});
  UnitRecord codes;
  if (measured) codes.column_codes = record.column_codes;
  (measured ? *measuring_ : quantizing_).checkpointer.Add(tensor, std::move(record));
  MutexLock lock(&mutex_);
  if (measured) measured_[tensor.source.name] = std::move(codes);
  CountUnit(tensor);
}

void Pipeline::CountUnit(const PlannedTensor& tensor) {
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
