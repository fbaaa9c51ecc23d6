// Every SIMD target is compiled from tile_ops-inl.h; this file collects the tables.
#include "kernels/tile_ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/tile_ops.cc"
#include "hwy/foreach_target.h"  // includes this file once per target
#include "kernels/tile_ops-inl.h"

#if HWY_ONCE
namespace sinq::kernels {

HWY_EXPORT(GetTileOps);

std::vector<const TileOps*> SupportedTileOps() {
  const int64_t supported = hwy::SupportedTargets();
  std::vector<const TileOps*> tables;
  for (int64_t remaining = supported & HWY_TARGETS; remaining != 0; remaining &= remaining - 1) {
    const int64_t target = remaining & -remaining;  // lower bits are better targets
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    tables.push_back(HWY_DYNAMIC_DISPATCH(GetTileOps)());
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  return tables;
}

}  // namespace sinq::kernels
#endif  // HWY_ONCE
