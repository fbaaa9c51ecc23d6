// The scalar oracle: kernels/README.md, sentence by sentence, in plain loops without vectors,
// blocking or threads. Far too slow to ship and never linked into the server: it exists so that the
// fast code has something to be compared with. It shares only the seam (backend.h, layout.h,
// matrix_view.h, quant_params.h) with the code under test.
#ifndef SINQ_TESTS_REFERENCE_REFERENCE_H_
#define SINQ_TESTS_REFERENCE_REFERENCE_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "tests/reference/reference_numbers.h"

namespace sinq::kernels {

// Deliberate departures from the contract: golden data made with the gate off, and mutants that a
// test must reject.
struct ReferenceOptions {
  bool kurtosis_gate = true;
  bool freeze = true;       // false: keeps looking after the first worse round
  float tau_factor = 1.0f;  // multiplies tau
};

// One group (a row of a tile): its codes are coded by y, scale and zero.
struct ReferenceGroup {
  float scale = 0;
  float zero = 0;
};

struct TileBalance {
  std::vector<float> t;  // [g]
  std::vector<float> r;  // [N]
  int exponent = 0;      // p: the tile is taken times 2^p
  int rounds = 0;
  float imbalance_before = 1;
  float imbalance_after = 1;
};

// Everything known about one quantized tensor. Group arrays are indexed e = row * (K / group) +
// tile, in 2D tiling too.
struct ReferenceTensor {
  int64_t rows = 0, cols = 0;
  int group = 0;
  std::vector<float> w;               // [N*K] the input in fp32
  std::vector<TileBalance> balances;  // per tile
  std::vector<float> factor;          // [K] c of the activation-aware methods, else empty
  std::vector<float> t;               // [K] column scale, fp32; 2D: [N / group, K]
  std::vector<float> scale,
      zero;                // [M] before any storage rounding; upstream: s * r, default: s * 2^-p
  std::vector<int> codes;  // [N*K], row-major
  std::vector<float> stored_t, stored_scale, stored_zero;  // what a reader reconstructs
  std::vector<float> dequantized;                          // [N*K] w'
  TensorStats stats;
};

// ---- the pieces, for tests of single steps

// The tile's elements: w[row * g + k].
TileBalance ReferenceBalance(const std::vector<float>& tile, int64_t rows, int group,
                             const QuantParams& params, const ReferenceOptions& options);
// The same for a tile that is not to be balanced (README.md section 8.2).
TileBalance ReferenceUnbalanced(const std::vector<float>& tile, int64_t rows, int group,
                                const QuantParams& params);
// Profile default: scale and zero of one group from its balanced values (README.md sections 4 and
// 9.1). kLeastError leaves out the last step of the search, for tests of the search alone.
enum class ScaleRule : uint8_t { kUnbiased, kLeastError };
ReferenceGroup ReferenceFit(const std::vector<float>& y, const QuantParams& params, AuxStorage aux,
                            ScaleRule rule = ScaleRule::kUnbiased);
// Every code of the tensor's plane kCodes, unpacked to [N*K] row-major.
std::vector<int> UnpackCodes(const std::byte* packed, int bits, int64_t rows, int64_t cols,
                             int group);

// ---- the whole

// Fills `planes` (sizes of PlanesOf) and tells everything. Errors as Backend::Quantize.
absl::StatusOr<ReferenceTensor> ReferenceQuantize(const MatrixView& in, const QuantParams& params,
                                                  const ReferenceOptions& options,
                                                  absl::Span<const absl::Span<std::byte>> planes);
// Backend::MeasureColumns, and MeasureErrors for one candidate.
absl::StatusOr<std::vector<float>> ReferenceColumns(const MatrixView& in,
                                                    const QuantParams& params);
absl::StatusOr<Measurement> ReferenceErrors(const MatrixView& in, const QuantParams& candidate);

}  // namespace sinq::kernels

#endif  // SINQ_TESTS_REFERENCE_REFERENCE_H_
