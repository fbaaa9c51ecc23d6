// Times every call of a job store: sinq_store_query_seconds by operation, sinq_store_errors_total
// by status code.
#ifndef SINQ_SERVER_JOB_JOB_STORE_METERED_H_
#define SINQ_SERVER_JOB_JOB_STORE_METERED_H_

#include <memory>

#include "server/base/metrics.h"
#include "server/job/job_store.h"

namespace sinq {

// Thread-safe like `store`, which it owns. Waiting is not timed; answers that are no fault of the
// store (not found, lease lost, ...) are no errors. `metrics` must outlive it.
std::unique_ptr<JobStore> MakeMeteredJobStore(std::unique_ptr<JobStore> store, Metrics& metrics);

}  // namespace sinq

#endif  // SINQ_SERVER_JOB_JOB_STORE_METERED_H_
