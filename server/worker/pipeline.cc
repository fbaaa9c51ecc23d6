#include "server/worker/pipeline.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "kernels/quant_params.h"

namespace sinq {
namespace {

constexpr size_t kReadsAtOnce = 2;
constexpr uint64_t kThroughputFromBytes = 1 << 20;  // smaller tensors say nothing about speed

// What units take that are not kept: the reads at once, and all workspaces.
uint64_t RoomBytes(const UnitContext& context) {
  return kReadsAtOnce * LargestWeightsBytes(context.plan) +
         static_cast<uint64_t>(context.workers.UsefulTasks()) * context.workspaces.size_bytes();
}

}  // namespace

Pipeline::Pipeline(const UnitContext& context, PhaseLedger* measuring, FoldScales* scales,
                   PhaseLedger& quantizing, Metrics& metrics, OnProgress on_progress)
    : context_(context),
      measuring_(measuring),
      scales_(scales),
      quantizing_(quantizing),
      metrics_(metrics),
      on_progress_(on_progress),
      stages_(FoldStagesOf(context.plan)),
      has_scales_(stages_.size(), false),
      unmeasured_(stages_.size(), 0),
      kept_(context.budget, RoomBytes(context), [this] { return IsIdle(); }) {}

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
  // An exception must not leave tasks behind that use this object.
  absl::Cleanup give_up = [this] {
    failed_ = true;
    AwaitAll();
  };
  if (absl::Status status = ReadAhead(std::move(steps), cancelled); !status.ok()) Fail(status);
  std::move(give_up).Cancel();
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
  const uint64_t kept_bytes = KeptMemoryBytes(TensorAt(measure.index));
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
    absl::Status status = SubmitKept(waiting, reads, cancelled);
    if (status.ok()) status = BeginReads(waiting, reads, cancelled);
    if (status.ok() && cancelled()) status = absl::CancelledError("stopped while reading");
    if (status.ok()) status = GoOnReading(reads);
    if (status.ok()) status = SubmitComplete(reads, cancelled);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Pipeline::GoOnReading(std::vector<Reading>& reads) {
  if (reads.empty()) return absl::OkStatus();
  std::vector<UnitRead*> incomplete;
  for (Reading& reading : reads) {
    if (reading.read.bytes_left > 0) incomplete.push_back(&reading.read);
  }
  if (!incomplete.empty())
    return ReadPieces(*incomplete.front(), incomplete.size() > 1 ? incomplete.back() : nullptr);
  // All that is left to do is to wait for a unit in work.
  UnitRead& first = reads.front().read;
  first.memory.workspace = context_.workspaces.Take(first.claim);
  first.claim.reset();
  return absl::OkStatus();
}

bool Pipeline::IsMeasured(size_t stage, const Steps& waiting,
                          const std::vector<Reading>& reads) const {
  if (!waiting.measuring.empty() && waiting.measuring.front().stage <= stage) return false;
  const bool is_read = std::any_of(reads.begin(), reads.end(), [stage](const Reading& reading) {
    return reading.step.phase == Phase::kMeasure && reading.step.stage <= stage;
  });
  MutexLock lock(&mutex_);
  return !is_read && unmeasured_[stage] == 0;
}

absl::Status Pipeline::SubmitKept(Steps& waiting, std::vector<Reading>& reads,
                                  Cancelled cancelled) {
  // Asked for with each piece that is read, so the way out is short where nothing is kept.
  const std::vector<int> kept_tensors = kept_.Tensors();
  if (kept_tensors.empty() || waiting.quantizing.empty()) return absl::OkStatus();
  const size_t stage = waiting.quantizing.front().stage;
  if (!has_scales_[stage]) {
    if (!IsMeasured(stage, waiting, reads)) return absl::OkStatus();
    if (absl::Status status = MakeScales(stage); !status.ok()) return status;
  }
  const std::vector<int>& of_stage = stages_[stage].tensors;
  for (const int index : kept_tensors) {
    if (!std::binary_search(of_stage.begin(), of_stage.end(), index)) continue;
    if (!context_.workspaces.HasFree()) return absl::OkStatus();
    const auto step = std::find_if(waiting.quantizing.begin(), waiting.quantizing.end(),
                                   [index](const Step& one) { return one.index == index; });
    if (step == waiting.quantizing.end()) continue;  // an earlier attempt has written it
    absl::StatusOr<std::optional<UnitRead>> kept = BeginKept(*step, false, cancelled);
    if (!kept.ok()) return kept.status();
    if (!kept->has_value()) return absl::OkStatus();
    reads.push_back({*step, **std::move(kept)});
    waiting.quantizing.erase(step);
    if (absl::Status status = SubmitComplete(reads, cancelled); !status.ok()) return status;
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
  if (step.phase == Phase::kQuantize && kept_.Has(step.index)) {
    absl::StatusOr<std::optional<UnitRead>> kept = BeginKept(step, may_wait, cancelled);
    const bool is_given_up = kept.ok() && !kept->has_value() && !kept_.Has(step.index);
    if (!is_given_up) return kept;  // else it is read again
  }
  uint64_t kept_bytes = step.phase == Phase::kMeasure ? KeptMemoryBytes(tensor) : 0;
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

// The unit waits for a workspace where it is, so that it can be given up meanwhile.
absl::StatusOr<std::optional<UnitRead>> Pipeline::BeginKept(const Step& step, bool may_wait,
                                                            Cancelled cancelled) {
  const PlannedTensor& tensor = TensorAt(step.index);
  Workspaces::Claim claim;
  if (NeedsBackend(step.phase, tensor)) {
    absl::StatusOr<Workspaces::Claim> made = may_wait ? context_.workspaces.AwaitClaim(cancelled)
                                                      : context_.workspaces.TryClaim();
    if (!made.ok()) return made.status();
    if (*made == nullptr) return std::nullopt;
    claim = *std::move(made);
  }
  std::optional<UnitMemory> memory = kept_.Take(step.index);
  if (!memory) return std::nullopt;
  return ReadOfKept(tensor, *std::move(memory), std::move(claim));
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
    if (read->read.bytes_left > 0 || !HasWorkspace(read->read)) {
      ++read;
      continue;
    }
    if (absl::Status status = Submit(std::move(*read), cancelled); !status.ok()) return status;
    read = reads.erase(read);
  }
  return absl::OkStatus();
}

bool Pipeline::HasWorkspace(UnitRead& read) {
  if (read.claim == nullptr) return true;
  std::optional<PooledBuffer> workspace = context_.workspaces.TryTake(read.claim);
  if (!workspace) return false;
  read.memory.workspace = *std::move(workspace);
  read.claim.reset();
  return true;
}

void Pipeline::AwaitRoomBeside(size_t reads) {
  // The first of two reads leaves room for the second.
  const int most = context_.workers.UsefulTasks() - (reads == 0 ? 1 : 0);
  const auto has_room = [this, most, reads] {
    mutex_.AssertHeld();
    return with_weights_ + static_cast<int>(reads) <= most;
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
  const auto item =
      std::make_shared<Item>(Item{step, TensorAt(step.index), *std::move(memory), was_kept});
  const bool has_backend = NeedsBackend(step.phase, item->tensor);
  if (has_backend && step.phase == Phase::kQuantize) item->turn = turns_.Join();
  {
    MutexLock lock(&mutex_);
    ++in_flight_;
    ++with_weights_;
    if (step.phase == Phase::kMeasure) ++unmeasured_[step.stage];
  }
  WorkerTask task;
  if (has_backend) {
    task.compute = [this, item, cancelled](const Computing& computing) {
      return Compute(*item, computing, cancelled);
    };
  }
  task.finish = [this, item, cancelled](const absl::Status& computed, absl::string_view kind) {
    item->computed = computed;
    item->worker_kind = std::string(kind);
    const auto later = [this, item, cancelled] { FinishLater(item, cancelled); };
    if (!item->turn || turns_.Begin(*item->turn, later)) Finish(*item, cancelled);
  };
  context_.workers.Submit(std::move(task));
  return absl::OkStatus();
}

void Pipeline::FinishLater(const std::shared_ptr<Item>& item, Cancelled cancelled) {
  WorkerTask task;
  task.finish = [this, item, cancelled](const absl::Status&, absl::string_view) {
    Finish(*item, cancelled);
  };
  context_.workers.Submit(std::move(task));
}

absl::Status Pipeline::Compute(Item& item, const Computing& computing, Cancelled cancelled) {
  // After a failure the rest is only gone through, so that its memory is given back.
  if (failed_.load(std::memory_order_relaxed)) return absl::CancelledError("the job has failed");
  const auto begin = std::chrono::steady_clock::now();
  absl::Status status =
      ComputeUnit(item.step.phase, item.tensor, computing, item.memory, cancelled, &item.stats);
  item.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  if (status.ok() && item.step.phase == Phase::kQuantize) ReleaseWeights(item);
  return status;
}

void Pipeline::Finish(Item& item, Cancelled cancelled) {
  absl::StatusOr<UnitRecord> record = MakeRecord(item, cancelled);
  absl::Status status = record.status();
  if (item.turn) {
    turns_.Pass();  // the next one is digested while this one is written
    if (status.ok()) status = WriteUnit(context_, item.tensor, item.memory);
  }
  GiveBack(item, status.ok());
  if (!status.ok()) {
    Fail(status);
  } else {
    if (record->quantized) Count(item);
    Done(item, *std::move(record));
  }
  MutexLock lock(&mutex_);
  if (item.step.phase == Phase::kMeasure) --unmeasured_[item.step.stage];
  --in_flight_;  // last: Run may return now
}

void Pipeline::ReleaseWeights(Item& item) {
  context_.pool.Release(std::exchange(item.memory.weights, {}));
  NoteWithoutWeights(item);
}

void Pipeline::NoteWithoutWeights(Item& item) {
  item.has_weights = false;
  MutexLock lock(&mutex_);
  --with_weights_;
}

void Pipeline::GiveBack(Item& item, bool succeeded) {
  if (NeedsBackend(item.step.phase, item.tensor))
    context_.workspaces.Release(std::exchange(item.memory.workspace, {}));
  if (!item.has_weights) return;
  const uint64_t kept_bytes =
      item.step.phase == Phase::kMeasure ? item.memory.kept_bytes : 0;
  if (kept_bytes > 0 && succeeded) {
    kept_.Keep(item.step.index, std::move(item.memory));
    return NoteWithoutWeights(item);
  }
  if (kept_bytes > 0) kept_.Drop(kept_bytes);
  ReleaseWeights(item);
}

absl::StatusOr<UnitRecord> Pipeline::MakeRecord(Item& item, Cancelled cancelled) {
  if (!item.computed.ok()) return item.computed;
  if (failed_.load(std::memory_order_relaxed)) return absl::CancelledError("the job has failed");
  if (item.step.phase == Phase::kMeasure) return MeasuredUnit(item.tensor, item.memory);
  if (item.tensor.action == TensorAction::kCopy)
    return CopyUnit(context_, item.tensor, item.memory, cancelled);
  if (item.tensor.action == TensorAction::kFold)
    return FoldUnit(context_, item.tensor, item.memory);
  return DigestUnit(context_, item.tensor, item.memory, item.stats);
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

void Pipeline::Count(const Item& item) {
  const SourceTensor& source = item.tensor.source;
  const double weights =
      static_cast<double>(source.shape[0]) * static_cast<double>(source.shape[1]);
  metrics_.Add("sinq_weights_quantized_total", weights, {{"backend", item.worker_kind}});
  metrics_.Observe("sinq_relative_error", item.stats.relative_error,
                   {{"method", std::string(kernels::MethodName(item.tensor.params.method))}});
  metrics_.Observe("sinq_sinkhorn_rounds", item.stats.mean_rounds);
  if (source.size_bytes >= kThroughputFromBytes && item.seconds > 0) {
    metrics_.Observe("sinq_quantize_throughput_weights_per_second", weights / item.seconds,
                     {{"backend", item.worker_kind}});
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
