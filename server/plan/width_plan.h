// From measured errors to a plan: the widths that make the weighted error small within the target.
#ifndef SINQ_SERVER_PLAN_WIDTH_PLAN_H_
#define SINQ_SERVER_PLAN_WIDTH_PLAN_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/plan/plan.h"

namespace sinq {

// By source tensor: for each of its candidates the error relative to the power of the weights, both
// weighted by the column scale t (kernels::Measurement).
using WidthErrors = std::map<std::string, std::vector<double>>;

// InvalidArgument if the plan is above its recipe's target, naming what the plan takes as the
// smallest that is possible. OK without a target.
absl::Status CheckTarget(const JobSpec& spec, const Plan& plan);

// MakePlan for a recipe that leaves the bits open, with widths that fit the target. Each layer
// counts once, the experts of a layer together once (HIGGS' linearity: the loss grows by the sum of
// the layers' relative errors). `errors` has an entry for every tensor of the open plan with
// candidates. Deterministic.
absl::StatusOr<Plan> PlanWidths(const JobSpec& spec, const ModelSource& source,
                                const Exporter& exporter, const PlanOptions& options,
                                const WidthErrors& errors);

}  // namespace sinq

#endif  // SINQ_SERVER_PLAN_WIDTH_PLAN_H_
