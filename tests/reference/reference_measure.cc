// The measuring calls (README.md section 11).
#include <algorithm>
#include <cmath>

#include "tests/reference/reference.h"
#include "tests/reference/reference_fit.h"
#include "tests/reference/reference_numbers.h"

namespace sinq::kernels {
namespace {

Measurement MeasureTile(const std::vector<float>& tile, int64_t rows, int group,
                        const QuantParams& params) {
  const TileBalance balance = Balances(params.method)
                                  ? ReferenceBalance(tile, rows, group, params, {})
                                  : ReferenceUnbalanced(tile, rows, group, params);
  std::vector<float> errors, powers;
  for (int64_t i = 0; i < rows; ++i) {
    std::vector<float> y;
    for (int k = 0; k < group; ++k) {
      const float u =
          Rcp(NearestF16(balance.t[static_cast<size_t>(k)])) * PowerOfTwo(balance.exponent);
      y.push_back(tile[static_cast<size_t>(i * group + k)] * u);
    }
    if (RoundingOf(params.method) == Rounding::kHadamard) y = Hadamard(y);
    powers.push_back(PowerOf(y));
    errors.push_back(
        ScoreError(y, ReferenceFit(y, params, params.aux), RoundingOf(params.method), params.bits));
  }
  const auto sum = [&](const std::vector<float>& values) {
    return std::ldexp(BlockSum(rows, [&](int64_t i) { return values[static_cast<size_t>(i)]; }),
                      -2 * balance.exponent);
  };
  return {sum(errors), sum(powers)};
}

}  // namespace

absl::StatusOr<std::vector<float>> ReferenceColumns(const MatrixView& in,
                                                    const QuantParams& params) {
  std::vector<float> w, t;
  if (absl::Status status = ReadAll(in, w); !status.ok()) return status;
  const int group = EffectiveGroupSize(in.cols, params.group_size);
  for (int64_t k = 0; k < in.cols; k += group) {
    const TileBalance balance =
        ReferenceBalance(CutTile(w, in.cols, 0, in.rows, k, group), in.rows, group, params, {});
    t.insert(t.end(), balance.t.begin(), balance.t.end());
  }
  return t;
}

absl::StatusOr<Measurement> ReferenceErrors(const MatrixView& in, const QuantParams& candidate) {
  std::vector<float> w;
  if (absl::Status status = ReadAll(in, w); !status.ok()) return status;
  QuantParams params = candidate;
  params.aux = EffectiveAux(candidate, in.rows, in.cols);
  const int group = EffectiveGroupSize(in.cols, params.group_size);
  Measurement total;
  for (int64_t k = 0; k < in.cols; k += group) {
    const Measurement tile =
        MeasureTile(CutTile(w, in.cols, 0, in.rows, k, group), in.rows, group, params);
    total.error += tile.error;
    total.power += tile.power;
  }
  return total;
}

}  // namespace sinq::kernels
