// Takes leases, runs jobs one after another, renews, finishes. Owns one thread for running and one
// for heartbeats.
#ifndef SINQ_SERVER_SCHEDULER_SCHEDULER_H_
#define SINQ_SERVER_SCHEDULER_SCHEDULER_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "server/base/clock.h"
#include "server/base/metrics.h"
#include "server/job/job_store.h"
#include "server/worker/job_runner.h"

namespace sinq {

struct SchedulerOptions {
  std::string worker_name;
  int concurrent_jobs = 1;
  absl::Duration lease_duration =
      absl::Seconds(30);  // a dead worker's job runs elsewhere within this
  absl::Duration heartbeat_interval = absl::Seconds(5);
  // Called from time to time to refresh gauges of the process around the scheduler; may be empty.
  std::function<void()> update_gauges;
  absl::Duration retention = absl::Hours(24 * 7);  // of terminal job rows
};

// Start once, Drain once. Thread-safe.
class Scheduler {
 public:
  virtual ~Scheduler() = default;
  virtual void Start() = 0;
  // No new lease from now on; running jobs get `grace` to finish, then are checkpointed and
  // released. Returns when idle.
  virtual void Drain(absl::Duration grace) = 0;
  // Makes a cancel request of the store take effect at once instead of at the next heartbeat; what
  // a job that was not running left behind is removed.
  virtual void Wake(absl::string_view job_id) = 0;
};

std::unique_ptr<Scheduler> MakeScheduler(const SchedulerOptions& options, JobStore& store,
                                         JobRunner& runner, const Clock& clock, Metrics& metrics);

}  // namespace sinq

#endif  // SINQ_SERVER_SCHEDULER_SCHEDULER_H_
