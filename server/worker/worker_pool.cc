#include "server/worker/worker_pool.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/limits.h"
#include "server/base/log.h"
#include "server/base/machine.h"

namespace sinq {
namespace {

constexpr size_t kCpu = 0;  // index of the CPU worker
// One writes while the other goes through a long copy.
constexpr int kFinishingThreads = 2;

double NowSeconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

// Another worker may do what failed with these; any other error is the tensor's own. Unimplemented:
// a device need not know every method.
bool IsForAnother(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsResourceExhausted(status) ||
         absl::IsInternal(status) || absl::IsUnimplemented(status);
}

}  // namespace

// --- life ---

WorkerPool::WorkerPool(CpuWorkerOptions cpu, std::vector<DeviceWorkerOptions> devices,
                       Metrics& metrics)
    : metrics_(metrics), cpu_beside_devices_(cpu.beside_devices || devices.empty()) {
  AddWorker(std::move(cpu.backend), "cpu", "cpu", cpu.threads);
  for (DeviceWorkerOptions& device : devices) {
    AddWorker(std::move(device.backend), absl::StrCat("cuda:", device.device), "cuda",
              device.threads);
  }
  UpdateGauges();
  // Threads only now: they read workers_.
  for (size_t worker = 0; worker < workers_.size(); ++worker) {
    for (int i = 0; i < workers_[worker].threads; ++i) AddThread(worker, Role::kCompute);
  }
  for (int i = 0; i < kFinishingThreads; ++i) AddThread(kCpu, Role::kFinish);
}

void WorkerPool::AddThread(size_t worker, Role role) {
  threads_.emplace_back([this, worker, role] {
    if (role == Role::kCompute) LetOthersGoFirst();
    Loop(worker, role);
  });
}

void WorkerPool::AddWorker(std::unique_ptr<kernels::Backend> backend, std::string name,
                           std::string kind, int threads) {
  Worker worker;
  worker.architecture = backend->GetCapabilities().target;
  worker.backend = std::move(backend);
  worker.name = std::move(name);
  worker.kind = std::move(kind);
  worker.threads = std::max(threads, 1);
  worker.is_device = !workers_.empty();
  workers_.push_back(std::move(worker));
  MutexLock gauge_lock(&gauge_mutex_);
  samples_.push_back({0, NowSeconds()});
  MutexLock lock(&mutex_);
  states_.emplace_back();
}

WorkerPool::~WorkerPool() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
  }
  for (std::thread& thread : threads_) thread.join();
}

// --- the queue ---

void WorkerPool::Submit(WorkerTask task) {
  Pending pending;
  pending.task = std::move(task);
  pending.refused_by.resize(workers_.size());
  MutexLock lock(&mutex_);
  ++unfinished_;
  queue_.push_back(std::move(pending));
}

bool WorkerPool::DeviceMayCompute(size_t device, const Pending& task) const {
  return workers_[device].is_device && !states_[device].lost && !task.refused_by[device] &&
         task.devices_lost < kMaxDevicesLostPerTensor;
}

bool WorkerPool::MayCompute(size_t worker, const Pending& task) const {
  if (!task.NeedsBackend()) return false;
  if (worker != kCpu) return DeviceMayCompute(worker, task);
  if (cpu_beside_devices_) return true;
  for (size_t device = 0; device < workers_.size(); ++device) {
    if (DeviceMayCompute(device, task)) return false;
  }
  return true;
}

size_t WorkerPool::FindToCompute(size_t worker) const {
  size_t at = 0;
  while (at < queue_.size() && !MayCompute(worker, queue_[at])) ++at;
  return at;
}

size_t WorkerPool::FindToFinish() const {
  size_t at = 0;
  while (at < queue_.size() && queue_[at].NeedsBackend()) ++at;
  return at;
}

WorkerPool::Turn WorkerPool::Take(size_t worker, Role role) {
  // Whoever waits for the disk here cannot compute meanwhile.
  const bool finishes = worker == kCpu && (role == Role::kFinish || !cpu_beside_devices_);
  size_t found = 0;
  SharedLoop* loop = nullptr;
  MutexLock lock(&mutex_);
  const auto ready = [&] {
    mutex_.AssertHeld();
    const bool computes = role == Role::kCompute && !states_[worker].lost;
    found = computes ? FindToCompute(worker) : queue_.size();
    loop = computes && worker == kCpu && found == queue_.size() ? FindLoop() : nullptr;
    if (finishes && found == queue_.size() && loop == nullptr) found = FindToFinish();
    return found < queue_.size() || loop != nullptr || states_[worker].lost ||
           (stopping_ && unfinished_ == 0);
  };
  mutex_.Await(absl::Condition(&ready));
  Turn turn;
  turn.loop = loop;
  if (found < queue_.size()) {
    turn.task = std::move(queue_[found]);
    queue_.erase(queue_.begin() + static_cast<std::ptrdiff_t>(found));
  }
  if (turn.loop != nullptr) ++turn.loop->helpers;
  if (turn.task || turn.loop != nullptr) ++states_[worker].busy;
  return turn;
}

// Ahead of what has not begun: it holds memory that is nearly free.
void WorkerPool::PutBack(size_t worker, Pending task) {
  MutexLock lock(&mutex_);
  --states_[worker].busy;
  queue_.push_front(std::move(task));
}

void WorkerPool::Loop(size_t worker, Role role) {
  while (true) {
    Turn turn = Take(worker, role);
    if (turn.loop != nullptr) {
      Help(*turn.loop);
    } else if (!turn.task) {
      return;
    } else if (turn.task->NeedsBackend()) {
      Compute(worker, *std::move(turn.task));
    } else {
      Finish(*std::move(turn.task));
    }
  }
}

// --- loops ---

void WorkerPool::SharedLoop::Work() {
  for (size_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) body(i);
}

WorkerPool::SharedLoop* WorkerPool::FindLoop() const {
  const auto found = std::find_if(loops_.begin(), loops_.end(),
                                  [](const SharedLoop* loop) { return loop->HasMore(); });
  return found == loops_.end() ? nullptr : *found;
}

void WorkerPool::Help(SharedLoop& loop) {
  loop.Work();
  MutexLock lock(&mutex_);
  --states_[kCpu].busy;
  --loop.helpers;  // last: the loop may go now
}

void WorkerPool::RunShared(size_t count, absl::FunctionRef<void(size_t)> body) {
  if (count < 2 || workers_[kCpu].threads < 2) return kernels::RunSerially(count, body);
  SharedLoop loop{count, body};
  {
    MutexLock lock(&mutex_);
    loops_.push_back(&loop);
  }
  loop.Work();
  MutexLock lock(&mutex_);
  loops_.erase(std::find(loops_.begin(), loops_.end(), &loop));
  const auto is_alone = [&loop] { return loop.helpers == 0; };
  mutex_.Await(absl::Condition(&is_alone));
}

// --- tasks ---

// What follows is for a thread that finishes; this one goes on computing, or feeding its device.
void WorkerPool::Compute(size_t worker, Pending task) {
  const auto run_shared = [this](size_t count, absl::FunctionRef<void(size_t)> body) {
    RunShared(count, body);
  };
  absl::Status status = task.task.compute({*workers_[worker].backend, run_shared});
  const bool is_device = workers_[worker].is_device;
  if (is_device) HandleFault(worker, FaultOf(worker, status), status, task);
  if (!is_device || !IsForAnother(status)) {
    task.computed = std::move(status);
    task.computed_by = workers_[worker].kind;
  }
  PutBack(worker, std::move(task));
}

void WorkerPool::Finish(Pending task) {
  task.task.finish(task.computed.value_or(absl::OkStatus()),
                   task.computed ? task.computed_by : workers_[kCpu].kind);
  task = Pending();  // what it holds goes before it counts as finished
  MutexLock lock(&mutex_);
  --states_[kCpu].busy;
  --unfinished_;
}

// --- devices that fail ---

WorkerPool::Fault WorkerPool::FaultOf(size_t device, const absl::Status& status) const {
  if (absl::IsUnavailable(status) || !workers_[device].backend->healthy()) return Fault::kLost;
  if (absl::IsResourceExhausted(status)) return Fault::kOutOfMemory;
  return absl::IsInternal(status) ? Fault::kLaunch : Fault::kNone;
}

void WorkerPool::HandleFault(size_t device, Fault fault, const absl::Status& status,
                             Pending& task) {
  if (fault == Fault::kOutOfMemory || fault == Fault::kLaunch) {
    const std::string kind = fault == Fault::kLaunch ? "launch" : "oom";
    metrics_.Add("sinq_device_errors_total", 1,
                 {{"device", workers_[device].name}, {"kind", kind}});
    Log(LogLevel::kWarning, "device_error",
        {{"device", workers_[device].name},
         {"kind", kind},
         {"error", std::string(status.message())}});
  }
  if (NoteFault(device, fault, task)) AnnounceLoss(device, status);
}

bool WorkerPool::NoteFault(size_t device, Fault fault, Pending& task) {
  MutexLock lock(&mutex_);
  State& state = states_[device];
  task.refused_by[device] = true;  // looked at only if the task has to go to another
  task.devices_lost += fault == Fault::kLost ? 1 : 0;
  // Too little memory is no fault of the device: a smaller tensor will do.
  if (fault == Fault::kNone) state.launches_failed = 0;
  if (fault == Fault::kLaunch) ++state.launches_failed;
  const bool was_lost = state.lost;  // another thread of the same device met it first
  state.lost = was_lost || fault == Fault::kLost || state.launches_failed >= kMaxDeviceErrorsInARow;
  return state.lost && !was_lost;
}

void WorkerPool::AnnounceLoss(size_t device, const absl::Status& status) {
  WorkerStatus now;
  int left = 0;
  {
    MutexLock lock(&mutex_);
    now = StatusOf(device);
    left = HealthyDevices();
  }
  metrics_.Add("sinq_device_errors_total", 1, {{"device", now.name}, {"kind", "lost"}});
  Log(LogLevel::kError, "device_lost",
      {{"device", now.name},
       {"error", std::string(status.message())},
       {"devices_left", absl::StrCat(left)}});
  if (left == 0) {
    Log(LogLevel::kError, "all_devices_lost",
        {{"backend", "cpu"},
         {"threads", absl::StrCat(workers_[kCpu].threads)},
         {"advice", "the CPU goes on, slower; restart sinqd when the devices are well"}});
  }
  PublishStates();
  MutexLock lock(&observer_mutex_);
  if (observer_) observer_(now);
}

void WorkerPool::SetHealthObserver(HealthObserver observer) {
  MutexLock lock(&observer_mutex_);
  observer_ = std::move(observer);
}

// --- what others ask ---

int WorkerPool::HealthyDevices() const {
  int count = 0;
  for (size_t i = 0; i < workers_.size(); ++i) {
    count += workers_[i].is_device && !states_[i].lost ? 1 : 0;
  }
  return count;
}

int WorkerPool::UsefulTasks() const {
  MutexLock lock(&mutex_);
  int computing = 0;
  for (size_t i = 0; i < workers_.size(); ++i) {
    if (workers_[i].is_device && !states_[i].lost) computing += workers_[i].threads;
  }
  const int cpu = workers_[kCpu].threads;
  // One in the hands of each CPU thread and one more, because threads without a task share those of
  // others; for each thread of a device another one waiting.
  if (computing == 0) return cpu + 1;
  return 2 * computing + (cpu_beside_devices_ ? cpu + 1 : cpu);
}

uint64_t WorkerPool::ScratchBytes(const kernels::QuantParams& params, int64_t rows,
                                  int64_t cols) const {
  uint64_t most = 0;
  for (const Worker& worker : workers_) {
    most = std::max<uint64_t>(most, worker.backend->ScratchBytes(params, rows, cols));
  }
  return most;
}

kernels::HostMemory* WorkerPool::host_memory() const {
  MutexLock lock(&mutex_);
  for (size_t i = 0; i < workers_.size(); ++i) {
    kernels::HostMemory* memory = workers_[i].backend->host_memory();
    if (memory != nullptr && !states_[i].lost) return memory;
  }
  return nullptr;
}

WorkerStatus WorkerPool::StatusOf(size_t worker) const {
  const Worker& fixed = workers_[worker];
  return {fixed.name,    fixed.kind,           fixed.architecture,
          fixed.threads, std::min(states_[worker].busy, fixed.threads),
          !states_[worker].lost, {}};
}

std::vector<WorkerStatus> WorkerPool::Workers() const {
  std::vector<WorkerStatus> out;
  {
    MutexLock lock(&mutex_);
    for (size_t i = 0; i < workers_.size(); ++i) out.push_back(StatusOf(i));
  }
  // Without the lock: a driver may take its time.
  for (size_t i = 0; i < workers_.size(); ++i) out[i].stats = workers_[i].backend->device_stats();
  return out;
}

kernels::DeviceStats WorkerPool::DeviceTotals() const {
  kernels::DeviceStats sum;
  for (const WorkerStatus& worker : Workers()) {
    sum.total_bytes += worker.stats.total_bytes;
    sum.used_bytes += worker.stats.used_bytes;
    sum.reserved_bytes += worker.stats.reserved_bytes;
    sum.peak_bytes += worker.stats.peak_bytes;
    sum.h2d_seconds += worker.stats.h2d_seconds;
    sum.quantize_seconds += worker.stats.quantize_seconds;
    sum.d2h_seconds += worker.stats.d2h_seconds;
  }
  return sum;
}

// --- gauges ---

void WorkerPool::SetDraining() {
  {
    MutexLock lock(&mutex_);
    draining_ = true;
  }
  UpdateGauges();
}

void WorkerPool::UpdateGauges() {
  const std::vector<WorkerStatus> workers = Workers();
  {
    MutexLock lock(&gauge_mutex_);
    for (size_t i = 0; i < workers.size(); ++i) {
      if (workers_[i].is_device) PublishDevice(workers[i], samples_[i]);
    }
  }
  PublishStates();
}

void WorkerPool::PublishDevice(const WorkerStatus& device, Sample& last) {
  const auto memory = [&](const char* kind, uint64_t bytes) {
    metrics_.Set("sinq_device_memory_bytes", static_cast<double>(bytes),
                 {{"device", device.name}, {"kind", kind}});
  };
  memory("total", device.stats.total_bytes);
  memory("used", device.stats.used_bytes);
  memory("reserved", device.stats.reserved_bytes);
  memory("peak", device.stats.peak_bytes);
  const double now = NowSeconds(), passed = now - last.at_seconds;
  if (passed <= 0) return;
  const double share = (device.stats.quantize_seconds - last.quantize_seconds) / passed;
  metrics_.Set("sinq_device_utilization_ratio", std::clamp(share, 0.0, 1.0),
               {{"device", device.name}});
  last = {device.stats.quantize_seconds, now};
}

// Threads, also of devices: one for each tensor that a device works on at once.
void WorkerPool::PublishStates() {
  std::map<std::string, std::map<std::string, int>> pools;
  {
    MutexLock lock(&mutex_);
    for (size_t i = 0; i < workers_.size(); ++i) {
      std::map<std::string, int>& pool = pools[workers_[i].kind];
      const int threads = workers_[i].threads, busy = std::min(states_[i].busy, threads);
      const bool lost = states_[i].lost;
      pool["unhealthy"] += lost ? threads : 0;
      pool["busy"] += lost || draining_ ? 0 : busy;
      pool["draining"] += !lost && draining_ ? busy : 0;
      pool["idle"] += lost ? 0 : threads - busy;
    }
  }
  for (const auto& [pool, states] : pools) {
    for (const auto& [state, count] : states) {
      metrics_.Set("sinq_worker_state", count, {{"pool", pool}, {"state", state}});
    }
  }
}

}  // namespace sinq
