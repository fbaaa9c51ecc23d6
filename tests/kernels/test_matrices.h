// Inputs of the kernel tests: matrices as in a layer, and the ones that break arithmetic.
#ifndef SINQ_TESTS_KERNELS_TEST_MATRICES_H_
#define SINQ_TESTS_KERNELS_TEST_MATRICES_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/matrix_view.h"
#include "kernels/quant_params.h"

namespace sinq::kernels {

// A matrix with its storage.
struct TestMatrix {
  int64_t rows = 0, cols = 0;
  WeightDtype dtype = WeightDtype::kBf16;
  std::vector<std::byte> bytes;
  std::vector<float> block_scales;
  std::vector<float> row_factor = {}, column_factor = {};
  std::vector<float> samples = {}, second_moments = {};
  ActivationView activations = {};  // of these two
  MatrixView View() const;
};

// `values` in any dtype but FP8; BF16 by truncation.
TestMatrix StoreMatrix(int64_t rows, int64_t cols, WeightDtype dtype,
                       const std::vector<float>& values);
// Weights as in a layer: rows and columns of different spread, a few outliers. FP8: any codes.
TestMatrix MakeTestMatrix(int64_t rows, int64_t cols, WeightDtype dtype, uint32_t seed);
std::vector<float> LayerLikeValues(int64_t rows, int64_t cols, uint32_t seed);

// Folds scales from 1/4 to 4 into rows, columns or both.
void FoldScales(TestMatrix& matrix, bool rows, bool columns, uint32_t seed);
// Gives the matrix inputs: samples, or the second moments that some samples would have averaged to.
void GiveSamples(TestMatrix& matrix, int64_t tokens, uint32_t seed);
void GiveMoments(TestMatrix& matrix, uint32_t seed);

struct SpecialMatrix {
  const char* name;
  std::vector<float> values;
};
// 64 x 128: zeros, constants, one-sided groups, outliers, the ends of the range.
std::vector<SpecialMatrix> SpecialMatrices();

std::string DescribeCase(const MatrixView& in, const QuantParams& params);

}  // namespace sinq::kernels

#endif  // SINQ_TESTS_KERNELS_TEST_MATRICES_H_
