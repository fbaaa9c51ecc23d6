#include "server/worker/job_runner.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "server/base/error.h"
#include "server/base/limits.h"
#include "server/base/sha256.h"
#include "server/plan/plan.h"
#include "server/plan/width_plan.h"
#include "server/sink/sink.h"
#include "server/source/model_source.h"
#include "server/worker/buffer_pool.h"
#include "server/worker/checkpointer.h"
#include "server/worker/file_digester.h"
#include "server/worker/fold_scales.h"
#include "server/worker/manifest.h"
#include "server/worker/pipeline.h"
#include "server/worker/width_survey.h"
#include "server/worker/worker_pool.h"

namespace sinq {
namespace {

constexpr uint64_t kCopyBytes = 1 << 20;

absl::Span<const std::byte> Bytes(absl::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

// One run of one job; on the stack of Run.
class Attempt {
 public:
  using OnProgress = absl::FunctionRef<void(const JobProgress&, absl::string_view)>;
  Attempt(const RunnerOptions& options, WorkerPool& workers, const FileSystem& files,
          MemoryBudget& budget, JobStore& store, Metrics& metrics, const Job& job,
          const Lease& lease, const std::atomic<StopReason>& stop, OnProgress on_progress)
      : options_(options),
        workers_(workers),
        files_(files),
        budget_(budget),
        store_(store),
        metrics_(metrics),
        job_(job),
        lease_(lease),
        stop_(stop),
        on_progress_(on_progress) {}

  RunResult Run() {
    absl::Status status = RunStages();
    if (!status.ok() && MustNotResume(status)) {
      if (sink_ != nullptr) sink_->Abort().IgnoreError();  // the job's own error says more
    }
    return {std::move(status), progress_};
  }

 private:
  absl::Status RunStages() {
    Enter(JobStage::kPlan);
    if (absl::Status status = Plan(); !status.ok()) return status;
    if (absl::Status status = OpenOutput(); !status.ok()) return status;
    if (already_published_) return FinishPublished();
    Enter(JobStage::kQuantize);
    digesters_ = DigestersFor(plan_);
    Checkpointer checkpointer(plan_, Phase::kQuantize, *sink_, digesters_, store_, lease_,
                              options_.checkpoint_interval);
    if (absl::Status status = Quantize(checkpointer); !status.ok()) return status;
    Enter(JobStage::kCommit);
    return Commit(checkpointer);
  }

  // Staging is kept wherever another attempt may go on from it: what the store holds of finished
  // units is true of that directory alone.
  bool MustNotResume(const absl::Status& status) const {
    const StopReason reason = stop_.load();
    if (reason == StopReason::kDrain || reason == StopReason::kLeaseLost || absl::IsAborted(status))
      return false;
    return !IsRetryable(status);
  }

  void Enter(JobStage stage) {
    const auto now = std::chrono::steady_clock::now();
    if (progress_.stage != JobStage::kNone) {
      metrics_.Observe("sinq_job_stage_seconds",
                       std::chrono::duration<double>(now - stage_begin_).count(),
                       {{"stage", std::string(JobStageName(progress_.stage))}});
    }
    stage_begin_ = now;
    progress_.stage = stage;
    on_progress_(progress_, "");
  }

  absl::Status Plan() {
    absl::StatusOr<PlanInputs> inputs = OpenPlanInputs(job_.spec, files_);
    if (!inputs.ok()) return inputs.status();
    source_ = std::move(inputs->source);
    activations_ = std::move(inputs->activations);
    gguf_template_ = std::move(inputs->gguf_template);
    const PlanOptions options{budget_.budget_bytes(), workers_.UsefulTasks(), activations_.get(),
                              nullptr, gguf_template_.get()};
    absl::StatusOr<sinq::Plan> plan = MakePlan(job_.spec, *source_, *inputs->exporter, options);
    if (!plan.ok()) return plan.status();
    plan_ = *std::move(plan);
    CountUnits();
    if (!plan_.width_groups.empty()) {
      if (absl::Status status = ChooseWidths(*inputs->exporter, options); !status.ok())
        return status;
    }
    progress_.output_bytes = plan_.output_bytes;
    progress_.effective_bits = plan_.effective_bits;
    return CheckIdentity();
  }

  void CountUnits() {
    for (const PlannedTensor& tensor : plan_.tensors) {
      for (const Phase phase : {Phase::kWidths, Phase::kMeasure, Phase::kQuantize}) {
        if (!HasUnit(phase, tensor)) continue;
        ++progress_.tensors_total;
        progress_.bytes_total += tensor.source.size_bytes;
      }
    }
  }

  // From the open plan to the one that the job runs. What is measured is durable before it is used,
  // so that every attempt chooses alike.
  absl::Status ChooseWidths(const Exporter& exporter, const PlanOptions& options) {
    Enter(JobStage::kMeasure);
    WidthErrors errors;
    if (absl::Status status = TakeSurveyed(errors); !status.ok()) return status;
    std::set<std::string> done;
    for (const auto& [name, unused] : errors) done.insert(name);
    const SurveyContext context{plan_, *source_, workers_, budget_};
    std::vector<FinishedUnit> pending;
    auto last = std::chrono::steady_clock::now();
    absl::Status status = SurveyWidths(
        context, done,
        [&](const PlannedTensor& tensor, std::vector<double> measured) -> absl::Status {
          pending.push_back({UnitName(Phase::kWidths, tensor), SurveyToJson(tensor, measured)});
          errors[tensor.source.name] = std::move(measured);
          CountDone(tensor);
          on_progress_(progress_, tensor.source.name);
          const auto now = std::chrono::steady_clock::now();
          if (absl::FromChrono(now - last) < options_.checkpoint_interval) return absl::OkStatus();
          last = now;
          return KeepSurveyed(pending);
        },
        [this] { return stop_.load() != StopReason::kNone; });
    const absl::Status kept = KeepSurveyed(pending);
    if (status.ok()) status = kept;
    if (!status.ok()) return status;
    absl::StatusOr<sinq::Plan> plan = PlanWidths(job_.spec, *source_, exporter, options, errors);
    if (!plan.ok()) return plan.status();
    plan_ = *std::move(plan);
    return absl::OkStatus();
  }

  // What an earlier attempt measured.
  absl::Status TakeSurveyed(WidthErrors& errors) {
    const absl::StatusOr<std::vector<FinishedUnit>> units = store_.FinishedUnits(job_.id);
    if (!units.ok()) return units.status();
    std::map<absl::string_view, absl::string_view> records;
    for (const FinishedUnit& unit : *units) records[unit.unit] = unit.record;
    for (const PlannedTensor& tensor : plan_.tensors) {
      if (!HasUnit(Phase::kWidths, tensor)) continue;
      const auto found = records.find(UnitName(Phase::kWidths, tensor));
      if (found == records.end()) continue;
      absl::StatusOr<std::vector<double>> measured = SurveyFromJson(tensor, found->second);
      if (!measured.ok()) return measured.status();
      errors[tensor.source.name] = *std::move(measured);
      CountDone(tensor);
    }
    return absl::OkStatus();
  }

  absl::Status KeepSurveyed(std::vector<FinishedUnit>& pending) {
    if (pending.empty()) return absl::OkStatus();
    absl::Status status = store_.AddFinishedUnits(lease_, pending);
    pending.clear();
    return status;
  }

  void CountDone(const PlannedTensor& tensor) {
    ++progress_.tensors_done;
    progress_.bytes_done += tensor.source.size_bytes;
  }

  // A source that changed between two attempts would mix two models in one output, another
  // arithmetic two ways to round it.
  absl::Status CheckIdentity() {
    const std::string identity =
        absl::StrCat(plan_.digest, " arithmetic ", options_.arithmetic_version);
    const absl::StatusOr<std::string> earlier = store_.PlanDigest(job_.id);
    if (!earlier.ok()) return earlier.status();
    if (earlier->empty()) return store_.SetPlanDigest(lease_, identity);
    if (*earlier == identity) return absl::OkStatus();
    // Version 1 wrote the digest alone.
    if (absl::StartsWith(*earlier, plan_.digest)) {
      return MakeError(absl::StatusCode::kFailedPrecondition, Reason::kVersionChanged,
                       "This job was begun by a sinqd that rounds otherwise, so what it has done "
                       "cannot be gone on with; submit a new job.");
    }
    return MakeError(absl::StatusCode::kFailedPrecondition, Reason::kMalformedSource,
                     "The source changed since this job began; submit a new job.");
  }

  absl::Status OpenOutput() {
    const absl::StatusOr<ResolvedPath> path = files_.Resolve(job_.spec.output_uri);
    if (!path.ok()) return path.status();
    absl::StatusOr<std::unique_ptr<Sink>> sink = OpenLocalSink(*path, job_.id);
    if (!sink.ok()) return sink.status();
    sink_ = *std::move(sink);
    already_published_ = (*sink_).IsPublished();
    if (already_published_) return absl::OkStatus();
    for (const PlannedFile& file : plan_.files) {
      if (absl::Status status = CreateShard(file); !status.ok()) return Annotate(status, file.name);
    }
    for (const PlannedExtra& extra : plan_.extras) {
      const PlannedFile& file = plan_.files[static_cast<size_t>(extra.range.file_index)];
      absl::Status status = sink_->WriteAt(file.name, extra.range.offset, Bytes(*extra.content));
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  // The earlier attempt died between publishing and saying so.
  absl::Status FinishPublished() {
    if (absl::Status status = sink_->Publish(); !status.ok()) return status;
    progress_.tensors_done = progress_.tensors_total;
    progress_.bytes_done = progress_.bytes_total;
    Enter(JobStage::kDone);
    return absl::OkStatus();
  }

  absl::Status CreateShard(const PlannedFile& file) {
    if (absl::Status status = sink_->CreateFile(file.name, file.size_bytes); !status.ok())
      return status;
    return sink_->WriteAt(file.name, 0, Bytes(file.header));
  }

  // Folding: column scales are measured on the way. They need not be durable before they are used,
  // because the next attempt would measure the same; what is durable need not be measured again.
  absl::Status Quantize(Checkpointer& checkpointer) {
    std::optional<Checkpointer> measuring;
    if (plan_.fold.active()) {
      measuring.emplace(plan_, Phase::kMeasure, *sink_, digesters_, store_, lease_,
                        options_.checkpoint_interval);
    }
    absl::Status status = RunUnits(measuring ? &*measuring : nullptr, checkpointer);
    // Keeps what is done, for the next attempt.
    absl::Status kept = measuring ? measuring->Finish(false) : absl::OkStatus();
    if (!status.ok()) kept.Update(checkpointer.Finish(false));
    return status.ok() || (absl::IsCancelled(status) && !kept.ok()) ? kept : status;
  }

  absl::Status RunUnits(Checkpointer* measuring, Checkpointer& quantizing) {
    PhaseLedger quantized{quantizing, {}};
    if (absl::Status status = TakeFinished(Phase::kQuantize, quantized); !status.ok())
      return status;
    std::optional<PhaseLedger> measured;
    std::optional<FoldScales> scales;
    if (measuring != nullptr) {
      scales.emplace(plan_);
      measured.emplace(PhaseLedger{*measuring, {}});
      if (absl::Status status = TakeFinished(Phase::kMeasure, *measured); !status.ok())
        return status;
    }
    kernels::HostMemory* const memory = workers_.host_memory();
    BufferPool pool(budget_, memory, std::numeric_limits<uint64_t>::max(),
                    LargestWeightsBytes(plan_));
    Workspaces workspaces(budget_, memory, LargestWorkspaceBytes(plan_, workers_),
                          workers_.UsefulTasks());
    FoldScales* const folded = scales ? &*scales : nullptr;
    Prefetcher prefetcher;
    const UnitContext context{plan_,
                              *source_,
                              workers_,
                              *sink_,
                              digesters_,
                              budget_,
                              pool,
                              workspaces,
                              prefetcher,
                              activations_.get(),
                              folded,
                              gguf_template_.get()};
    Pipeline pipeline(context, measured ? &*measured : nullptr, folded, quantized, metrics_,
                      on_progress_);
    const absl::Status status =
        pipeline.Run(progress_, [this] { return stop_.load() != StopReason::kNone; });
    progress_ = pipeline.progress();
    return status;
  }

  absl::Status TakeFinished(Phase phase, PhaseLedger& ledger) {
    const absl::StatusOr<std::vector<FinishedUnit>> units = store_.FinishedUnits(job_.id);
    if (!units.ok()) return units.status();
    std::map<std::string, std::string> records;
    for (const FinishedUnit& unit : *units) records[unit.unit] = unit.record;
    for (const PlannedTensor& tensor : plan_.tensors) {
      if (!HasUnit(phase, tensor)) continue;
      const auto found = records.find(UnitName(phase, tensor));
      if (found == records.end()) continue;
      absl::StatusOr<UnitRecord> record = UnitRecordFromJson(found->second);
      if (!record.ok()) return record.status();
      ledger.checkpointer.AddDurable(tensor, *record);
      ledger.finished.emplace(tensor.source.name, *std::move(record));
      CountDone(tensor);
    }
    return absl::OkStatus();
  }

  absl::Status Commit(Checkpointer& checkpointer) {
    if (absl::Status status = checkpointer.Finish(true); !status.ok()) return status;
    std::vector<ManifestFile> files = checkpointer.files();
    for (const PlannedFile& file : plan_.files) {
      if (absl::Status status = sink_->SyncFile(file.name); !status.ok()) return status;
    }
    for (const SideFile& file : plan_.side_files) {
      if (absl::Status status = sink_->PutFile(file.name, file.content); !status.ok())
        return Annotate(status, file.name);
      files.push_back({file.name, file.content.size(), Sha256Hex(file.content)});
    }
    for (const AuxFile& file : plan_.copied_files) {
      const absl::StatusOr<std::string> digest = CopyFile(file);
      if (!digest.ok()) return Annotate(digest.status(), file.name);
      files.push_back({file.name, file.size_bytes, *digest});
    }
    const std::string manifest =
        MakeManifest(job_, plan_, *source_, checkpointer.records(), files,
                     {options_.code_version, options_.arithmetic_version});
    if (absl::Status status = sink_->PutFile(kManifestFileName, manifest); !status.ok())
      return status;
    // A worker that slept through its lease must not publish.
    if (absl::Status status = store_.CheckLease(lease_); !status.ok()) return status;
    if (absl::Status status = sink_->Publish(); !status.ok()) return status;
    Enter(JobStage::kDone);
    return absl::OkStatus();
  }

  absl::StatusOr<std::string> CopyFile(const AuxFile& file) {
    const absl::StatusOr<std::unique_ptr<File>> from = source_->OpenAuxFile(file.name);
    if (!from.ok()) return from.status();
    if (absl::Status status = sink_->CreateFile(file.name, file.size_bytes); !status.ok())
      return status;
    Sha256 digest;
    std::vector<std::byte> piece(std::min(kCopyBytes, file.size_bytes));
    for (uint64_t at = 0; at < file.size_bytes; at += kCopyBytes) {
      const absl::Span<std::byte> part =
          absl::MakeSpan(piece).subspan(0, std::min(kCopyBytes, file.size_bytes - at));
      if (absl::Status status = (*from)->ReadAt(at, part); !status.ok()) return status;
      digest.Update(absl::Span<const std::byte>(part));
      if (absl::Status status = sink_->WriteAt(file.name, at, part); !status.ok()) return status;
    }
    if (absl::Status status = sink_->SyncFile(file.name); !status.ok()) return status;
    return digest.HexDigest();
  }

  const RunnerOptions& options_;
  WorkerPool& workers_;
  const FileSystem& files_;
  MemoryBudget& budget_;
  JobStore& store_;
  Metrics& metrics_;
  const Job& job_;
  const Lease& lease_;
  const std::atomic<StopReason>& stop_;
  const OnProgress on_progress_;
  std::unique_ptr<ModelSource> source_;
  std::unique_ptr<ActivationFile> activations_;  // if the recipe names one
  std::unique_ptr<GgufTemplate> gguf_template_;  // if the recipe names one
  sinq::Plan plan_;
  std::unique_ptr<Sink> sink_;
  std::deque<FileDigester> digesters_;
  bool already_published_ = false;
  JobProgress progress_;
  std::chrono::steady_clock::time_point stage_begin_;
};

class LocalJobRunner : public JobRunner {
 public:
  LocalJobRunner(const RunnerOptions& options, WorkerPool& workers, const FileSystem& files,
                 MemoryBudget& budget, JobStore& store, Metrics& metrics)
      : options_(options),
        workers_(workers),
        files_(files),
        budget_(budget),
        store_(store),
        metrics_(metrics) {}

  RunResult Run(
      const Job& job, const Lease& lease, const std::atomic<StopReason>& stop,
      absl::FunctionRef<void(const JobProgress&, absl::string_view tensor)> on_progress) override {
    return Attempt(options_, workers_, files_, budget_, store_, metrics_, job, lease, stop,
                   on_progress)
        .Run();
  }

  absl::Status Discard(const Job& job) override {
    const absl::StatusOr<ResolvedPath> path = files_.Resolve(job.spec.output_uri);
    if (!path.ok()) return path.status();
    return DiscardLocalStaging(*path, job.id);
  }

 private:
  const RunnerOptions options_;
  WorkerPool& workers_;
  const FileSystem& files_;
  MemoryBudget& budget_;
  JobStore& store_;
  Metrics& metrics_;
};

}  // namespace

std::unique_ptr<JobRunner> MakeJobRunner(const RunnerOptions& options, WorkerPool& workers,
                                         const FileSystem& files, MemoryBudget& budget,
                                         JobStore& store, Metrics& metrics) {
  return std::make_unique<LocalJobRunner>(options, workers, files, budget, store, metrics);
}

}  // namespace sinq
