// Reads the golden vectors of tests/golden. Test-only: trusts its files.
#ifndef SINQ_TESTS_REFERENCE_GOLDEN_CASE_H_
#define SINQ_TESTS_REFERENCE_GOLDEN_CASE_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "kernels/matrix_view.h"
#include "kernels/quant_params.h"

namespace sinq::kernels {

struct GoldenTensor {
  std::string dtype;
  std::vector<int64_t> shape;
  std::vector<std::byte> bytes;
  std::vector<float> Floats() const;  // of F32, F16, BF16, U8 or I32
};

// One case: what went in and what the authors' code answered.
struct GoldenCase {
  std::string name;
  QuantParams params;  // profile upstream
  int tile = 0;        // the group size really used
  bool gate_enabled = true;
  bool is_f16 = false;  // W rounded to F16, scale, zero and t stored as F16
  bool is_quant_aux = false;
  std::map<std::string, GoldenTensor> tensors;
  std::vector<std::byte> input;  // W as the authors' code saw it: BF16, or F16 if is_f16

  int64_t rows() const { return tensors.at("W").shape[0]; }
  int64_t cols() const { return tensors.at("W").shape[1]; }
  MatrixView View() const {
    return {input.data(), rows(), cols(), is_f16 ? WeightDtype::kF16 : WeightDtype::kBf16, {}};
  }
  std::vector<float> Floats(const std::string& tensor) const { return tensors.at(tensor).Floats(); }
};

// Names in manifest.json, in its order.
std::vector<std::string> GoldenNames(const std::string& directory);
GoldenCase LoadGolden(const std::string& directory, const std::string& name);

}  // namespace sinq::kernels

#endif  // SINQ_TESTS_REFERENCE_GOLDEN_CASE_H_
