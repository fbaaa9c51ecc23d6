// What a request must pass before a job is queued: the same plan that the job will run.
#ifndef SINQ_SERVER_RPC_ADMISSION_H_
#define SINQ_SERVER_RPC_ADMISSION_H_

#include "absl/status/statusor.h"
#include "server/plan/plan.h"
#include "server/rpc/service_context.h"

namespace sinq {

// Validates, resolves, opens the source's headers and plans. `job_id`: "" for a new job.
absl::StatusOr<Plan> PlanFor(const ServiceContext& context, const JobSpec& spec, bool needs_output);
// Letters, digits, ".", "_", "-", at most kMaxRequestIdBytes; empty is fine.
absl::Status CheckRequestId(absl::string_view request_id);

}  // namespace sinq

#endif  // SINQ_SERVER_RPC_ADMISSION_H_
