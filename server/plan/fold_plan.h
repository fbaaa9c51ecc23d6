// Finds where the column scales of a plan's tensors can go, for formats that have no place for
// them.
#ifndef SINQ_SERVER_PLAN_FOLD_PLAN_H_
#define SINQ_SERVER_PLAN_FOLD_PLAN_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/plan/fold_pair.h"
#include "server/plan/model_shape.h"
#include "server/plan/plan.h"

namespace sinq {

// All pairs of all decoder layers by the table in architectures.h, folded or refused with the
// reason, in layer order. A pair is folded only if every reader of the producer is known to the
// table and present with the right shape, and at least one of them is to be balanced: its action is
// kQuantize or kFold in `tensors` and its method balances. Such readers are the ones to measure.
// InvalidArgument beyond kMaxMeasuredColumns.
absl::StatusOr<FoldPlan> FindFolds(const ModelShape& shape,
                                   const std::vector<PlannedTensor>& tensors);

// Whether `tensor` gives its own column scale to the folds that divide its columns.
bool IsMeasurable(const PlannedTensor& tensor);

// Codes of all measured columns as the job store has them, and scales of all channels.
uint64_t FoldMemoryBytes(const FoldPlan& plan);
// Everything that the bytes of the output depend on, for the plan's digest.
std::string FoldPairText(const FoldPair& pair);

}  // namespace sinq

#endif  // SINQ_SERVER_PLAN_FOLD_PLAN_H_
