#include "server/plan/fold_pair.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace sinq {

std::vector<std::string> FoldNotes(const FoldPlan& plan, size_t max_refusals) {
  if (plan.note.empty()) return {};
  const auto folded = std::count_if(plan.pairs.begin(), plan.pairs.end(),
                                    [](const FoldPair& pair) { return pair.folded(); });
  std::vector<std::string> notes = {
      absl::StrCat(plan.note, ": ", folded, " of ", plan.pairs.size())};
  for (const FoldPair& pair : plan.pairs) {
    if (pair.folded()) continue;
    if (notes.size() > max_refusals) break;
    notes.push_back(absl::StrCat(pair.name, ": ", pair.refusal));
  }
  return notes;
}

}  // namespace sinq
