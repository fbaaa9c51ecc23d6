// Output errors against a plain loop in fp64, and the host side of the cuBLAS variant over a table
// of functions that are not cuBLAS.
#include "kernels/output_error.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "gtest/gtest.h"
#include "kernels/output_error_cuda.h"
#include "tests/fakes/fake_cuda_runtime.h"

namespace sinq::kernels {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

// A layer, a slightly wrong copy of it, and samples of its input.
struct Case {
  Case(int64_t row_count, int64_t col_count, int64_t token_count)
      : rows(row_count), cols(col_count), tokens(token_count) {
    std::mt19937 random(static_cast<uint32_t>(rows + cols + tokens));
    std::normal_distribution<float> normal;
    for (int64_t e = 0; e < rows * cols; ++e) {
      original.push_back(normal(random));
      reconstructed.push_back(original.back() + 0.05f * normal(random));
    }
    for (int64_t e = 0; e < tokens * cols; ++e) samples.push_back(normal(random));
    for (int64_t k = 0; k < cols; ++k)
      column_scale.push_back(0.5f + static_cast<float>(k % 7) / 3.0f);
  }
  static MatrixView View(const std::vector<float>& values, int64_t rows, int64_t cols) {
    return {reinterpret_cast<const std::byte*>(values.data()), rows, cols, WeightDtype::kF32, {}};
  }
  OutputErrorInput Input(bool is_balanced) const {
    OutputErrorInput input{
        View(original, rows, cols), View(reconstructed, rows, cols), samples, tokens, {}};
    if (is_balanced) input.column_scale = column_scale;
    return input;
  }

  int64_t rows, cols, tokens;
  std::vector<float> original, reconstructed, samples, column_scale;
};

OutputError PlainLoop(const Case& c, bool is_balanced) {
  OutputError sums;
  for (int64_t m = 0; m < c.tokens; ++m) {
    for (int64_t i = 0; i < c.rows; ++i) {
      double output = 0, changed = 0;
      for (int64_t k = 0; k < c.cols; ++k) {
        const double t = is_balanced ? c.column_scale[static_cast<size_t>(k)] : 1.0;
        const double x = c.samples[static_cast<size_t>(m * c.cols + k)];
        output += x * c.original[static_cast<size_t>(i * c.cols + k)] / t;
        changed += x * c.reconstructed[static_cast<size_t>(i * c.cols + k)] / t;
      }
      sums.error += (changed - output) * (changed - output);
      sums.power += output * output;
    }
  }
  return sums;
}

bool Never() { return false; }

void RunThreaded(size_t n, absl::FunctionRef<void(size_t)> body) {
  std::vector<std::thread> threads;
  for (size_t i = n; i > 0; --i) threads.emplace_back([=] { body(i - 1); });
  for (std::thread& thread : threads) thread.join();
}

// fp64 sums of up to 200 products, in another order: 200 * 2^-53 each, far below 1e-12.
TEST(CpuOutputErrorTest, AgreesWithAPlainLoop) {
  for (const Case& c : {Case(5, 16, 3), Case(33, 200, 4), Case(70, 45, 1), Case(1, 1, 2)}) {
    for (const bool is_balanced : {false, true}) {
      const absl::StatusOr<OutputError> got =
          MakeCpuOutputErrorMeter()->Measure(c.Input(is_balanced), RunSerially, Never);
      ASSERT_TRUE(got.ok()) << got.status();
      const OutputError expected = PlainLoop(c, is_balanced);
      EXPECT_NEAR(got->error / expected.error, 1, 1e-12);
      EXPECT_NEAR(got->power / expected.power, 1, 1e-12);
      EXPECT_NEAR(got->Relative(), std::sqrt(expected.error / expected.power), 1e-12);
    }
  }
}

TEST(CpuOutputErrorTest, ThreadsDoNotMatter) {
  const Case c(130, 100, 5);
  const auto meter = MakeCpuOutputErrorMeter();
  const OutputError serial = meter->Measure(c.Input(true), RunSerially, Never).value();
  const OutputError threaded = meter->Measure(c.Input(true), RunThreaded, Never).value();
  EXPECT_EQ(serial.error, threaded.error);
  EXPECT_EQ(serial.power, threaded.power);
}

TEST(CpuOutputErrorTest, AnExactCopyHasNoError) {
  Case c(8, 32, 2);
  c.reconstructed = c.original;
  const OutputError got =
      MakeCpuOutputErrorMeter()->Measure(c.Input(false), RunSerially, Never).value();
  EXPECT_EQ(got.error, 0);
  EXPECT_GT(got.power, 0);
  EXPECT_EQ(got.Relative(), 0);
}

TEST(CpuOutputErrorTest, CanBeCancelled) {
  const Case c(100, 16, 1);
  int asked = 0;
  const absl::Status status =
      MakeCpuOutputErrorMeter()
          ->Measure(c.Input(false), RunSerially, [&] { return ++asked > 1; })
          .status();
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
  EXPECT_EQ(asked, 2);
}

void ExpectRefusal(const OutputErrorInput& input, const char* what) {
  const absl::Status status =
      MakeCpuOutputErrorMeter()->Measure(input, RunSerially, Never).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), what)) << status;
}

TEST(CpuOutputErrorTest, WhatDoesNotFitTogetherIsNamed) {
  Case c(4, 16, 2);
  OutputErrorInput input = c.Input(true);
  input.reconstructed.rows = 3;
  ExpectRefusal(input, "[3, 16]");
  input = c.Input(true);
  input.tokens = 3;
  ExpectRefusal(input, "samples has 32 values; 48 are needed");
  input.tokens = 0;
  ExpectRefusal(input, "tokens is 0");
  input.tokens = std::numeric_limits<int64_t>::max();
  ExpectRefusal(input, "tokens is");
  input = c.Input(true);
  input.column_scale = input.column_scale.subspan(1);
  ExpectRefusal(input, "column_scale has 15 values");
  c.column_scale[3] = 0;
  ExpectRefusal(c.Input(true), "column_scale[3] is 0");
  c.reconstructed[18] = std::numeric_limits<float>::quiet_NaN();
  ExpectRefusal(c.Input(false), "element [1, 2] is NaN");
  c.reconstructed[18] = 0;
  c.samples[0] = std::numeric_limits<float>::infinity();
  ExpectRefusal(c.Input(false), "a sample is not finite");
}

// ---------------------------------------------------------------- over cuBLAS

// What the functions of the table saw. They take no context but the handle, so this is it.
struct FakeCublas {
  int math_mode = -1, atomics_mode = -1;
  CudaStream stream = nullptr;
  void* workspace = nullptr;
  size_t workspace_bytes = 0;
  int products = 0;
  int created = 0, destroyed = 0;
  int failing_product = 0;  // 1: the next
};
FakeCublas* Of(CublasHandle handle) { return reinterpret_cast<FakeCublas*>(handle); }

thread_local FakeCublas* next_handle = nullptr;

int Create(CublasHandle* handle) {
  *handle = reinterpret_cast<CublasHandle>(next_handle);
  ++next_handle->created;
  return kCublasOk;
}
int Destroy(CublasHandle handle) { return ++Of(handle)->destroyed, kCublasOk; }
int SetStream(CublasHandle handle, CudaStream stream) {
  return Of(handle)->stream = stream, kCublasOk;
}
int SetMathMode(CublasHandle handle, int mode) { return Of(handle)->math_mode = mode, kCublasOk; }
int SetAtomicsMode(CublasHandle handle, int mode) {
  return Of(handle)->atomics_mode = mode, kCublasOk;
}
int SetWorkspace(CublasHandle handle, void* workspace, size_t size_bytes) {
  Of(handle)->workspace = workspace;
  Of(handle)->workspace_bytes = size_bytes;
  return kCublasOk;
}
// Column-major C = op(A) * op(B), for the one combination that is used; fp32 products and sums.
int Sgemm(CublasHandle handle, int transpose_a, int transpose_b, int m, int n, int k,
          const float* alpha, const float* a, int lda, const float* b, int ldb, const float* beta,
          float* c, int ldc) {
  if (++Of(handle)->products == Of(handle)->failing_product) return kCublasAllocFailed;
  if (transpose_a != kCublasTranspose || transpose_b != kCublasNoTranspose || *alpha != 1 ||
      *beta != 0) {
    return -1;
  }
  for (int col = 0; col < n; ++col) {
    for (int row = 0; row < m; ++row) {
      float sum = 0;
      for (int i = 0; i < k; ++i) sum += a[row * lda + i] * b[col * ldb + i];
      c[col * ldc + row] = sum;
    }
  }
  return kCublasOk;
}

std::shared_ptr<const CublasTable> Table() {
  return std::make_shared<CublasTable>(
      CublasTable{Create, Destroy, SetStream, SetMathMode, SetAtomicsMode, SetWorkspace, Sgemm});
}

class CudaOutputErrorTest : public testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<OutputErrorMeter>> Make(size_t device_bytes = 4 * kMiB) {
    next_handle = &cublas_;
    return MakeCudaOutputErrorMeter(runtime_, Table(), {.device = 0, .device_bytes = device_bytes});
  }
  void TearDown() override {
    EXPECT_EQ(runtime_->LiveObjects(), 0u);
    EXPECT_EQ(cublas_.created, cublas_.destroyed);
    EXPECT_TRUE(runtime_->Violations().empty()) << runtime_->Violations().front();
  }

  const std::shared_ptr<FakeCudaRuntime> runtime_ = std::make_shared<FakeCudaRuntime>(
      FakeCudaOptions{.devices = 1, .device_bytes = 64 * kMiB, .major = 9, .minor = 0});
  FakeCublas cublas_;
};

// fp32 products and sums of K = 200 terms: each output is off by at most 200 * 2^-24 of the sum of
// magnitudes, about 1e-5 of itself on average; squares double that.
TEST_F(CudaOutputErrorTest, AgreesWithThePlainLoop) {
  const auto meter = Make().value();
  for (const Case& c : {Case(33, 200, 4), Case(1, 1, 2), Case(70, 45, 1)}) {
    for (const bool is_balanced : {false, true}) {
      const absl::StatusOr<OutputError> got =
          meter->Measure(c.Input(is_balanced), RunSerially, Never);
      ASSERT_TRUE(got.ok()) << got.status();
      const OutputError expected = PlainLoop(c, is_balanced);
      EXPECT_NEAR(got->error / expected.error, 1, 1e-4);
      EXPECT_NEAR(got->power / expected.power, 1, 1e-4);
    }
  }
}

TEST_F(CudaOutputErrorTest, SettingsAreTheDeterministicOnes) {
  const auto meter = Make().value();
  ASSERT_TRUE(meter->Measure(Case(4, 16, 2).Input(false), RunSerially, Never).ok());
  EXPECT_EQ(cublas_.math_mode, kCublasPedanticMath);
  EXPECT_EQ(cublas_.atomics_mode, kCublasAtomicsNotAllowed);
  EXPECT_NE(cublas_.stream, nullptr);
  EXPECT_NE(cublas_.workspace, nullptr);
  EXPECT_GT(cublas_.workspace_bytes, 0u);
}

// Samples take 2 * 512 floats, a row of the layer 512 + 2: room for a few rows at a time.
TEST_F(CudaOutputErrorTest, BlocksOfRowsGiveTheSameFigure) {
  const Case c(50, 512, 2);
  const OutputError whole = Make().value()->Measure(c.Input(true), RunSerially, Never).value();
  EXPECT_EQ(cublas_.products, 2);
  cublas_.products = 0;
  const OutputError cut = Make(20000).value()->Measure(c.Input(true), RunSerially, Never).value();
  EXPECT_GT(cublas_.products, 10);
  // The order of the squares' sum follows the blocks; fp64.
  EXPECT_NEAR(cut.error / whole.error, 1, 1e-12);
  EXPECT_NEAR(cut.power / whole.power, 1, 1e-12);
}

TEST_F(CudaOutputErrorTest, SamplesThatDoNotFitAreRefused) {
  const absl::Status status =
      Make(4096).value()->Measure(Case(4, 512, 4).Input(false), RunSerially, Never).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
}

TEST_F(CudaOutputErrorTest, ErrorsOfCublasAndOfTheDeviceAreTold) {
  const auto meter = Make().value();
  const Case c(4, 16, 2);
  cublas_.failing_product = 1;
  EXPECT_TRUE(
      absl::IsResourceExhausted(meter->Measure(c.Input(false), RunSerially, Never).status()));
  runtime_->FailAt(CudaCall::kCopyToHost, 1, absl::UnavailableError("lost"));
  EXPECT_TRUE(absl::IsUnavailable(meter->Measure(c.Input(false), RunSerially, Never).status()));
  EXPECT_TRUE(absl::IsUnavailable(meter->Measure(c.Input(false), RunSerially, Never).status()));
}

TEST_F(CudaOutputErrorTest, NoMemoryForTheMeterIsAStatus) {
  EXPECT_TRUE(absl::IsResourceExhausted(Make(1000 * kMiB).status()));
}

TEST(LoadCublasTest, AMissingLibraryIsNamed) {
  const absl::Status status = LoadCublas("/nowhere/at/all").status();
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "/nowhere/at/all/libcublas.so.13")) << status;
}

}  // namespace
}  // namespace sinq::kernels
