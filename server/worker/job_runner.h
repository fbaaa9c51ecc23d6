// Runs one leased job from plan to published output. quantize_unit.cc reads as the whole service in
// a page.
#ifndef SINQ_SERVER_WORKER_JOB_RUNNER_H_
#define SINQ_SERVER_WORKER_JOB_RUNNER_H_

#include <atomic>
#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "kernels/arithmetic_version.h"
#include "server/base/clock.h"
#include "server/base/file_system.h"
#include "server/base/memory_budget.h"
#include "server/base/metrics.h"
#include "server/job/job.h"
#include "server/job/job_store.h"
#include "server/worker/worker_pool.h"

namespace sinq {

// Why a running job should stop. Set by the scheduler, polled between tiles.
enum class StopReason : uint8_t { kNone, kCancel, kDrain, kLeaseLost };

struct RunnerOptions {
  absl::Duration checkpoint_interval =
      absl::Seconds(2);      // finished tensors become durable at least this often
  std::string code_version;  // for the manifest
  int arithmetic_version = kernels::kArithmeticVersion;  // other ones only in tests
};

struct RunResult {
  absl::Status status;  // OK: published
  JobProgress progress;
};

// Thread-safe: Run may be called for several jobs at once; they share workers, budget and file
// system.
class JobRunner {
 public:
  virtual ~JobRunner() = default;
  // Plans, skips units the store has, quantizes the rest, syncs, digests, writes the manifest,
  // checks the lease, publishes. `on_progress(progress, tensor)` is called from worker threads,
  // serialised. The caller finishes the job in the store. Cancelled: staging is removed. Drain or
  // lost lease: staging and finished units are kept for the next attempt.
  virtual RunResult Run(
      const Job& job, const Lease& lease, const std::atomic<StopReason>& stop,
      absl::FunctionRef<void(const JobProgress&, absl::string_view tensor)> on_progress) = 0;
  // Removes what earlier attempts left of a job that ended without Run's knowledge: cancelled while
  // it waited, or out of attempts. OK if there is nothing.
  virtual absl::Status Discard(const Job& job) = 0;
};

std::unique_ptr<JobRunner> MakeJobRunner(const RunnerOptions& options, WorkerPool& workers,
                                         const FileSystem& files, MemoryBudget& budget,
                                         JobStore& store, Metrics& metrics);

}  // namespace sinq

#endif  // SINQ_SERVER_WORKER_JOB_RUNNER_H_
