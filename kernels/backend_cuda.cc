#include "kernels/backend_cuda.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/activation_search.h"  // CheckActivations
#include "kernels/layout.h"
#include "kernels/matrix_check.h"
#include "kernels/measuring.h"

namespace sinq::kernels {
namespace {

constexpr int kOldestMajor = 8;  // the oldest compute capability that gets machine code
// How often a call that waits for a stream asks whether it is cancelled.
constexpr std::chrono::milliseconds kCancelPoll(50);
// A part of the free memory that others on the device may take while we run.
constexpr size_t FourFifths(size_t bytes) { return bytes / 5 * 4; }

absl::Status CheckOptions(const CudaOptions& options) {
  if (options.streams < 1 || options.streams > kMaxCudaStreams) {
    return absl::InvalidArgumentError(
        absl::StrCat("streams is ", options.streams, "; it must be 1 .. ", kMaxCudaStreams));
  }
  std::vector<int> devices = options.devices;
  std::sort(devices.begin(), devices.end());
  const auto twice = std::adjacent_find(devices.begin(), devices.end());
  if (twice != devices.end())
    return absl::InvalidArgumentError(absl::StrCat("device ", *twice, " is named twice"));
  return absl::OkStatus();
}

absl::Status CheckPlanes(const std::vector<PlaneSpec>& specs,
                         absl::Span<const absl::Span<std::byte>> planes) {
  if (specs.size() != planes.size() || specs.size() > kMaxPlanes)
    return absl::InternalError("wrong number of planes");
  for (size_t i = 0; i < specs.size(); ++i) {
    if (specs[i].size_bytes != planes[i].size())
      return absl::InternalError(absl::StrCat("plane ", i, " has the wrong size"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaBackend>> CudaBackend::Make(
    std::shared_ptr<CudaRuntime> runtime, std::shared_ptr<CudaHostMemory> host_memory, int device,
    const CudaOptions& options) {
  absl::StatusOr<CudaDeviceInfo> info = runtime->DeviceInfo(device);
  if (!info.ok()) return info.status();
  if (info->major < kOldestMajor) {
    return absl::FailedPreconditionError(
        absl::StrCat("device ", device, " (", info->name, ") has compute capability ", info->major,
                     ".", info->minor, "; ", kOldestMajor, ".0 or later is needed"));
  }
  if (absl::Status status = runtime->UseDevice(device); !status.ok()) return status;
  std::unique_ptr<CudaBackend> backend(
      new CudaBackend(std::move(runtime), std::move(host_memory), device, std::move(*info),
                      std::max<size_t>(options.panel_floor_bytes, 1)));
  if (absl::Status status = backend->MakeSlots(options); !status.ok()) return status;
  return backend;
}

CudaBackend::~CudaBackend() {
  // Of a lost device nothing can be freed, and nothing needs to be.
  static_cast<void>(runtime_->UseDevice(device_));
  slots_.clear();
}

absl::Status CudaBackend::MakeSlots(const CudaOptions& options) {
  const absl::StatusOr<size_t> free_bytes = runtime_->FreeDeviceBytes();
  if (!free_bytes.ok()) return free_bytes.status();
  const bool automatic = options.device_budget_bytes == 0;
  const size_t budget_bytes = automatic ? FourFifths(*free_bytes) : options.device_budget_bytes;
  size_t arena_bytes =
      budget_bytes / static_cast<size_t>(options.streams) / kArenaAlignment * kArenaAlignment;
  absl::Status status = TryMakeSlots(options.streams, arena_bytes);
  // Others may have taken the memory since, or hold it in pieces.
  while (automatic && absl::IsResourceExhausted(status) && arena_bytes / 2 >= kSmallestArenaBytes) {
    arena_bytes = arena_bytes / 2 / kArenaAlignment * kArenaAlignment;
    status = TryMakeSlots(options.streams, arena_bytes);
  }
  if (absl::IsResourceExhausted(status)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("device ", device_, " (", info_.name, ") has ", *free_bytes,
                     " bytes free, not enough for ", options.streams, " streams of ", arena_bytes,
                     " bytes; lower the device budget or the streams: ", status.message()));
  }
  return status;
}

absl::Status CudaBackend::TryMakeSlots(int streams, size_t arena_bytes) {
  if (arena_bytes == 0) return absl::ResourceExhaustedError("nothing is left for a stream");
  for (int s = 0; s < streams; ++s) {
    absl::StatusOr<std::unique_ptr<CudaSlot>> slot = CudaSlot::Make(runtime_, arena_bytes);
    if (!slot.ok()) {
      slots_.clear();
      free_slots_.clear();
      return slot.status();
    }
    free_slots_.push_back(slot->get());
    slots_.push_back(std::move(*slot));
  }
  stats_.total_bytes = info_.total_bytes;
  stats_.reserved_bytes = static_cast<size_t>(streams) * arena_bytes;
  return absl::OkStatus();
}

Capabilities CudaBackend::GetCapabilities() const {
  return {"cuda", absl::StrCat("sm_", info_.major, info_.minor)};
}

DeviceStats CudaBackend::device_stats() const {
  size_t used_bytes = 0;
  if (healthy() && runtime_->UseDevice(device_).ok()) {
    const absl::StatusOr<size_t> free_bytes = runtime_->FreeDeviceBytes();
    if (free_bytes.ok()) used_bytes = info_.total_bytes - std::min(info_.total_bytes, *free_bytes);
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  DeviceStats stats = stats_;
  stats.used_bytes = used_bytes;
  return stats;
}

size_t CudaBackend::ScratchBytes(const QuantParams&, int64_t, int64_t) const { return 0; }

absl::Status CudaBackend::Quantize(const MatrixView& in, const QuantParams& params,
                                   absl::Span<std::byte>,
                                   absl::Span<const absl::Span<std::byte>> planes, ParallelFor,
                                   absl::FunctionRef<bool()> cancelled, TensorStats* stats) const {
  *stats = TensorStats();
  if (absl::Status status = Validate(params); !status.ok()) return status;
  const absl::StatusOr<std::vector<PlaneSpec>> specs =
      PlanesOf(params, in.rows, in.cols, DenseDtype(in.dtype));
  if (!specs.ok()) return specs.status();
  if (absl::Status status = CheckPlanes(*specs, planes); !status.ok()) return status;
  if (absl::Status status = CheckFactors(in); !status.ok()) return status;
  if (NeedsActivations(params.method)) {
    if (absl::Status status = CheckActivations(in); !status.ok()) return status;
  }
  const CudaTensorCall call{in, planes, cancelled, stats};
  return RunOnSlot<CudaMemoryPlan>(
      cancelled,
      [&](size_t arena_bytes, size_t limit_bytes) {
        return PlanCudaMemory(in, params, arena_bytes, limit_bytes);
      },
      [&](CudaSlot& slot, const CudaMemoryPlan& plan) {
        *stats = TensorStats();
        CudaTensorJob job(*runtime_, *host_memory_, slot, plan, call);
        const absl::Status status = job.Run();
        return Attempt{status, job.seconds(), job.launch_failed()};
      });
}

absl::Status CudaBackend::Measure(std::vector<CudaTensor> tensors,
                                  const CudaMeasureCall& call) const {
  return RunOnSlot<CudaMeasurePlan>(
      call.cancelled,
      [&](size_t arena_bytes, size_t limit_bytes) {
        return PlanCudaMeasure(call.in, tensors, arena_bytes, limit_bytes);
      },
      [&](CudaSlot& slot, const CudaMeasurePlan& plan) {
        CudaMeasureJob job(*runtime_, *host_memory_, slot, plan, call);
        const absl::Status status = job.Run();
        return Attempt{status, job.seconds(), job.launch_failed()};
      });
}

absl::Status CudaBackend::MeasureColumns(const MatrixView& in, const QuantParams& params,
                                         absl::Span<std::byte>, absl::Span<float> t, ParallelFor,
                                         absl::FunctionRef<bool()> cancelled) const {
  if (absl::Status status = CheckMeasurable(in, params); !status.ok()) return status;
  if (t.size() != static_cast<size_t>(in.cols)) return absl::InternalError("t has the wrong size");
  return Measure({PlanColumnMeasure(params, in.rows, in.cols)}, {in, t, {}, cancelled});
}

absl::Status CudaBackend::MeasureErrors(const MatrixView& in,
                                        absl::Span<const QuantParams> candidates,
                                        absl::Span<std::byte>, absl::Span<Measurement> measured,
                                        ParallelFor, absl::FunctionRef<bool()> cancelled) const {
  if (measured.size() != candidates.size())
    return absl::InternalError("there is not one measurement for each candidate");
  for (const QuantParams& candidate : candidates) {
    if (absl::Status status = CheckMeasurable(in, candidate); !status.ok()) return status;
  }
  for (const std::vector<size_t>& shared : SharedTiles(in.cols, candidates)) {
    std::vector<CudaTensor> tensors;
    for (const size_t c : shared)
      tensors.push_back(PlanErrorMeasure(candidates[c], in.rows, in.cols));
    std::vector<Measurement> of_set(shared.size());
    absl::Status status = Measure(std::move(tensors), {in, {}, absl::MakeSpan(of_set), cancelled});
    if (!status.ok()) return status;
    for (size_t i = 0; i < shared.size(); ++i) measured[shared[i]] = of_set[i];
  }
  return absl::OkStatus();
}

template <class Plan>
absl::Status CudaBackend::RunOnSlot(
    absl::FunctionRef<bool()> cancelled,
    absl::FunctionRef<absl::StatusOr<Plan>(size_t arena_bytes, size_t limit_bytes)> make_plan,
    absl::FunctionRef<Attempt(CudaSlot&, const Plan&)> attempt) const {
  const absl::StatusOr<CudaSlot*> slot = TakeSlot(cancelled);
  if (!slot.ok()) return slot.status();
  absl::Status status = ShrinkUntilItFits(**slot, make_plan, attempt);
  GiveBack(*slot);
  return status;
}

absl::StatusOr<CudaSlot*> CudaBackend::TakeSlot(absl::FunctionRef<bool()> cancelled) const {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!lost_ && free_slots_.empty()) {
    slot_free_.wait_for(lock, kCancelPoll);
    lock.unlock();
    if (cancelled()) return absl::CancelledError("stopped while waiting for a stream");
    lock.lock();
  }
  if (lost_) return lost_status_;
  CudaSlot* const slot = free_slots_.back();
  free_slots_.pop_back();
  return slot;
}

void CudaBackend::GiveBack(CudaSlot* slot) const {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_slots_.push_back(slot);
  }
  slot_free_.notify_one();
}

template <class Plan>
absl::Status CudaBackend::ShrinkUntilItFits(
    CudaSlot& slot,
    absl::FunctionRef<absl::StatusOr<Plan>(size_t arena_bytes, size_t limit_bytes)> make_plan,
    absl::FunctionRef<Attempt(CudaSlot&, const Plan&)> attempt) const {
  if (absl::Status status = runtime_->UseDevice(device_); !status.ok()) {
    NoteLoss(status);
    return status;
  }
  const size_t arena_bytes = slot.arena().size_bytes();
  absl::StatusOr<Plan> plan = make_plan(arena_bytes, arena_bytes);
  if (!plan.ok()) return plan.status();
  for (;;) {
    NoteBegin(plan->total_bytes());
    const Attempt done = attempt(slot, *plan);
    NoteEnd(plan->total_bytes(), done);
    const size_t smaller_bytes = plan->moving_bytes / 2;
    if (!absl::IsResourceExhausted(done.status) || smaller_bytes < panel_floor_bytes_)
      return done.status;
    plan = make_plan(arena_bytes, smaller_bytes);
    // The tensor does not go into smaller pieces: what the device said is what counts.
    if (!plan.ok()) return done.status;
  }
}

void CudaBackend::NoteBegin(size_t plan_bytes) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  taken_bytes_ += plan_bytes;
  stats_.peak_bytes = std::max<uint64_t>(stats_.peak_bytes, taken_bytes_);
}

void CudaBackend::NoteEnd(size_t plan_bytes, const Attempt& attempt) const {
  const auto seconds = [&attempt](CudaPhase phase) {
    return attempt.seconds[static_cast<size_t>(phase)];
  };
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    taken_bytes_ -= plan_bytes;
    stats_.h2d_seconds += seconds(CudaPhase::kCopyIn);
    stats_.quantize_seconds += seconds(CudaPhase::kCompute);
    stats_.d2h_seconds += seconds(CudaPhase::kCopyOut);
    stats_.out_of_memory_errors += absl::IsResourceExhausted(attempt.status);
    stats_.lost_errors += absl::IsUnavailable(attempt.status);
    stats_.launch_errors += attempt.launch_failed;
  }
  NoteLoss(attempt.status);
}

void CudaBackend::NoteLoss(const absl::Status& status) const {
  if (!absl::IsUnavailable(status)) return;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (lost_) return;
    lost_status_ = absl::UnavailableError(
        absl::StrCat("device ", device_, " (", info_.name, ") is lost: ", status.message()));
    lost_ = true;
  }
  slot_free_.notify_all();
}

absl::StatusOr<std::vector<std::unique_ptr<Backend>>> MakeCudaBackendsOn(
    std::shared_ptr<CudaRuntime> runtime, const CudaOptions& options) {
  if (absl::Status status = CheckOptions(options); !status.ok()) return status;
  const absl::StatusOr<int> count = runtime->DeviceCount();
  if (!count.ok()) return count.status();
  if (*count == 0) return absl::NotFoundError("the CUDA driver sees no device");
  std::vector<int> devices = options.devices;
  if (devices.empty()) {
    devices.resize(static_cast<size_t>(*count));
    std::iota(devices.begin(), devices.end(), 0);
  }
  auto host_memory = std::make_shared<CudaHostMemory>(runtime);
  std::vector<std::unique_ptr<Backend>> backends;
  for (const int device : devices) {
    if (device < 0 || device >= *count) {
      return absl::NotFoundError(
          absl::StrCat("there is no CUDA device ", device, "; the driver sees ", *count));
    }
    absl::StatusOr<std::unique_ptr<CudaBackend>> backend =
        CudaBackend::Make(runtime, host_memory, device, options);
    if (!backend.ok()) return backend.status();
    backends.push_back(std::move(*backend));
  }
  return backends;
}

}  // namespace sinq::kernels
