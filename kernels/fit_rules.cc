#include "kernels/fit_rules.h"

#include <algorithm>

#include "kernels/codebook.h"
#include "kernels/group_store.h"  // ZeroGridOf

namespace sinq::kernels {

FitRules FitRulesOf(const CudaTensor& tensor) {
  FitRules rules;
  rules.top = static_cast<float>((1 << tensor.params.bits) - 1);
  rules.inverse_top = 1.0f / rules.top;
  rules.half = static_cast<float>(1 << (tensor.params.bits - 1));
  for (int n = 0; n < kReaches; ++n) rules.reaches[n] = ReachOf(n, tensor.params.bits);
  rules.symmetric = tensor.params.symmetric;
  rules.low_share = 1.0f / static_cast<float>((1 << tensor.params.bits) - 2);
  rules.refine = tensor.params.method != Method::kRtn;
  rules.scales_groups = tensor.scales_groups;
  rules.zero_grid = ZeroGridOf(tensor.params);
  const Codebook book = CodebookOf(RoundingOf(tensor.params.method));
  rules.book_size = book.size;
  const RangeSearch& search = RangeSearchFor(rules.zero_grid, book.size != 0);
  rules.range_count = search.ranges;
  rules.steps_after_ranges = search.steps;
  const float unit =
      (book.size == 0 ? 0.5f : 1.0f) / static_cast<float>(1 << tensor.params.bits);
  for (int n = 0; n < search.ranges; ++n)
    rules.cuts[n] = {search.cuts[n].low * unit, search.cuts[n].high * unit};
  std::copy_n(book.levels, book.size, rules.levels);
  std::copy_n(book.bounds, book.size == 0 ? 0 : book.size - 1, rules.bounds);
  return rules;
}

}  // namespace sinq::kernels
