#include "kernels/activation_search.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/deterministic_math.h"

namespace sinq::kernels {
namespace {

absl::Status CheckFinite(absl::Span<const float> values, int64_t cols, const char* what) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (std::isfinite(values[i])) continue;
    const int64_t at = static_cast<int64_t>(i);
    return absl::InvalidArgumentError(
        absl::StrCat(what, " [", at / cols, ", ", at % cols, "] is not finite; calibrate again"));
  }
  return absl::OkStatus();
}

// Mean |x| of every input, or its root mean square from second moments.
std::vector<float> InputMagnitudes(const ActivationView& activations, int64_t cols) {
  const size_t count = static_cast<size_t>(cols);
  std::vector<float> magnitudes(count);
  if (activations.samples.empty()) {
    for (size_t k = 0; k < count; ++k)
      magnitudes[k] = std::sqrt(std::max(activations.second_moments[k * count + k], 0.0f));
    return magnitudes;
  }
  std::vector<double> sums(count, 0.0);
  const float* x = activations.samples.data();
  for (int64_t token = 0; token < activations.tokens; ++token, x += cols) {
    for (size_t k = 0; k < count; ++k) sums[k] += static_cast<double>(std::abs(x[k]));
  }
  for (size_t k = 0; k < count; ++k)
    magnitudes[k] = static_cast<float>(sums[k] / static_cast<double>(activations.tokens));
  return magnitudes;
}

// c of one alpha.
void MakeFactors(const std::vector<float>& inputs, const float* weights, double alpha, float* c) {
  const size_t count = inputs.size();
  for (size_t k = 0; k < count; ++k) {
    const float important = std::max(Power(inputs[k], alpha), kLeastFactor);
    c[k] = std::max(important / (Power(weights[k], 1.0 - alpha) + kLeastFactor), kLeastFactor);
  }
  const auto [least, most] = std::minmax_element(c, c + count);
  const float middle = std::sqrt(*most * *least);
  for (size_t k = 0; k < count; ++k) c[k] /= middle;
}

// One lane's arrays.
struct SearchSlot {
  float* difference = nullptr;  // [K][32]
  float* forward = nullptr;     // [K]
  float* backward = nullptr;    // [K]
  void Take(Arena& arena, int64_t cols) {
    difference = arena.Floats(cols * kRowBlock);
    forward = arena.Floats(cols);
    backward = arena.Floats(cols);
  }
};

class Search {
 public:
  Search(const PassContext& context, const QuantParams& params, int group,
         const ActivationArrays& arrays)
      : context_(context),
        activations_(*context.in.activations),
        params_(params),
        group_(group),
        arrays_(arrays),
        cols_(context.in.cols) {}

  // Errors [blocks][kAlphaSteps].
  absl::Status Measure(std::vector<double>& errors) const {
    const int64_t blocks = (context_.in.rows + kRowBlock - 1) / kRowBlock;
    errors.assign(static_cast<size_t>(blocks * kAlphaSteps), 0.0);
    return ForItems(context_, blocks, "row blocks", [&](std::byte* memory, int64_t block) {
      Arena arena(memory);
      SearchSlot slot;
      slot.Take(arena, cols_);
      for (int step = 0; step < kAlphaSteps; ++step)
        errors[static_cast<size_t>(block * kAlphaSteps + step)] = BlockError(slot, block, step);
    });
  }

 private:
  OutputNorm norm() const {
    if (activations_.samples.empty()) return OutputNorm::kMoments;
    return params_.method == Method::kAsinqL2 ? OutputNorm::kSquare : OutputNorm::kAbsolute;
  }

  double BlockError(const SearchSlot& slot, int64_t block, int step) const {
    const float* c = arrays_.factors + step * cols_;
    for (int64_t k = 0; k < cols_; ++k) {
      const float t = arrays_.column_scale[k] / c[k];
      slot.forward[k] = 1.0f / t * arrays_.power_of_two[k];
      slot.backward[k] = t * (1.0f / arrays_.power_of_two[k]);
    }
    ScaledRtn candidate{params_.bits, group_, 0, slot.forward, slot.backward, arrays_.row_scale};
    if (params_.profile == Profile::kUpstream) candidate.range_floor = kUpstreamRangeFloor;
    context_.ops.scaled_rtn(context_.in, candidate, block * kRowBlock, slot.difference);
    double by_row[kRowBlock];
    const bool moments = activations_.samples.empty();
    context_.ops.output_error(
        moments ? activations_.second_moments.data() : activations_.samples.data(),
        moments ? cols_ : activations_.tokens, cols_, slot.difference, norm(), by_row);
    double error = 0;
    for (const double row : by_row) error += row;
    return error;
  }

  const PassContext& context_;
  const ActivationView& activations_;
  const QuantParams& params_;
  const int group_;
  const ActivationArrays& arrays_;
  const int64_t cols_;
};

}  // namespace

absl::Status CheckActivations(const MatrixView& in) {
  const ActivationView* given = in.activations;
  if (given == nullptr || given->samples.empty() == given->second_moments.empty()) {
    return absl::InvalidArgumentError(
        "this method needs activations of the layer: either samples or second moments");
  }
  const size_t cols = static_cast<size_t>(in.cols);
  if (!given->second_moments.empty()) {
    if (given->second_moments.size() == cols * cols)
      return CheckFinite(given->second_moments, in.cols, "second moment");
    return absl::InvalidArgumentError(absl::StrCat("second moments have ",
                                                   given->second_moments.size(), " values, not ",
                                                   in.cols, " x ", in.cols));
  }
  if (given->tokens >= 1 && given->samples.size() % cols == 0 &&
      given->samples.size() / cols == static_cast<size_t>(given->tokens)) {
    return CheckFinite(given->samples, in.cols, "activation");
  }
  return absl::InvalidArgumentError(absl::StrCat("activations have ", given->samples.size(),
                                                 " values, not ", given->tokens, " tokens x ",
                                                 in.cols));
}

void ActivationArrays::Take(Arena& arena, int64_t cols, int64_t groups, bool upstream) {
  for (float** array : {&column_scale, &weight_magnitude, &power_of_two})
    *array = arena.Floats(cols);
  factors = arena.Floats(kAlphaSteps * cols);
  if (upstream) row_scale = arena.Floats(groups);
}

size_t ActivationSlotBytes(int64_t cols) {
  Arena arena(nullptr);
  SearchSlot().Take(arena, cols);
  return arena.used();
}

void NoteTile(const TileOps& ops, const TileGrid& grid, const ReadyTile& ready,
              const ActivationArrays& arrays) {
  double sums[kMaxGroup];
  ops.column_magnitudes(ready.tile, sums);
  const BalanceBuffers& balance = ready.arrays->balance;
  const float power = std::ldexp(1.0f, ready.balance.exponent);
  const double rows = static_cast<double>(ready.tile.rows);
  for (int k = 0; k < ready.tile.group; ++k) {
    const int64_t column = grid.FirstColumn(ready.index) + k;
    arrays.column_scale[column] = balance.best_column_scale[k];
    arrays.weight_magnitude[column] = static_cast<float>(sums[k] / rows);
    arrays.power_of_two[column] = power;
  }
  if (arrays.row_scale == nullptr) return;
  for (int64_t i = 0; i < ready.tile.rows; ++i) {
    arrays.row_scale[grid.FirstGroup(ready.index) + i * grid.GroupStride()] =
        balance.best_row_scale[i];
  }
}

absl::Status SearchColumnFactor(const PassContext& context, const QuantParams& params, int group,
                                const ActivationArrays& arrays, const float** best) {
  const int64_t cols = context.in.cols;
  const std::vector<float> inputs = InputMagnitudes(*context.in.activations, cols);
  for (int step = 0; step < kAlphaSteps; ++step) {
    MakeFactors(inputs, arrays.weight_magnitude, static_cast<double>(step) / kAlphaSteps,
                arrays.factors + step * cols);
  }
  std::vector<double> errors;
  if (absl::Status status = Search(context, params, group, arrays).Measure(errors); !status.ok())
    return status;
  double totals[kAlphaSteps] = {};
  for (size_t i = 0; i < errors.size(); ++i) totals[i % kAlphaSteps] += errors[i];
  // A total that is not a number (overflow) never wins.
  int winner = 0;
  for (int step = 1; step < kAlphaSteps; ++step) {
    if (totals[step] < totals[winner] || std::isnan(totals[winner])) winner = step;
  }
  *best = arrays.factors + winner * cols;
  return absl::OkStatus();
}

}  // namespace sinq::kernels
