// The measuring that a dry run does for a recipe that leaves the bits open.
#ifndef SINQ_SERVER_RPC_DRY_RUN_SURVEY_H_
#define SINQ_SERVER_RPC_DRY_RUN_SURVEY_H_

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "server/plan/width_plan.h"
#include "server/rpc/service_context.h"

namespace sinq {

// Of the weights that a survey of this open plan reads.
uint64_t SurveyBytes(const Plan& plan);

// Measures them, with begin, progress and end in the log. Cancelled if `cancelled` (asked often,
// from any thread) says so; Unavailable, with a time to try again, while kMaxPlanSurveys others do.
absl::StatusOr<WidthErrors> SurveyForDryRun(ServiceContext& context, const Plan& open,
                                            const ModelSource& source,
                                            absl::FunctionRef<bool()> cancelled);

}  // namespace sinq

#endif  // SINQ_SERVER_RPC_DRY_RUN_SURVEY_H_
