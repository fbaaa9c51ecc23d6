#include "kernels/quantize_job.h"

#include <algorithm>
#include <cmath>

#include "kernels/aux.h"
#include "kernels/codebook.h"
#include "kernels/error_figures.h"
#include "kernels/kurtosis.h"
#include "kernels/non_finite.h"

namespace sinq::kernels {
namespace {

constexpr int64_t kPackedRowsPerTask = 512;  // packed rows between two looks at `cancelled`
constexpr int64_t kDenseRowsPerTask = 32;
constexpr int64_t kFitRowsPerTask = 128;

// aux as it will be stored.
QuantParams Effective(QuantParams params, int64_t rows, int64_t cols) {
  params.aux = EffectiveAux(params, rows, cols);
  return params;
}

float Rcp(float x) { return x == 0 ? 0.0f : 1.0f / x; }

// Index of the first round with the smallest error; round 0 if none is a number.
int BestRound(const double* error) {
  int best = 0;
  for (int round = 1; round < kHqqRounds; ++round) {
    if (error[round] < error[best]) best = round;
  }
  return best;
}

// For bodies that need no slot of their own.
PassContext WithoutSlots(PassContext context) {
  context.slot_bytes = 0;
  return context;
}

// `from` has `rows` rows of `cols`. By blocks, of which source and target stay in the cache.
void Transpose(const float* from, int64_t rows, int64_t cols, float* to) {
  constexpr int64_t kSide = 16;  // floats of a cache line
  for (int64_t col = 0; col < cols; col += kSide) {
    const int64_t last_col = std::min(col + kSide, cols);
    for (int64_t row = 0; row < rows; row += kSide) {
      const int64_t last_row = std::min(row + kSide, rows);
      for (int64_t j = col; j < last_col; ++j)
        for (int64_t i = row; i < last_row; ++i) to[j * rows + i] = from[i * cols + j];
    }
  }
}

}  // namespace

void TensorArrays::Take(Arena& arena, int64_t columns, int64_t groups, bool upstream) {
  column = arena.Floats(columns);
  inverse_column = arena.Floats(columns);
  for (float** array : {&scale, &zero, &sums.error, &sums.power, &sums.overlap,
                        &sums.balanced_error, &sums.balanced_power, &sums.largest}) {
    *array = arena.Floats(groups);
  }
  if (!upstream) return;
  for (float** array : {&exact_scale, &exact_zero, &row_factor}) *array = arena.Floats(groups);
}

QuantizeJob::QuantizeJob(const TileOps& ops, const MatrixView& in, const QuantParams& params,
                         absl::Span<const PlaneSpec> specs,
                         absl::Span<const absl::Span<std::byte>> planes, TensorStats* stats)
    : ops_(ops),
      in_(in),
      shape_{Effective(params, in.rows, in.cols), in.rows, in.cols,
             EffectiveGroupSize(in.cols, params.group_size)},
      planes_(specs, planes),
      stats_(*stats),
      grid_(in.rows, in.cols, shape_.group, params.tiling),
      store_(ops, shape_, planes_) {}

void QuantizeJob::TakeArrays(Arena& arena) {
  arrays_.Take(arena, grid_.column_count(), grid_.group_count(), upstream());
  store_.Take(arena, grid_.column_count(), grid_.group_count());
  if (uses_activations()) activation_arrays_.Take(arena, in_.cols, grid_.group_count(), upstream());
}

size_t QuantizeJob::FixedBytes() {
  Arena arena(nullptr);
  TakeArrays(arena);
  return arena.used();
}

size_t QuantizeJob::SlotBytes() const {
  Arena arena(nullptr);
  if (!FitsByRows()) {
    const int64_t rows = uses_activations() ? in_.rows : grid_.tile_rows();
    TileArrays().Take(arena, rows, grid_.group(), TilesAreBf16(in_), is_hqq());
  }
  size_t size_bytes = arena.used();
  if (uses_activations()) size_bytes = std::max(size_bytes, ActivationSlotBytes(in_.cols));
  if (UsesFusedEncoder()) return size_bytes;
  Arena codes(nullptr);
  codes.Bytes(kPackRows * in_.cols);
  return std::max(size_bytes, codes.used());
}

bool QuantizeJob::UsesFusedEncoder() const {
  return params().layout == Layout::kSinq || params().layout == Layout::kHqq ||
         params().layout == Layout::kDense;
}

absl::Status QuantizeJob::ApplyKurtosisGate() {
  const bool has_codebook = HasCodebook(rounding());
  if (!upstream() || !Balances(params().method) || has_codebook) return absl::OkStatus();
  stats_.kurtosis = Kurtosis(ops_, in_);
  if (!std::isfinite(stats_.kurtosis)) return FirstNonFinite(in_, 0);
  if (stats_.kurtosis <= kKurtosisGate) return absl::OkStatus();
  stats_.kurtosis_gate_closed = true;
  shape_.params.method = Method::kRtn;
  return absl::OkStatus();
}

absl::Status QuantizeJob::Run(absl::Span<std::byte> scratch, ParallelFor parallel_for,
                              absl::FunctionRef<bool()> cancelled) {
  Arena arena(scratch.data());
  TakeArrays(arena);
  const PassContext context{ops_,        in_,          scratch.subspan(arena.used()),
                            SlotBytes(), parallel_for, cancelled};
  if (uses_activations()) {
    if (absl::Status status = SearchFactor(context); !status.ok()) return status;
  }
  if (absl::Status status = FitTiles(context); !status.ok()) return status;
  if (absl::Status status = Store(); !status.ok()) return status;
  if (absl::Status status = Encode(context); !status.ok()) return status;
  SumErrors();
  return absl::OkStatus();
}

FitParams QuantizeJob::MakeFitParams() const {
  FitParams fit;
  fit.bits = params().bits;
  fit.symmetric = symmetric();
  fit.refine = params().method != Method::kRtn;
  fit.scales_groups = ScalesGroups(params());
  fit.rounding = rounding();
  fit.zero_grid = ZeroGridOf(params());
  return fit;
}

// The search looks at 1D tiles whatever the tiling.
absl::Status QuantizeJob::SearchFactor(const PassContext& context) {
  const TileGrid columns(in_.rows, in_.cols, shape_.group, Tiling::k1D);
  const auto note = [&](const ReadyTile& ready) {
    NoteTile(ops_, columns, ready, activation_arrays_);
  };
  const absl::StatusOr<std::vector<Balance>> balanced =
      ForTiles(context, columns, params(), balances(), note);
  if (!balanced.ok()) return balanced.status();
  return SearchColumnFactor(context, params(), shape_.group, activation_arrays_, &factor_);
}

absl::Status QuantizeJob::FitTiles(const PassContext& context) {
  if (symmetric() && !upstream()) {
    // Every group's zero. Group arrays are filled across their rows, which costs more than this.
    std::fill_n(arrays_.zero, grid_.group_count(), static_cast<float>(1 << (params().bits - 1)));
  }
  if (FitsByRows()) return FitRows(context);
  const absl::StatusOr<std::vector<Balance>> balanced =
      ForTiles(context, grid_, params(), balances(), [&](const ReadyTile& ready) {
        if (upstream()) {
          FitUpstream(ready);
        } else {
          FitDefault(ready);
        }
      });
  if (!balanced.ok()) return balanced.status();
  if (!upstream()) FittedToStorageOrder();
  Collect(*balanced);
  return absl::OkStatus();
}

absl::Status QuantizeJob::FitRows(const PassContext& context) {
  std::fill_n(arrays_.column, grid_.column_count(), 1.0f);
  const FitParams fit = MakeFitParams();
  const int64_t tasks = (in_.rows + kFitRowsPerTask - 1) / kFitRowsPerTask;
  std::vector<int64_t> bad_rows(static_cast<size_t>(tasks), -1);
  const auto one = [&](std::byte* /*slot*/, int64_t task) {
    const int64_t first = task * kFitRowsPerTask;
    bad_rows[static_cast<size_t>(task)] =
        ops_.fit_rows(in_, grid_.group(), fit, first, std::min(kFitRowsPerTask, in_.rows - first),
                      FittedScales(), FittedZeros());
  };
  if (absl::Status status = ForItems(WithoutSlots(context), tasks, "rows", one); !status.ok())
    return status;
  for (const int64_t bad_row : bad_rows) {
    if (bad_row >= 0) return FirstNonFinite(in_, bad_row);
  }
  FittedToStorageOrder();
  Collect(std::vector<Balance>(static_cast<size_t>(grid_.tile_count())));
  return absl::OkStatus();
}

float QuantizeJob::ColumnScale(const ReadyTile& ready, int k) const {
  const float t = ready.arrays->balance.best_column_scale[k];
  if (factor_ == nullptr) return t;
  const int64_t column = grid_.Range(ready.index).first_col + k;
  return std::clamp(t / factor_[column], kLeastColumnScale, kLargestColumnScale);
}

void QuantizeJob::FitDefault(const ReadyTile& ready) {
  float u[kMaxGroup];
  float* column = arrays_.column + grid_.FirstColumn(ready.index);
  const int exponent = ScalesGroups(params()) ? 0 : ready.balance.exponent;
  for (int k = 0; k < grid_.group(); ++k) {
    column[k] = RoundToStored(ColumnScale(ready, k), params().aux);
    u[k] = 1.0f / column[k] * std::ldexp(1.0f, exponent);
  }
  TileArrays& buffers = *ready.arrays;
  if (is_hqq()) {
    FitHqqDefault(ready, u);
  } else {
    ops_.fit(ready.tile, u, MakeFitParams(), buffers.scale, buffers.zero);
  }
  const float undo = std::ldexp(1.0f, -exponent);
  const int64_t rows = ready.tile.rows;
  float* const scale = FittedScales() + ready.index * rows;
  for (int64_t i = 0; i < rows; ++i) scale[i] = buffers.scale[i] * undo;
  if (!symmetric()) std::copy_n(buffers.zero, rows, FittedZeros() + ready.index * rows);
}

// From tile by tile to row by row. The groups of a tile lie far apart there: writing them one by
// one would cost more than this.
void QuantizeJob::FittedToStorageOrder() {
  if (grid_.is_square()) return;  // stored tile by tile
  Transpose(FittedScales(), grid_.tile_count(), grid_.tile_rows(), arrays_.scale);
  if (!symmetric()) Transpose(FittedZeros(), grid_.tile_count(), grid_.tile_rows(), arrays_.zero);
}

void QuantizeJob::FitHqqDefault(const ReadyTile& ready, const float* u) {
  HqqOutcome& hqq = ready.arrays->hqq;
  ops_.fit_hqq(ready.tile, {u, nullptr}, MakeFitParams(), &hqq);
  std::copy_n(hqq.history + BestRound(hqq.error) * hqq.stride, ready.tile.rows, ready.arrays->zero);
}

void QuantizeJob::FitHqqUpstream(const ReadyTile& ready, const UpstreamFactors& factors) {
  HqqOutcome& hqq = ready.arrays->hqq;
  ops_.fit_hqq(ready.tile, factors, MakeFitParams(), &hqq);
  const float* best = hqq.history + BestRound(hqq.error) * hqq.stride;
  const float* last_used = hqq.history + (kHqqRounds - 2) * hqq.stride;
  int64_t e = grid_.FirstGroup(ready.index);
  for (int64_t i = 0; i < ready.tile.rows; ++i, e += grid_.GroupStride()) {
    arrays_.row_factor[e] = ready.arrays->balance.best_row_scale[i];
    arrays_.exact_scale[e] = hqq.inverse[i];
    arrays_.exact_zero[e] = last_used[i];
    arrays_.scale[e] = hqq.scale[i];
    arrays_.zero[e] = best[i];
  }
}

void QuantizeJob::FitUpstream(const ReadyTile& ready) {
  float u[kMaxGroup];
  const int64_t first_column = grid_.FirstColumn(ready.index);
  for (int k = 0; k < grid_.group(); ++k) {
    const float t = ColumnScale(ready, k);
    arrays_.column[first_column + k] = t;
    arrays_.inverse_column[first_column + k] = u[k] = 1.0f / t;
  }
  TileArrays& buffers = *ready.arrays;
  float* row_factor = buffers.balance.row_reciprocal;
  const int64_t rows = ready.tile.rows;
  for (int64_t i = 0; i < rows; ++i) row_factor[i] = 1.0f / buffers.balance.best_row_scale[i];
  if (is_hqq()) return FitHqqUpstream(ready, {u, row_factor});
  ops_.fit_upstream(ready.tile, {u, row_factor}, MakeFitParams(), buffers.scale, buffers.zero);
  int64_t e = grid_.FirstGroup(ready.index);
  for (int64_t i = 0; i < rows; ++i, e += grid_.GroupStride()) {
    // Neighbours in a column are far apart here; what follows from these is made in
    // FinishUpstream.
    arrays_.row_factor[e] = buffers.balance.best_row_scale[i];
    arrays_.exact_scale[e] = buffers.scale[i];
    arrays_.exact_zero[e] = buffers.zero[i];
  }
}

void QuantizeJob::Collect(const std::vector<Balance>& balances) {
  int64_t rounds = 0;
  for (const Balance& balance : balances) {
    stats_.imbalance_before = std::max<double>(stats_.imbalance_before, balance.imbalance_before);
    stats_.imbalance_after = std::max<double>(stats_.imbalance_after, balance.imbalance_after);
    ++stats_.tiles_by_rounds[static_cast<size_t>(balance.rounds)];
    rounds += balance.rounds;
  }
  stats_.mean_rounds = static_cast<double>(rounds) / static_cast<double>(balances.size());
}

// From r: what is stored (s * r), and the factor of the codes (1 / r).
void QuantizeJob::FinishUpstream() {
  const int64_t groups = grid_.group_count();
  if (!is_hqq()) {
    std::copy_n(arrays_.exact_scale, groups, arrays_.scale);
    std::copy_n(arrays_.exact_zero, groups, arrays_.zero);
  }
  for (int64_t e = 0; e < groups; ++e) {
    const float r = arrays_.row_factor[e];
    arrays_.scale[e] *= r;
    arrays_.row_factor[e] = 1.0f / r;
  }
}

// Moves a power of two between the scales and t so that both stay clear of the ends of F16
// (README.md section 4).
void QuantizeJob::CentreExponents() {
  const bool holds_column_scale =
      params().layout == Layout::kSinq || params().layout == Layout::kDense;
  if (!holds_column_scale || !params().own_column_scale || rounding() == Rounding::kHadamard)
    return;
  float largest_scale = 0, largest_column = 0;
  for (int64_t e = 0; e < grid_.group_count(); ++e)
    largest_scale = std::max(largest_scale, std::abs(arrays_.scale[e]));
  for (int64_t k = 0; k < grid_.column_count(); ++k)
    largest_column = std::max(largest_column, arrays_.column[k]);
  if (largest_scale == 0) return;
  const int distance = std::ilogb(largest_scale) - std::ilogb(largest_column);
  const int shift = distance >= 0 ? distance / 2 : -((1 - distance) / 2);
  const float up = std::ldexp(1.0f, shift), down = std::ldexp(1.0f, -shift);
  for (int64_t k = 0; k < grid_.column_count(); ++k) arrays_.column[k] *= up;
  for (int64_t e = 0; e < grid_.group_count(); ++e) arrays_.scale[e] *= down;
}

// Writes t, scales and zeros; leaves in the arrays what a reader will see, in row order.
absl::Status QuantizeJob::Store() {
  if (upstream()) {
    FinishUpstream();
  } else {
    CentreExponents();
  }
  const size_t columns = static_cast<size_t>(grid_.column_count());
  const size_t groups = static_cast<size_t>(grid_.group_count());
  const GroupValues values{
      {arrays_.column, columns}, {arrays_.scale, groups}, {arrays_.zero, groups}};
  if (absl::Status status = store_.Store(values); !status.ok()) return status;
  if (!upstream()) {
    for (size_t k = 0; k < columns; ++k) arrays_.inverse_column[k] = Rcp(arrays_.column[k]);
  }
  if (grid_.is_square()) ToRowOrder();
  return absl::OkStatus();
}

// The groups of each row of tiles, from tile order to row order.
void QuantizeJob::ToRowOrder() {
  const int64_t side = grid_.group(), tiles = grid_.groups_per_row();
  for (float* array :
       {arrays_.scale, arrays_.zero, arrays_.exact_scale, arrays_.exact_zero, arrays_.row_factor}) {
    if (array == nullptr) continue;
    for (float* block = array; block < array + grid_.group_count(); block += side * tiles) {
      Transpose(block, tiles, side, arrays_.sums.error);
      std::copy_n(arrays_.sums.error, side * tiles, block);
    }
  }
}

Coding QuantizeJob::MakeCoding() const {
  if (HasCodebook(rounding())) return upstream() ? Coding::kBookDivide : Coding::kBook;
  if (rounding() == Rounding::kHadamard) return Coding::kHadamard;
  if (!upstream()) return Coding::kStored;
  return is_hqq() ? Coding::kMultiply : Coding::kDivide;
}

EncodeParams QuantizeJob::MakeEncodeParams() const {
  EncodeParams p;
  p.coding = MakeCoding();
  p.bits = params().bits;
  p.group = grid_.group();
  p.column_rows = grid_.is_square() ? grid_.tile_rows() : 0;
  p.code_shift_max = (1 << params().bits) - 1;
  if (upstream() && symmetric()) {
    // Rounded around zero, then moved up: the authors' "noz" codes 0 .. 2h - 1 around h.
    const int half = (1 << (params().bits - 1)) - 1;
    p.code_shift_min = -half - 1;
    p.code_shift_max = half - 1;
    p.code_offset = half;
  }
  p.column = arrays_.inverse_column;
  p.row_factor = arrays_.row_factor;
  p.scale = upstream() ? arrays_.exact_scale : arrays_.scale;
  p.zero = upstream() ? arrays_.exact_zero : arrays_.zero;
  p.stored_scale = arrays_.scale;
  p.stored_zero = arrays_.zero;
  p.stored_column = arrays_.column;
  p.sums = arrays_.sums;
  return p;
}

absl::Status QuantizeJob::Encode(const PassContext& context) {
  if (upstream() && symmetric()) std::fill_n(arrays_.exact_zero, grid_.group_count(), 0.0f);
  const EncodeParams encode = MakeEncodeParams();
  if (params().layout == Layout::kDense) return EncodeDense(context, encode);
  return UsesFusedEncoder() ? EncodePacked(context, encode) : EncodeForeign(context, encode);
}

absl::Status QuantizeJob::EncodePacked(const PassContext& context, const EncodeParams& encode) {
  const int64_t per_word = PackingFor(params().bits).codes_per_word;
  const int64_t packed_rows = (grid_.group_count() + per_word - 1) / per_word;
  const int64_t tasks = (packed_rows + kPackedRowsPerTask - 1) / kPackedRowsPerTask;
  std::byte* const packed = planes_.Of(PlaneKind::kCodes).data();
  return ForItems(WithoutSlots(context), tasks, "row blocks", [&](std::byte*, int64_t task) {
    const int64_t first = task * kPackedRowsPerTask;
    ops_.encode(in_, encode, first, std::min(first + kPackedRowsPerTask, packed_rows), packed);
  });
}

absl::Status QuantizeJob::EncodeDense(const PassContext& context, const EncodeParams& encode) {
  const int64_t tasks = (in_.rows + kDenseRowsPerTask - 1) / kDenseRowsPerTask;
  std::byte* const dense = planes_.Of(PlaneKind::kDense).data();
  return ForItems(WithoutSlots(context), tasks, "row blocks", [&](std::byte*, int64_t task) {
    const int64_t first = task * kDenseRowsPerTask;
    ops_.encode_dense(in_, encode, first, std::min(kDenseRowsPerTask, in_.rows - first), dense);
  });
}

absl::Status QuantizeJob::EncodeForeign(const PassContext& context, const EncodeParams& encode) {
  const int64_t tasks = (in_.rows + kPackRows - 1) / kPackRows;
  const absl::Span<std::byte> codes_plane = planes_.Of(PlaneKind::kCodes);
  const absl::Span<std::byte> blocks_plane = planes_.Of(PlaneKind::kBlocks);
  return ForItems(context, tasks, "row blocks", [&](std::byte* slot, int64_t task) {
    auto* codes = reinterpret_cast<uint8_t*>(slot);
    const int64_t first = task * kPackRows, count = std::min(kPackRows, in_.rows - first);
    ops_.encode_rows(in_, encode, first, count, codes);
    if (blocks_plane.empty()) return PackCodes(shape_, codes, first, count, codes_plane);
    PackBlocks(shape_, codes, store_.scale_bits(), store_.minimum_bits(), first, count,
               blocks_plane);
  });
}

// The close rows of one block of rows.
void QuantizeJob::AddCloseSums(int64_t first, int64_t last, ErrorTotals& totals) const {
  const ErrorSums& sums = arrays_.sums;
  const int64_t tiles = grid_.groups_per_row();
  ErrorTotals block;
  for (int64_t i = first; i < last; ++i) {
    if (!IsCloseRow(i)) continue;
    for (int64_t e = i * tiles; e < (i + 1) * tiles; ++e) {
      block.close_error += static_cast<double>(sums.error[e]);
      block.close_power += static_cast<double>(sums.power[e]);
      block.overlap += static_cast<double>(sums.overlap[e]);
      block.balanced_error += static_cast<double>(sums.balanced_error[e]);
      block.balanced_power += static_cast<double>(sums.balanced_power[e]);
    }
  }
  totals.close_error += block.close_error;
  totals.close_power += block.close_power;
  totals.overlap += block.overlap;
  totals.balanced_error += block.balanced_error;
  totals.balanced_power += block.balanced_power;
}

// README.md section 7.
void QuantizeJob::SumErrors() {
  const ErrorSums& sums = arrays_.sums;
  const int64_t tiles = grid_.groups_per_row();
  ErrorTotals totals;
  for (int64_t first = 0; first < in_.rows; first += kRowBlock) {
    const int64_t last = std::min<int64_t>(in_.rows, first + kRowBlock) * tiles;
    double block_error = 0, block_power = 0;
    for (int64_t e = first * tiles; e < last; ++e) {
      block_error += static_cast<double>(sums.error[e]);
      block_power += static_cast<double>(sums.power[e]);
    }
    totals.error += block_error;
    totals.power += block_power;
    AddCloseSums(first, last / tiles, totals);
  }
  SetErrorFigures(totals, stats_);
  float smallest, largest;
  ops_.extremes(sums.largest, grid_.group_count(), &smallest, &largest);
  stats_.max_abs_error = largest;
}

}  // namespace sinq::kernels
