#include "kernels/backend_cpu.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>

#include "absl/strings/str_cat.h"
#include "kernels/aux.h"
#include "kernels/half.h"
#include "kernels/kurtosis.h"
#include "kernels/non_finite.h"
#include "kernels/sinkhorn.h"

namespace sinq::kernels {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kAuxStrands = 32;
constexpr int64_t kEncodeRowsPerTask = 512;  // packed rows between two looks at `cancelled`

size_t Aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }
int64_t PaddedRows(int64_t rows) { return (rows + 15) / 16 * 16; }

// Hands out aligned pieces of the caller's scratch; with a null base it only counts.
class Arena {
 public:
  explicit Arena(std::byte* base) : base_(base) {}
  float* Floats(int64_t count) {
    std::byte* at = base_ == nullptr ? nullptr : base_ + used_;
    used_ += Aligned(sizeof(float) * static_cast<size_t>(count));
    return reinterpret_cast<float*>(at);
  }
  size_t used() const { return used_; }

 private:
  std::byte* base_;
  size_t used_ = 0;
};

// Arrays of one tensor. Group arrays are indexed e = row * (cols / group) + tile.
struct TensorArrays {
  float* column = nullptr;          // [K] t
  float* inverse_column = nullptr;  // [K] factors of w for the final codes
  float* scale =
      nullptr;  // [M] s of the space the codes are made in (upstream), then what is stored
  float* zero = nullptr;   // [M]
  float* error = nullptr;  // [M]
  float* power = nullptr;  // [M]
  float* exact_scale =
      nullptr;  // [M] upstream only: the unrounded values that its codes are made with
  float* exact_zero = nullptr;  // [M]
  float* row_factor = nullptr;  // [M] 1/r

  void Take(Arena& arena, int64_t cols, int64_t groups, bool upstream) {
    column = arena.Floats(cols);
    inverse_column = arena.Floats(cols);
    for (float** array : {&scale, &zero, &error, &power}) *array = arena.Floats(groups);
    if (!upstream) return;
    for (float** array : {&exact_scale, &exact_zero, &row_factor}) *array = arena.Floats(groups);
  }
};

// Buffers of one tile in work.
struct TileArrays {
  float* data = nullptr;
  BalanceBuffers balance;
  float* scale = nullptr;
  float* zero = nullptr;

  void Take(Arena& arena, int64_t rows, int group, bool is_bf16) {
    const int64_t padded = PaddedRows(rows);
    data = arena.Floats(rows * group / (is_bf16 ? 2 : 1) + kMaxGroup);
    for (float** array : {&balance.row_std, &balance.row_scale, &balance.row_reciprocal,
                          &balance.best_row_scale, &scale, &zero}) {
      *array = arena.Floats(padded);
    }
    balance.best_column_scale = arena.Floats(kMaxGroup);
  }
};

struct TileOutcome {
  Balance balance;
  int64_t bad_row = -1;
};

// One call of Quantize.
class Job {
 public:
  Job(const TileOps& ops, const MatrixView& in, const QuantParams& params,
      absl::Span<const absl::Span<std::byte>> planes, TensorStats* stats)
      : ops_(ops),
        in_(in),
        params_(params),
        planes_(planes),
        stats_(*stats),
        group_(EffectiveGroupSize(in.cols, params.group_size)),
        tiles_(in.cols / group_),
        groups_(in.rows * tiles_),
        upstream_(params.profile == Profile::kUpstream),
        aux_(EffectiveAux(params, in.rows, in.cols)) {}

  size_t FixedBytes() {
    Arena arena(nullptr);
    TensorArrays().Take(arena, in_.cols, groups_, upstream_);
    return arena.used();
  }
  size_t SlotBytes() {
    Arena arena(nullptr);
    TileArrays().Take(arena, in_.rows, group_, in_.dtype == WeightDtype::kBf16);
    return arena.used();
  }

  absl::Status Run(absl::Span<std::byte> scratch, ParallelFor parallel_for,
                   absl::FunctionRef<bool()> cancelled) {
    Arena arena(scratch.data());
    arrays_.Take(arena, in_.cols, groups_, upstream_);
    if (absl::Status status = Balance(scratch.subspan(arena.used()), parallel_for, cancelled);
        !status.ok())
      return status;
    if (absl::Status status = Store(); !status.ok()) return status;
    if (absl::Status status = Encode(parallel_for, cancelled); !status.ok()) return status;
    SumErrors();
    return absl::OkStatus();
  }

  // Upstream's gate; to be asked before Run. Looks at every element, so it needs a finite tensor.
  absl::Status ApplyKurtosisGate() {
    if (!upstream_ || params_.method != Method::kSinq) return absl::OkStatus();
    stats_.kurtosis = Kurtosis(ops_, in_);
    if (!std::isfinite(stats_.kurtosis)) return NonFiniteElement(in_, 0);
    if (stats_.kurtosis <= kKurtosisGate) return absl::OkStatus();
    stats_.kurtosis_gate_closed = true;
    params_.method = Method::kRtn;
    return absl::OkStatus();
  }

 private:
  // Upstream's gate drops "symmetric" for the codes; the stored zero plane stays one value, so it
  // stays symmetric here too.
  bool symmetric() const { return params_.symmetric; }

  absl::Status Balance(absl::Span<std::byte> slots, ParallelFor parallel_for,
                       absl::FunctionRef<bool()> cancelled) {
    const size_t lanes =
        std::clamp<size_t>(slots.size() / SlotBytes(), 1, static_cast<size_t>(tiles_));
    std::vector<TileOutcome> outcomes(static_cast<size_t>(tiles_));
    std::atomic<bool> stopped = false;
    parallel_for(lanes, [&](size_t lane) {
      Arena arena(slots.data() + lane * SlotBytes());
      TileArrays buffers;
      buffers.Take(arena, in_.rows, group_, in_.dtype == WeightDtype::kBf16);
      for (size_t j = lane; j < outcomes.size(); j += lanes) {
        if (stopped.load(std::memory_order_relaxed) || cancelled()) {
          stopped = true;
          return;
        }
        outcomes[j] = OneTile(static_cast<int64_t>(j), buffers);
      }
    });
    if (stopped) return absl::CancelledError("stopped between tiles");
    return Collect(outcomes);
  }

  TileOutcome OneTile(int64_t j, TileArrays& buffers) {
    TileOutcome outcome;
    const Tile tile{buffers.data, in_.dtype == WeightDtype::kBf16, in_.rows, group_};
    const TileScan scan = ops_.load_tile(in_, j * group_, group_, buffers.data);
    outcome.bad_row = scan.bad_row;
    if (scan.bad_row >= 0) return outcome;
    outcome.balance = BalanceTile(ops_, tile, scan, params_, buffers.balance);
    if (upstream_) {
      FitUpstream(j, tile, buffers);
    } else {
      FitDefault(j, tile, outcome.balance.exponent, buffers);
    }
    return outcome;
  }

  void FitDefault(int64_t j, const Tile& tile, int exponent, TileArrays& buffers) {
    float u[kMaxGroup];
    for (int k = 0; k < group_; ++k) {
      const float t = RoundToF16(buffers.balance.best_column_scale[k]);
      arrays_.column[j * group_ + k] = t;
      u[k] = 1.0f / t * std::ldexp(1.0f, exponent);
    }
    const FitParams fit{params_.bits, symmetric(), params_.method == Method::kSinq,
                        aux_ == AuxStorage::kU8};
    ops_.fit(tile, u, fit, buffers.scale, buffers.zero);
    const float undo = std::ldexp(1.0f, -exponent);
    for (int64_t i = 0; i < in_.rows; ++i) {
      arrays_.scale[i * tiles_ + j] = buffers.scale[i] * undo;
      arrays_.zero[i * tiles_ + j] = buffers.zero[i];
    }
  }

  void FitUpstream(int64_t j, const Tile& tile, TileArrays& buffers) {
    float u[kMaxGroup];
    for (int k = 0; k < group_; ++k) {
      const float t = buffers.balance.best_column_scale[k];
      arrays_.column[j * group_ + k] = t;
      arrays_.inverse_column[j * group_ + k] = u[k] = 1.0f / t;
    }
    float* row_factor = buffers.balance.row_reciprocal;
    for (int64_t i = 0; i < in_.rows; ++i) row_factor[i] = 1.0f / buffers.balance.best_row_scale[i];
    ops_.fit_upstream(tile, u, row_factor, params_.bits, symmetric(), buffers.scale, buffers.zero);
    for (int64_t i = 0; i < in_.rows; ++i) {
      // Neighbours in a column are far apart here; what follows from these is made in
      // FinishUpstream.
      const int64_t e = i * tiles_ + j;
      arrays_.row_factor[e] = buffers.balance.best_row_scale[i];
      arrays_.exact_scale[e] = buffers.scale[i];
      arrays_.exact_zero[e] = buffers.zero[i];
    }
  }

  // From r: what is stored (s * r), and the factor of the codes (1 / r).
  void FinishUpstream() {
    for (int64_t e = 0; e < groups_; ++e) {
      const float r = arrays_.row_factor[e];
      arrays_.scale[e] = arrays_.exact_scale[e] * r;
      arrays_.row_factor[e] = 1.0f / r;
    }
    std::copy_n(arrays_.exact_zero, groups_, arrays_.zero);
  }

  absl::Status Collect(const std::vector<TileOutcome>& outcomes) {
    int64_t bad_row = -1;
    int64_t rounds = 0;
    for (const TileOutcome& outcome : outcomes) {
      if (outcome.bad_row >= 0 && (bad_row < 0 || outcome.bad_row < bad_row))
        bad_row = outcome.bad_row;
      stats_.imbalance_before =
          std::max<double>(stats_.imbalance_before, outcome.balance.imbalance_before);
      stats_.imbalance_after =
          std::max<double>(stats_.imbalance_after, outcome.balance.imbalance_after);
      ++stats_.tiles_by_rounds[static_cast<size_t>(outcome.balance.rounds)];
      rounds += outcome.balance.rounds;
    }
    if (bad_row >= 0) return NonFiniteElement(in_, bad_row);
    stats_.mean_rounds = static_cast<double>(rounds) / static_cast<double>(outcomes.size());
    return absl::OkStatus();
  }

  // Moves a power of two between the scales and t so that both stay clear of the ends of F16
  // (README.md section 4).
  void CentreExponents() {
    float largest_scale = 0, largest_column = 0;
    for (int64_t e = 0; e < groups_; ++e)
      largest_scale = std::max(largest_scale, std::abs(arrays_.scale[e]));
    for (int64_t k = 0; k < in_.cols; ++k)
      largest_column = std::max(largest_column, arrays_.column[k]);
    if (largest_scale == 0) return;
    const int distance = std::ilogb(largest_scale) - std::ilogb(largest_column);
    const int shift = distance >= 0 ? distance / 2 : -((1 - distance) / 2);
    const float up = std::ldexp(1.0f, shift), down = std::ldexp(1.0f, -shift);
    for (int64_t k = 0; k < in_.cols; ++k) arrays_.column[k] *= up;
    for (int64_t e = 0; e < groups_; ++e) arrays_.scale[e] *= down;
  }

  absl::Span<float> Groups(float* values) const { return {values, static_cast<size_t>(groups_)}; }

  // Writes t, scales and zeros; leaves in the arrays what a reader will see.
  absl::Status Store() {
    if (upstream_) {
      FinishUpstream();
    } else {
      CentreExponents();
    }
    absl::Status status = StoreF16(ops_, {arrays_.column, static_cast<size_t>(in_.cols)},
                                   "column scale", planes_[1].data());
    if (!status.ok()) return status;
    if (!upstream_) {
      for (int64_t k = 0; k < in_.cols; ++k)
        arrays_.inverse_column[k] = arrays_.column[k] == 0 ? 0 : 1.0f / arrays_.column[k];
    }
    return aux_ == AuxStorage::kU8 ? StoreAux() : StorePlain();
  }

  absl::Status StorePlain() {
    if (absl::Status status = StoreF16(ops_, Groups(arrays_.scale), "scale", planes_[2].data());
        !status.ok())
      return status;
    if (symmetric()) return StoreF16(ops_, {arrays_.zero, 1}, "zero", planes_[3].data());
    return StoreF16(ops_, Groups(arrays_.zero), "zero", planes_[3].data());
  }

  absl::Status StoreAux() {
    const size_t at = symmetric() ? 3 : 2;
    const auto codes = [&](size_t plane) {
      return reinterpret_cast<uint8_t*>(planes_[plane].data());
    };
    absl::Status status = QuantizeAux(ops_, Groups(arrays_.scale), kAuxStrands, params_.profile,
                                      codes(at), planes_[at + 1].data(), planes_[at + 2].data());
    if (!status.ok()) return status;
    if (symmetric()) return StoreF16(ops_, {arrays_.zero, 1}, "zero", planes_[2].data());
    return QuantizeAux(ops_, Groups(arrays_.zero), static_cast<size_t>(groups_), params_.profile,
                       codes(at + 3), planes_[at + 4].data(), planes_[at + 5].data());
  }

  EncodeParams MakeEncodeParams() const {
    EncodeParams p;
    p.bits = params_.bits;
    p.group = group_;
    p.code_shift_max = (1 << params_.bits) - 1;
    p.divide = upstream_;
    if (upstream_ && symmetric()) {
      // Rounded around zero, then moved up: the authors' "noz" codes 0 .. 2h - 1 around h.
      const int half = (1 << (params_.bits - 1)) - 1;
      p.code_shift_min = -half - 1;
      p.code_shift_max = half - 1;
      p.code_offset = half;
    }
    p.column = arrays_.inverse_column;
    p.row_factor = arrays_.row_factor;
    p.scale = upstream_ ? arrays_.exact_scale : arrays_.scale;
    p.zero = upstream_ ? arrays_.exact_zero : arrays_.zero;
    p.stored_scale = arrays_.scale;
    p.stored_zero = arrays_.zero;
    p.stored_column = arrays_.column;
    p.error = arrays_.error;
    p.power = arrays_.power;
    return p;
  }

  absl::Status Encode(ParallelFor parallel_for, absl::FunctionRef<bool()> cancelled) {
    if (upstream_ && symmetric()) std::fill_n(arrays_.exact_zero, groups_, 0.0f);
    const EncodeParams encode = MakeEncodeParams();
    const int64_t per_word = PackingFor(params_.bits).codes_per_word;
    const int64_t packed_rows = (groups_ + per_word - 1) / per_word;
    const size_t tasks =
        static_cast<size_t>((packed_rows + kEncodeRowsPerTask - 1) / kEncodeRowsPerTask);
    std::atomic<bool> stopped = false;
    parallel_for(tasks, [&](size_t task) {
      if (stopped.load(std::memory_order_relaxed) || cancelled()) {
        stopped = true;
        return;
      }
      const int64_t first = static_cast<int64_t>(task) * kEncodeRowsPerTask;
      ops_.encode(in_, encode, first, std::min(first + kEncodeRowsPerTask, packed_rows),
                  planes_[0].data());
    });
    return stopped ? absl::CancelledError("stopped between row blocks") : absl::OkStatus();
  }

  void SumErrors() {
    double error = 0, power = 0;
    for (int64_t first = 0; first < in_.rows; first += kRowBlock) {
      const int64_t last = std::min<int64_t>(in_.rows, first + kRowBlock) * tiles_;
      double block_error = 0, block_power = 0;
      for (int64_t e = first * tiles_; e < last; ++e) {
        block_error += arrays_.error[e];
        block_power += arrays_.power[e];
      }
      error += block_error;
      power += block_power;
    }
    stats_.relative_error = power == 0 ? 0 : std::sqrt(error / power);
  }

  const TileOps& ops_;
  const MatrixView& in_;
  QuantParams params_;
  const absl::Span<const absl::Span<std::byte>> planes_;
  TensorStats& stats_;
  const int group_;
  const int64_t tiles_, groups_;
  const bool upstream_;
  const AuxStorage aux_;
  TensorArrays arrays_;
};

absl::Status CheckBuffers(const std::vector<PlaneSpec>& specs,
                          absl::Span<const absl::Span<std::byte>> planes,
                          absl::Span<std::byte> scratch, size_t needed_bytes) {
  if (specs.size() != planes.size()) return absl::InternalError("wrong number of planes");
  for (size_t i = 0; i < specs.size(); ++i) {
    if (specs[i].size_bytes != planes[i].size())
      return absl::InternalError(absl::StrCat("plane ", i, " has the wrong size"));
  }
  if (scratch.size() < needed_bytes ||
      reinterpret_cast<uintptr_t>(scratch.data()) % kAlignment != 0) {
    return absl::InternalError("scratch is too small or not aligned to 64 bytes");
  }
  return absl::OkStatus();
}

}  // namespace

void RunSerially(size_t n, absl::FunctionRef<void(size_t)> body) {
  for (size_t i = 0; i < n; ++i) body(i);
}

size_t CpuBackend::ScratchBytes(const QuantParams& params, int64_t rows, int64_t cols) const {
  if (EffectiveGroupSize(cols, params.group_size) == 0 || rows < 1) return 0;
  // The widest case, a tile of fp32: callers ask before they know the dtype.
  const MatrixView in{nullptr, rows, cols, WeightDtype::kF32, {}};
  TensorStats stats;
  Job job(ops_, in, params, {}, &stats);
  return job.FixedBytes() + job.SlotBytes();
}

absl::Status CpuBackend::Quantize(const MatrixView& in, const QuantParams& params,
                                  absl::Span<std::byte> scratch,
                                  absl::Span<const absl::Span<std::byte>> planes,
                                  ParallelFor parallel_for, absl::FunctionRef<bool()> cancelled,
                                  TensorStats* stats) const {
  *stats = TensorStats();
  if (absl::Status status = Validate(params); !status.ok()) return status;
  const absl::StatusOr<std::vector<PlaneSpec>> specs = NativePlanes(params, in.rows, in.cols);
  if (!specs.ok()) return specs.status();
  Job job(ops_, in, params, planes, stats);
  if (absl::Status status =
          CheckBuffers(*specs, planes, scratch, job.FixedBytes() + job.SlotBytes());
      !status.ok())
    return status;
  if (absl::Status status = job.ApplyKurtosisGate(); !status.ok()) return status;
  return job.Run(scratch, parallel_for, cancelled);
}

std::unique_ptr<Backend> MakeCpuBackend() {
  return std::make_unique<CpuBackend>(*SupportedTileOps().front());
}

std::vector<std::unique_ptr<Backend>> MakeCpuBackendsForAllTargets() {
  std::vector<std::unique_ptr<Backend>> backends;
  for (const TileOps* ops : SupportedTileOps())
    backends.push_back(std::make_unique<CpuBackend>(*ops));
  return backends;
}

}  // namespace sinq::kernels
