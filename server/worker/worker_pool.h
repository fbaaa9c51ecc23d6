// The backends of this server with their threads. All arithmetic of jobs and tensor streams runs
// here: on the devices, or on the CPU where there is none or none is left.
#ifndef SINQ_SERVER_WORKER_WORKER_POOL_H_
#define SINQ_SERVER_WORKER_WORKER_POOL_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "kernels/backend.h"
#include "server/base/metrics.h"
#include "server/base/mutex.h"

namespace sinq {

struct CpuWorkerOptions {
  std::unique_ptr<kernels::Backend> backend;
  int threads = 1;
  // False: computes only what no device can; the threads still do copies and everything that
  // follows the arithmetic. The bytes are the same either way.
  bool beside_devices = false;
};

struct DeviceWorkerOptions {
  std::unique_ptr<kernels::Backend> backend;
  int device = 0;   // "cuda:0"
  int threads = 1;  // so many tensors at once: copies and arithmetic overlap
};

// What a task computes with: some worker's backend, and a loop in which CPU threads that have no
// task of their own take part. Any number of loops may run at once.
struct Computing {
  const kernels::Backend& backend;
  kernels::ParallelFor parallel_for;
};

// One piece of work. `compute` is arithmetic on some worker's backend and returns the backend's
// status; if a device fails in it, it is called again on another worker, so it must not change its
// input. Empty for work that needs no backend. Then `finish` is called once, with the last status
// and the kind of worker that gave it ("cpu", "cuda"); it may wait for a disk, so there are threads
// for that alone. Neither may wait for memory or for another task, and neither may throw.
struct WorkerTask {
  std::function<absl::Status(const Computing&)> compute;
  std::function<void(const absl::Status&, absl::string_view worker_kind)> finish;
};

struct WorkerStatus {
  std::string name;          // "cpu", "cuda:0"; of health, metrics and logs
  std::string kind;          // "cpu", "cuda"
  std::string architecture;  // "AVX3_ZEN4", "sm_90"
  int threads = 0;
  int busy = 0;  // threads, those that only finish counted in
  bool healthy = true;
  kernels::DeviceStats stats;
};

// Thread-safe. A device is taken out for good when it is lost, or after kMaxDeviceErrorsInARow
// launches that failed; what it was working on is done elsewhere, at last by the CPU, whose errors
// are the task's own. No worker gets a task twice, so a task ends. The queue is bounded by those
// who submit. Whoever submits waits for its tasks before the pool goes.
class WorkerPool {
 public:
  // Called without a lock held, one call at a time, when a worker's health changes.
  using HealthObserver = std::function<void(const WorkerStatus&)>;

  // At most kMaxDevices devices.
  WorkerPool(CpuWorkerOptions cpu, std::vector<DeviceWorkerOptions> devices, Metrics& metrics);
  // Runs what is queued, then joins.
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  void Submit(WorkerTask task) ABSL_LOCKS_EXCLUDED(mutex_);
  // How many tasks of one submitter keep every thread that works now busy.
  int UsefulTasks() const ABSL_LOCKS_EXCLUDED(mutex_);
  // Host scratch that suffices for every worker.
  uint64_t ScratchBytes(const kernels::QuantParams& params, int64_t rows, int64_t cols) const;
  // Where inputs and outputs should lie: that of the first healthy device; null: anywhere. Lives as
  // long as the pool.
  kernels::HostMemory* host_memory() const ABSL_LOCKS_EXCLUDED(mutex_);

  // The CPU first, then the devices in order.
  std::vector<WorkerStatus> Workers() const ABSL_LOCKS_EXCLUDED(mutex_);
  // Figures of all devices, added up.
  kernels::DeviceStats DeviceTotals() const;
  // From time to time: memory and load of devices, workers by state.
  void UpdateGauges() ABSL_LOCKS_EXCLUDED(mutex_, gauge_mutex_);
  // From now on working threads count as draining.
  void SetDraining() ABSL_LOCKS_EXCLUDED(mutex_, gauge_mutex_);
  // One observer; empty removes it, and no call of it is under way then.
  void SetHealthObserver(HealthObserver observer) ABSL_LOCKS_EXCLUDED(observer_mutex_);

 private:
  // Constant after construction; the CPU is the first.
  struct Worker {
    std::unique_ptr<kernels::Backend> backend;
    std::string name, kind, architecture;
    int threads = 1;
    bool is_device = false;
  };
  struct State {
    bool lost = false;
    int busy = 0;             // threads
    int launches_failed = 0;  // one after another
  };
  enum class Fault : uint8_t { kNone, kOutOfMemory, kLaunch, kLost };
  struct Pending {
    WorkerTask task;
    std::vector<bool> refused_by;  // by worker
    int devices_lost = 0;          // while they had this task
    std::optional<absl::Status> computed;
    std::string computed_by;

    bool NeedsBackend() const { return task.compute && !computed; }
  };
  // A loop of one task, on the stack of its thread.
  struct SharedLoop {
    const size_t count;
    const absl::FunctionRef<void(size_t)> body;
    std::atomic<size_t> next = 0;
    int helpers = 0;  // under the pool's mutex_

    bool HasMore() const { return next.load(std::memory_order_relaxed) < count; }
    void Work();
  };
  // What a thread does next: a task, or a part in a loop, or, without either, nothing any more.
  struct Turn {
    std::optional<Pending> task;
    SharedLoop* loop = nullptr;
  };
  // Figures at the last update, for shares of the time since.
  struct Sample {
    double quantize_seconds = 0, at_seconds = 0;
  };

  // What a thread is for. Where the CPU leaves computing to devices, its threads that would compute
  // finish too.
  enum class Role : uint8_t { kCompute, kFinish };

  void AddWorker(std::unique_ptr<kernels::Backend> backend, std::string name, std::string kind,
                 int threads);
  void AddThread(size_t worker, Role role);
  void Loop(size_t worker, Role role) ABSL_LOCKS_EXCLUDED(mutex_);
  Turn Take(size_t worker, Role role) ABSL_LOCKS_EXCLUDED(mutex_);
  // The next task for such a thread to compute, or to finish: its place in the queue, which ends
  // there if there is none.
  size_t FindToCompute(size_t worker) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  size_t FindToFinish() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // A loop for a thread of the CPU to take part in, or null.
  SharedLoop* FindLoop() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Help(SharedLoop& loop) ABSL_LOCKS_EXCLUDED(mutex_);
  // As kernels::ParallelFor.
  void RunShared(size_t count, absl::FunctionRef<void(size_t)> body) ABSL_LOCKS_EXCLUDED(mutex_);
  bool MayCompute(size_t worker, const Pending& task) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool DeviceMayCompute(size_t device, const Pending& task) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void PutBack(size_t worker, Pending task) ABSL_LOCKS_EXCLUDED(mutex_);
  void Compute(size_t worker, Pending task);
  void Finish(Pending task);
  // What `status` says about the device that gave it.
  Fault FaultOf(size_t device, const absl::Status& status) const;
  void HandleFault(size_t device, Fault fault, const absl::Status& status, Pending& task)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // True if the fault takes the device out.
  bool NoteFault(size_t device, Fault fault, Pending& task) ABSL_LOCKS_EXCLUDED(mutex_);
  void AnnounceLoss(size_t device, const absl::Status& status)
      ABSL_LOCKS_EXCLUDED(mutex_, observer_mutex_);
  int HealthyDevices() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  WorkerStatus StatusOf(size_t worker) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void PublishStates() ABSL_LOCKS_EXCLUDED(mutex_);
  void PublishDevice(const WorkerStatus& device, Sample& last);

  Metrics& metrics_;
  const bool cpu_beside_devices_;
  std::vector<Worker> workers_;  // constant after construction
  mutable Mutex mutex_;
  std::vector<State> states_ ABSL_GUARDED_BY(mutex_);
  std::deque<Pending> queue_ ABSL_GUARDED_BY(mutex_);
  std::vector<SharedLoop*> loops_ ABSL_GUARDED_BY(mutex_);
  int unfinished_ ABSL_GUARDED_BY(mutex_) = 0;  // tasks submitted whose finish has not returned
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  Mutex gauge_mutex_;  // taken before mutex_
  std::vector<Sample> samples_ ABSL_GUARDED_BY(gauge_mutex_);
  Mutex observer_mutex_;
  HealthObserver observer_ ABSL_GUARDED_BY(observer_mutex_);
  std::vector<std::thread> threads_;
};

}  // namespace sinq

#endif  // SINQ_SERVER_WORKER_WORKER_POOL_H_
