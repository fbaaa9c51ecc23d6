// Chooses widths for layers under a budget of bytes: mathematics only, no tensors and no files.
#ifndef SINQ_SERVER_PLAN_BIT_ALLOCATION_H_
#define SINQ_SERVER_PLAN_BIT_ALLOCATION_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"

namespace sinq {

// One way of storing a layer.
struct WidthCost {
  uint64_t bytes = 0;
  double error = 0;  // not negative, finite
};

// A layer, or several that must be stored alike. At least one width; names are unique.
struct WidthItem {
  std::string name;
  std::vector<WidthCost> widths;
};

// Index of the cheapest width: the fewest bytes, then the smallest error, then the first.
size_t CheapestWidth(const WidthItem& item);

// For each item the index of its width, so that the bytes are at most `budget_bytes` and the sum of
// errors is small. If even the cheapest widths take more than the budget, those are the answer.
//
// Along the lower convex hull of each item's (bytes, error) the steps with the most error saved per
// byte are taken first, as long as they fit; then single widths, and for up to 256 items pairs of
// them, are exchanged while that saves error. The result is at most one step of one item's hull
// away from the best. Deterministic; ties go to the smaller name.
std::vector<size_t> AllocateWidths(absl::Span<const WidthItem> items, uint64_t budget_bytes);

}  // namespace sinq

#endif  // SINQ_SERVER_PLAN_BIT_ALLOCATION_H_
