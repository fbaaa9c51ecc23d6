#include "server/plan/fold_stages.h"

#include <cstddef>
#include <numeric>

namespace sinq {
namespace {

// Sets of tensors that are joined step by step (union by the smaller index, paths halved).
class TensorSets {
 public:
  explicit TensorSets(size_t count) : parent_(count) {
    std::iota(parent_.begin(), parent_.end(), 0);
  }
  // The smallest index of the set.
  int Of(int tensor) {
    while (Parent(tensor) != tensor) tensor = Parent(tensor) = Parent(Parent(tensor));
    return tensor;
  }
  void Join(int a, int b) {
    a = Of(a), b = Of(b);
    if (a < b) {
      Parent(b) = a;
    } else {
      Parent(a) = b;
    }
  }

 private:
  int& Parent(int tensor) { return parent_[static_cast<size_t>(tensor)]; }

  std::vector<int> parent_;
};

void JoinPair(const FoldPair& pair, TensorSets& sets) {
  for (const int other : {pair.producer, pair.bias}) {
    if (other >= 0) sets.Join(pair.consumers.front(), other);
  }
  for (const int consumer : pair.consumers) sets.Join(pair.consumers.front(), consumer);
}

}  // namespace

std::vector<FoldStage> FoldStagesOf(const Plan& plan) {
  TensorSets sets(plan.tensors.size());
  for (const FoldPair& pair : plan.fold.pairs) {
    if (pair.folded()) JoinPair(pair, sets);
  }
  std::vector<FoldStage> stages(1);
  std::vector<size_t> stage_of(plan.tensors.size(), 0);  // by the set's smallest tensor
  for (int i = 0; i < static_cast<int>(plan.tensors.size()); ++i) {
    const size_t set = static_cast<size_t>(sets.Of(i));
    const bool alone = !plan.tensors[static_cast<size_t>(i)].measured &&
                       !plan.tensors[static_cast<size_t>(i)].is_folded();
    if (!alone && static_cast<int>(set) == i) {
      if (!stages.back().tensors.empty()) stages.emplace_back();
      stage_of[set] = stages.size() - 1;
    }
    stages[alone ? stages.size() - 1 : stage_of[set]].tensors.push_back(i);
  }
  for (size_t n = 0; n < plan.fold.pairs.size(); ++n) {
    const FoldPair& pair = plan.fold.pairs[n];
    if (!pair.folded()) continue;
    const size_t set = static_cast<size_t>(sets.Of(pair.consumers.front()));
    stages[stage_of[set]].pairs.push_back(static_cast<int>(n));
  }
  return stages;
}

}  // namespace sinq
