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
  std::string input;   // kind of weights: "mild", "tiny", "const", ..
  std::string method;  // upstream's string
  int tile = 0;        // the group size really used
  bool gate_enabled = true;
  bool gate_triggered = false;
  bool is_f16 = false;  // W rounded to F16, scale, zero and t stored as F16
  bool is_quant_aux = false;
  std::map<std::string, GoldenTensor> tensors;
  std::vector<std::byte> weights;  // W as the authors' code saw it: BF16, or F16 if is_f16
  std::vector<float> samples;      // of the activation-aware methods
  ActivationView activations;

  int64_t rows() const { return tensors.at("W").shape[0]; }
  int64_t cols() const { return tensors.at("W").shape[1]; }
  MatrixView View() const {
    MatrixView view{
        weights.data(), rows(), cols(), is_f16 ? WeightDtype::kF16 : WeightDtype::kBf16, {}};
    if (!samples.empty()) view.activations = &activations;
    return view;
  }
  bool is_square() const { return params.tiling == Tiling::k2D; }
  // Values by group from storage order (by tile in 2D) to e = row * (cols / tile) + j.
  std::vector<float> InRowOrder(const std::vector<float>& stored) const;
  std::vector<float> Floats(const std::string& tensor) const { return tensors.at(tensor).Floats(); }
};

// The directory in the environment variable SINQ_GOLDEN_DIR, else `built_in`.
std::string GoldenDirectory(const std::string& built_in);
// Names of the quantized tensors in manifest.json, in its order.
std::vector<std::string> GoldenNames(const std::string& directory);
GoldenCase LoadGolden(const std::string& directory, const std::string& name);

}  // namespace sinq::kernels

#endif  // SINQ_TESTS_REFERENCE_GOLDEN_CASE_H_
