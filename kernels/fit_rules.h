// What the CUDA kernels that look for scales and zeros are told: README.md sections 4 and 9.
#ifndef SINQ_KERNELS_FIT_RULES_H_
#define SINQ_KERNELS_FIT_RULES_H_

#include "kernels/cuda_steps.h"
#include "kernels/search_rules.h"
#include "kernels/tile_ops.h"  // ZeroGrid

namespace sinq::kernels {

// What the search is told. The reciprocals are rounded on the host.
struct FitRules {
  float top = 15;                 // 2^b - 1
  float inverse_top = 1.0f / 15;
  float half = 8;                 // 2^(b-1)
  bool symmetric = false;
  bool refine = true;             // false: range only
  bool scales_groups = false;     // the group has a power of two of its own (section 8.2)
  ZeroGrid zero_grid = ZeroGrid::kSixteenths;
  float low_share = 0;            // zeros from one: fl(1 / (2^b - 2))
  // What is tried, here, because kernel arguments may be indexed: shares of the range that are cut
  // off (of a codebook's reach, the first), and shares of the extreme of symmetric groups.
  int range_count = 0;
  int steps_after_ranges = 0;
  RangeCut cuts[kMaxRanges] = {};
  float reaches[kReaches] = {};
  int book_size = 0;              // 16 or 8 levels of a codebook; 0: even levels
  float levels[16] = {};
  float bounds[15] = {};          // between neighbours
};

FitRules FitRulesOf(const CudaTensor& tensor);

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_FIT_RULES_H_
