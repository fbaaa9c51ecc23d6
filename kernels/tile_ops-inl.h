// The table of one SIMD target.
#if defined(SINQ_KERNELS_TILE_OPS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SINQ_KERNELS_TILE_OPS_INL_H_
#undef SINQ_KERNELS_TILE_OPS_INL_H_
#else
#define SINQ_KERNELS_TILE_OPS_INL_H_
#endif

#include "kernels/activation-inl.h"
#include "kernels/aux-inl.h"
#include "kernels/dense-inl.h"
#include "kernels/encode-inl.h"
#include "kernels/fit-inl.h"
#include "kernels/hqq-inl.h"
#include "kernels/load-inl.h"
#include "kernels/stats-inl.h"
#include "kernels/upstream-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sinq::kernels {
namespace HWY_NAMESPACE {

const TileOps* GetTileOps() {
  static const TileOps kOps{hwy::TargetName(HWY_TARGET),
                            &LoadTile,
                            &Stats,
                            &Extremes,
                            &Update,
                            &FitTile,
                            &FitRows,
                            &FitUpstream,
                            &FitHqq,
                            &ScoreTile,
                            &AddMoments,
                            &ColumnMagnitudes,
                            &ScaledRtnDifference,
                            &OutputError,
                            &Widen,
                            &EncodeAux,
                            &StoreF16Values,
                            &Encode,
                            &EncodeRowBytes,
                            &EncodeDense};
  return &kOps;
}

}  // namespace HWY_NAMESPACE
}  // namespace sinq::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
