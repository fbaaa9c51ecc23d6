// What a request must pass before a job is queued: the same plan that the job will run.
#ifndef SINQ_SERVER_RPC_ADMISSION_H_
#define SINQ_SERVER_RPC_ADMISSION_H_

#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "server/plan/plan.h"
#include "server/rpc/service_context.h"

namespace sinq {

// Validates, resolves, opens the source's headers and plans. `job_id`: "" for a new job.
absl::StatusOr<Plan> PlanFor(const ServiceContext& context, const JobSpec& spec, bool needs_output);
// What a dry run shows: `note` says what the plan leaves open.
struct DryRun {
  Plan plan;
  std::string note;
};
// As PlanFor without a need for an output. Bits that the recipe leaves open are chosen as the job
// would, by measuring the weights, as long as these are at most kMaxPlanSurveyBytes. Cancelled if
// `cancelled` (asked often, from any thread) says so; Unavailable while kMaxPlanSurveys others do.
absl::StatusOr<DryRun> DryRunFor(ServiceContext& context, const JobSpec& spec,
                                 absl::FunctionRef<bool()> cancelled);
// Letters, digits, ".", "_", "-", at most kMaxRequestIdBytes; empty is fine.
absl::Status CheckRequestId(absl::string_view request_id);

}  // namespace sinq

#endif  // SINQ_SERVER_RPC_ADMISSION_H_
