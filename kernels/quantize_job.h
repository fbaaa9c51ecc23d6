// One call of CpuBackend::Quantize.
#ifndef SINQ_KERNELS_QUANTIZE_JOB_H_
#define SINQ_KERNELS_QUANTIZE_JOB_H_

#include <vector>

#include "kernels/activation_search.h"
#include "kernels/backend.h"
#include "kernels/error_figures.h"
#include "kernels/group_store.h"
#include "kernels/plane_set.h"
#include "kernels/tile_grid.h"
#include "kernels/tile_pass.h"

namespace sinq::kernels {

// Arrays of one tensor. Group arrays are in storage order (TileGrid) until everything is stored,
// then in row order, e = row * (cols / group) + tile.
struct TensorArrays {
  float* column = nullptr;          // t
  float* inverse_column = nullptr;  // factors of w for the final codes
  float* scale = nullptr;           // [M] s * r (upstream) or s, then what is stored
  float* zero = nullptr;            // [M]
  ErrorSums sums;
  // Profile upstream only: the unrounded values that its codes are made with.
  float* exact_scale = nullptr;  // [M]
  float* exact_zero = nullptr;   // [M]
  float* row_factor = nullptr;   // [M] r, then 1/r

  void Take(Arena& arena, int64_t columns, int64_t groups, bool upstream);
};

class QuantizeJob {
 public:
  // `params` are valid and `specs` those of PlanesOf. The views must outlive the job.
  QuantizeJob(const TileOps& ops, const MatrixView& in, const QuantParams& params,
              absl::Span<const PlaneSpec> specs, absl::Span<const absl::Span<std::byte>> planes,
              TensorStats* stats);

  size_t FixedBytes();
  size_t SlotBytes() const;
  // Upstream's gate; to be asked before Run. Looks at every element, so it needs a finite tensor.
  absl::Status ApplyKurtosisGate();
  absl::Status Run(absl::Span<std::byte> scratch, ParallelFor parallel_for,
                   absl::FunctionRef<bool()> cancelled);

 private:
  bool upstream() const { return params().profile == Profile::kUpstream; }
  // Upstream's gate drops "symmetric" for the codes; the stored zero plane stays one value, so it
  // stays symmetric here too.
  bool symmetric() const { return params().symmetric; }
  const QuantParams& params() const { return shape_.params; }
  Rounding rounding() const { return RoundingOf(params().method); }
  bool is_hqq() const { return rounding() == Rounding::kHqq; }
  bool uses_activations() const { return NeedsActivations(params().method); }
  bool balances() const { return Balances(params().method) && MakesColumnScale(params()); }
  bool UsesFusedEncoder() const;
  void TakeArrays(Arena& arena);
  FitParams MakeFitParams() const;

  absl::Status SearchFactor(const PassContext& context);
  absl::Status FitTiles(const PassContext& context);
  // Where nothing but the groups themselves is looked at: in the order of memory.
  bool FitsByRows() const { return ScalesGroups(params()) && !grid_.is_square(); }
  absl::Status FitRows(const PassContext& context);
  float ColumnScale(const ReadyTile& ready, int k) const;
  // Scales and zeros of profile default, tile by tile: their own arrays or, where groups are stored
  // otherwise, two that are not in use yet.
  float* FittedScales() const { return grid_.is_square() ? arrays_.scale : arrays_.sums.error; }
  float* FittedZeros() const { return grid_.is_square() ? arrays_.zero : arrays_.sums.power; }
  void FittedToStorageOrder();
  void FitDefault(const ReadyTile& ready);
  void FitUpstream(const ReadyTile& ready);
  // HQQ: scales, stored zeros and, for profile upstream, what the codes are made with.
  void FitHqqDefault(const ReadyTile& ready, const float* u);
  void FitHqqUpstream(const ReadyTile& ready, const UpstreamFactors& factors);
  void Collect(const std::vector<Balance>& balances);

  void FinishUpstream();
  void CentreExponents();
  absl::Status Store();
  void ToRowOrder();
  EncodeParams MakeEncodeParams() const;
  Coding MakeCoding() const;
  absl::Status Encode(const PassContext& context);
  absl::Status EncodePacked(const PassContext& context, const EncodeParams& encode);
  absl::Status EncodeDense(const PassContext& context, const EncodeParams& encode);
  absl::Status EncodeForeign(const PassContext& context, const EncodeParams& encode);
  void SumErrors();
  void AddCloseSums(int64_t first, int64_t last, ErrorTotals& totals) const;

  const TileOps& ops_;
  const MatrixView& in_;
  PackShape shape_;
  const PlaneSet planes_;
  TensorStats& stats_;
  const TileGrid grid_;
  GroupStore store_;
  TensorArrays arrays_;
  ActivationArrays activation_arrays_;
  const float* factor_ = nullptr;  // [K] c of the activation-aware methods
};

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_QUANTIZE_JOB_H_
