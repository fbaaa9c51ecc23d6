// The first phase of a recipe that leaves the bits open: what each width would cost each tensor.
#ifndef SINQ_SERVER_WORKER_WIDTH_SURVEY_H_
#define SINQ_SERVER_WORKER_WIDTH_SURVEY_H_

#include <set>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/base/memory_budget.h"
#include "server/plan/plan.h"
#include "server/source/model_source.h"
#include "server/worker/worker_pool.h"

namespace sinq {

// All of it is safe to use from several threads, and outlives the call.
struct SurveyContext {
  const Plan& plan;  // open: its tensors have candidates
  const ModelSource& source;
  WorkerPool& workers;
  MemoryBudget& budget;
};

// The errors of a tensor relative to the power of its weights, in the order of its candidates.
// Called from the pool's threads, one call at a time; an error ends the survey.
using OnSurveyed = absl::FunctionRef<absl::Status(const PlannedTensor&, std::vector<double>)>;

// Reads each tensor with candidates once, but those named in `done`. Returns the first error;
// Cancelled if `cancelled` (asked often, from any thread) says so. The result depends on
// nothing but weights and plan.
absl::Status SurveyWidths(const SurveyContext& context, const std::set<std::string>& done,
                          OnSurveyed on_surveyed, absl::FunctionRef<bool()> cancelled);

// The record of a surveyed tensor for the job store; numbers survive the round trip exactly.
std::string SurveyToJson(const PlannedTensor& tensor, const std::vector<double>& errors);
// DataLoss for text that SurveyToJson did not write for the same candidates.
absl::StatusOr<std::vector<double>> SurveyFromJson(const PlannedTensor& tensor,
                                                   absl::string_view json);

}  // namespace sinq

#endif  // SINQ_SERVER_WORKER_WIDTH_SURVEY_H_
