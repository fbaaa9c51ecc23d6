// What becomes of a job after an attempt that failed.
#ifndef SINQ_SERVER_SCHEDULER_FAILURE_CLASS_H_
#define SINQ_SERVER_SCHEDULER_FAILURE_CLASS_H_

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/job/job.h"

namespace sinq {

// How long a job waits after its `attempt`-th attempt failed: 1 s, 4 s, 16 s, ... at most a minute.
absl::Duration RetryDelay(int attempt);

// `status` as the job's error, its message bounded.
JobError ToJobError(const absl::Status& status);

}  // namespace sinq

#endif  // SINQ_SERVER_SCHEDULER_FAILURE_CLASS_H_
