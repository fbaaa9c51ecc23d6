// In which order the tensors of a folding plan are done, so that few of them have to wait in memory
// for a column scale: an attention block or a feed-forward block after the other.
#ifndef SINQ_SERVER_PLAN_FOLD_STAGES_H_
#define SINQ_SERVER_PLAN_FOLD_STAGES_H_

#include <vector>

#include "server/plan/plan.h"

namespace sinq {

// Tensors whose folded scales depend on each other, and what lies beside them in the source. All
// `tensors` that are measured must be before the first of them is written. Indexes into
// Plan::tensors and Plan::fold.pairs, ascending.
struct FoldStage {
  std::vector<int> tensors;
  std::vector<int> pairs;  // the folded ones
};

// Every tensor and every folded pair of the plan is in one stage; stages are in order of their
// first tensor. A plan that does not fold is one stage.
std::vector<FoldStage> FoldStagesOf(const Plan& plan);

}  // namespace sinq

#endif  // SINQ_SERVER_PLAN_FOLD_STAGES_H_
