#include "kernels/measuring.h"

#include "absl/strings/str_cat.h"
#include "kernels/layout.h"
#include "kernels/matrix_check.h"

namespace sinq::kernels {
namespace {

bool ShareTiles(int64_t cols, const QuantParams& a, const QuantParams& b) {
  return EffectiveGroupSize(cols, a.group_size) == EffectiveGroupSize(cols, b.group_size) &&
         a.profile == b.profile && Balances(a.method) == Balances(b.method) &&
         (a.method == Method::kRtn) == (b.method == Method::kRtn);
}

}  // namespace

absl::Status CheckMeasurable(const MatrixView& in, const QuantParams& params) {
  if (absl::Status status = Validate(params); !status.ok()) return status;
  if (in.rows < 1 || in.cols < 1) return absl::FailedPreconditionError("the matrix is empty");
  if (EffectiveGroupSize(in.cols, params.group_size) != 0) return CheckFactors(in);
  return absl::FailedPreconditionError(absl::StrCat("no group size from ", params.group_size,
                                                    " down to 16 divides in_features = ", in.cols));
}

std::vector<std::vector<size_t>> SharedTiles(int64_t cols,
                                             absl::Span<const QuantParams> candidates) {
  std::vector<std::vector<size_t>> sets;
  for (size_t c = 0; c < candidates.size(); ++c) {
    size_t set = 0;
    while (set < sets.size() && !ShareTiles(cols, candidates[sets[set].front()], candidates[c]))
      ++set;
    if (set == sets.size()) sets.emplace_back();
    sets[set].push_back(c);
  }
  return sets;
}

}  // namespace sinq::kernels
