// The CUDA backend on a device, at the sizes of real layers, against the CPU backend (which the
// oracle checks elsewhere). Skipped, with the reason, where there is no device. SINQ_CUBLAS_DIR
// names the folder of libcublas.so where the dynamic linker does not find it.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "gtest/gtest.h"
#include "kernels/backend_cuda.h"
#include "kernels/cublas.h"
#include "kernels/output_error_cuda.h"
#include "tests/kernels/test_matrices.h"
#include "tests/reference/reference_backend.h"
#include "tests/reference/run_backend.h"

namespace sinq::kernels {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

void RunOnAllCores(size_t n, absl::FunctionRef<void(size_t)> body) {
  const size_t count = std::max(1u, std::thread::hardware_concurrency());
  std::vector<std::thread> threads;
  std::atomic<size_t> next = 0;
  for (size_t t = 0; t < count; ++t) {
    threads.emplace_back([&] {
      for (size_t i = next++; i < n; i = next++) body(i);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// BF16 weights of about the spread of a layer: a sum of four uniform values from a hash of the
// index, columns of different size.
std::vector<std::byte> LayerBytes(int64_t rows, int64_t cols, uint64_t seed) {
  std::vector<std::byte> bytes(static_cast<size_t>(rows * cols) * 2);
  RunOnAllCores(static_cast<size_t>(rows), [&](size_t i) {
    for (size_t k = 0; k < static_cast<size_t>(cols); ++k) {
      uint64_t hash = (i * static_cast<size_t>(cols) + k + seed) * 0x9e3779b97f4a7c15u;
      hash = (hash ^ (hash >> 29)) * 0xbf58476d1ce4e5b9u;
      hash ^= hash >> 32;
      float sum = -2;
      for (int part = 0; part < 4; ++part)
        sum += static_cast<float>((hash >> (16 * part)) & 0xffff) / 65536;
      const float value = sum * 0.02f * static_cast<float>(1 + k % 5);
      uint32_t bits;
      std::memcpy(&bits, &value, sizeof bits);
      const uint16_t half = static_cast<uint16_t>(bits >> 16);
      std::memcpy(&bytes[(i * static_cast<size_t>(cols) + k) * 2], &half, sizeof half);
    }
  });
  return bytes;
}

// Tests make backends of their own: one takes most of the device's memory.
class GpuTest : public testing::Test {
 protected:
  void Start(const CudaOptions& options = {}) {
    absl::StatusOr<std::vector<std::unique_ptr<Backend>>> made = MakeCudaBackends(options);
    if (absl::IsNotFound(made.status())) GTEST_SKIP() << made.status().message();
    ASSERT_TRUE(made.ok()) << made.status();
    backends_ = std::move(*made);
  }
  const Backend& backend() const { return *backends_.front(); }

  void ExpectSameBytes(int64_t rows, int64_t cols, const QuantParams& params) {
    const std::vector<std::byte> bytes = LayerBytes(rows, cols, 1);
    const MatrixView in{bytes.data(), rows, cols, WeightDtype::kBf16, {}};
    const auto cpu = MakeCpuBackend();
    const QuantizedPlanes expected = RunBackend(*cpu, in, params, RunOnAllCores, 16);
    EXPECT_EQ(Difference(expected, RunBackend(backend(), in, params)), "") << rows << " x " << cols;
  }

  std::vector<std::unique_ptr<Backend>> backends_;
};

TEST_F(GpuTest, SmallShapesInEveryWay) {
  Start();
  if (backends_.empty()) return;
  uint32_t seed = 0;
  for (const Profile profile : {Profile::kDefault, Profile::kUpstream}) {
    for (const int bits : {2, 3, 4, 5, 6, 8}) {
      for (const bool symmetric : {false, true}) {
        for (const AuxStorage aux : {AuxStorage::kU8, AuxStorage::kF16}) {
          ++seed;
          const QuantParams params{seed % 3 ? Method::kSinq : Method::kRtn,
                                   profile,
                                   aux,
                                   bits,
                                   32 << seed % 3,
                                   symmetric};
          if (!Validate(params).ok()) continue;
          const TestMatrix matrix =
              MakeTestMatrix(160, 384, static_cast<WeightDtype>(seed % 4), seed);
          const QuantizedPlanes expected = RunBackend(ReferenceBackend(), matrix.View(), params);
          EXPECT_EQ(Difference(expected, RunBackend(backend(), matrix.View(), params)), "")
              << DescribeCase(matrix.View(), params);
        }
      }
    }
  }
}

// Methods, layouts and tilings beyond those: activations with more samples than a block takes at
// once, and second moments.
TEST_F(GpuTest, SmallShapesOfFurtherMethods) {
  Start();
  if (backends_.empty()) return;
  uint32_t seed = 0;
  for (const Method method : {Method::kAsinq, Method::kAsinqL2, Method::kAwq, Method::kHadamard,
                              Method::kSinqHqq, Method::kSinqNf4}) {
    for (const Profile profile : {Profile::kDefault, Profile::kUpstream}) {
      for (const Tiling tiling : {Tiling::k1D, Tiling::k2D}) {
        for (const int tokens : {0, 7, 150}) {
          ++seed;
          QuantParams params{method, profile, AuxStorage::kF16, 4, 32 << seed % 3, false, tiling};
          if (method == Method::kHadamard) params.layout = Layout::kDense;
          if (!Validate(params).ok()) continue;
          TestMatrix matrix = MakeTestMatrix(tiling == Tiling::k2D ? 128 : 165, 384,
                                             static_cast<WeightDtype>(seed % 4), seed);
          if (tokens == 0) GiveMoments(matrix, seed);
          if (tokens > 0) GiveSamples(matrix, tokens, seed);
          const MatrixView in = matrix.View();
          EXPECT_EQ(Difference(RunBackend(ReferenceBackend(), in, params),
                               RunBackend(backend(), in, params)),
                    "")
              << tokens << " tokens " << DescribeCase(in, params);
        }
      }
    }
  }
}

TEST_F(GpuTest, MeasuringCalls) {
  Start();
  if (backends_.empty()) return;
  std::vector<QuantParams> candidates;
  for (const Method method :
       {Method::kSinq, Method::kRtn, Method::kSinqNf4, Method::kHqq, Method::kHadamard}) {
    for (const int bits : {3, 4, 8}) {
      for (const int group : {32, 64, 128}) {
        QuantParams params{method, Profile::kDefault, AuxStorage::kF16, bits, group, false};
        if (method == Method::kHadamard) params.layout = Layout::kDense;
        if (Validate(params).ok()) candidates.push_back(params);
      }
    }
  }
  const auto never = [] { return false; };
  for (uint32_t seed = 0; seed < 4; ++seed) {
    TestMatrix matrix = MakeTestMatrix(165, 384, static_cast<WeightDtype>(seed), seed);
    FoldScales(matrix, seed == 1, seed == 2, 5);
    const MatrixView in = matrix.View();
    std::vector<float> expected(384), actual(384);
    std::vector<Measurement> oracle(candidates.size()), measured(candidates.size());
    ASSERT_TRUE(ReferenceBackend()
                    .MeasureColumns(in, {}, {}, absl::MakeSpan(expected), RunSerially, never)
                    .ok());
    ASSERT_TRUE(backend()
                    .MeasureColumns(in, {}, {}, absl::MakeSpan(actual), RunSerially, never)
                    .ok());
    EXPECT_EQ(expected, actual) << "dtype " << seed;
    ASSERT_TRUE(ReferenceBackend()
                    .MeasureErrors(in, candidates, {}, absl::MakeSpan(oracle), RunSerially, never)
                    .ok());
    ASSERT_TRUE(backend()
                    .MeasureErrors(in, candidates, {}, absl::MakeSpan(measured), RunSerially, never)
                    .ok());
    for (size_t c = 0; c < candidates.size(); ++c) {
      EXPECT_EQ(oracle[c].error, measured[c].error) << DescribeCase(in, candidates[c]);
      EXPECT_EQ(oracle[c].power, measured[c].power) << DescribeCase(in, candidates[c]);
    }
  }
}

TEST_F(GpuTest, SpecialInputs) {
  Start();
  if (backends_.empty()) return;
  for (const SpecialMatrix& special : SpecialMatrices()) {
    const TestMatrix matrix = StoreMatrix(64, 128, WeightDtype::kF32, special.values);
    for (const Profile profile : {Profile::kDefault, Profile::kUpstream}) {
      const QuantParams params{Method::kSinq, profile, AuxStorage::kF16};
      EXPECT_EQ(Difference(RunBackend(ReferenceBackend(), matrix.View(), params),
                           RunBackend(backend(), matrix.View(), params)),
                "")
          << special.name;
    }
  }
}

TEST_F(GpuTest, AttentionLayer) {
  Start();
  if (backends_.empty()) return;
  for (const Profile profile : {Profile::kDefault, Profile::kUpstream})
    ExpectSameBytes(4096, 4096, {Method::kSinq, profile});
}

// A search of real size.
TEST_F(GpuTest, AttentionLayerWithActivations) {
  Start();
  if (backends_.empty()) return;
  const std::vector<std::byte> bytes = LayerBytes(1024, 2048, 1);
  const std::vector<float> samples = LayerLikeValues(256, 2048, 3);
  const ActivationView activations{samples, 256, {}};
  MatrixView in{bytes.data(), 1024, 2048, WeightDtype::kBf16, {}};
  in.activations = &activations;
  const auto cpu = MakeCpuBackend();
  for (const Method method : {Method::kAsinq, Method::kAwq}) {
    const QuantizedPlanes expected = RunBackend(*cpu, in, {method}, RunOnAllCores, 16);
    EXPECT_EQ(Difference(expected, RunBackend(backend(), in, {method})), "");
  }
}

TEST_F(GpuTest, FeedForwardLayer) {
  Start();
  if (backends_.empty()) return;
  ExpectSameBytes(14336, 4096, {});
}

TEST_F(GpuTest, LayerInPanels) {
  CudaOptions options;
  options.streams = 1;
  options.device_budget_bytes = 24 * kMiB;  // a fifth of the weights
  Start(options);
  if (backends_.empty()) return;
  for (const int bits : {3, 4}) {
    QuantParams params;
    params.bits = bits;
    ExpectSameBytes(14336, 4096, params);
  }
}

TEST_F(GpuTest, EmbeddingInPanels) {
  CudaOptions options;
  options.streams = 1;
  options.device_budget_bytes = 1024 * kMiB;
  Start(options);
  if (backends_.empty()) return;
  ExpectSameBytes(151936, 5120, {});
}

TEST_F(GpuTest, OverlappingStreams) {
  Start();
  if (backends_.empty()) return;
  constexpr size_t kTensors = 4;
  const auto cpu = MakeCpuBackend();
  std::vector<std::vector<std::byte>> bytes;
  std::vector<QuantizedPlanes> expected;
  for (size_t i = 0; i < kTensors; ++i) {
    bytes.push_back(LayerBytes(2048, 4096, 1000 * i));
    const MatrixView in{bytes.back().data(), 2048, 4096, WeightDtype::kBf16, {}};
    expected.push_back(RunBackend(*cpu, in, {}, RunOnAllCores, 16));
  }
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = 0; i < 20; ++i) {
        const size_t which = (t + i) % kTensors;
        const MatrixView in{bytes[which].data(), 2048, 4096, WeightDtype::kBf16, {}};
        wrong += !Difference(expected[which], RunBackend(backend(), in, {})).empty();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST_F(GpuTest, AThousandTensorsTakeNoFurtherMemory) {
  Start();
  if (backends_.empty()) return;
  const std::vector<std::byte> bytes = LayerBytes(1024, 1024, 7);
  const MatrixView in{bytes.data(), 1024, 1024, WeightDtype::kBf16, {}};
  const QuantizedPlanes first = RunBackend(backend(), in, {});
  ASSERT_TRUE(first.status.ok()) << first.status;
  // The first tensor loads the kernels.
  const uint64_t used_bytes = backend().device_stats().used_bytes;
  for (int i = 0; i < 1000; ++i)
    ASSERT_EQ(Difference(first, RunBackend(backend(), in, {})), "") << "tensor " << i;
  EXPECT_EQ(backend().device_stats().used_bytes, used_bytes);
  EXPECT_EQ(backend().device_stats().out_of_memory_errors, 0u);
}

TEST_F(GpuTest, NonFiniteElementsAreNamed) {
  Start();
  if (backends_.empty()) return;
  std::vector<float> values = LayerLikeValues(64, 128, 19);
  values[4 * 128 + 70] = std::numeric_limits<float>::quiet_NaN();
  const TestMatrix matrix = StoreMatrix(64, 128, WeightDtype::kF32, values);
  const absl::Status status = RunBackend(backend(), matrix.View(), {}).status;
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
}

TEST(GpuOutputErrorTest, AgreesWithTheCpu) {
  const absl::StatusOr<std::shared_ptr<CudaRuntime>> runtime = MakeCudartRuntime();
  if (absl::IsNotFound(runtime.status())) GTEST_SKIP() << runtime.status().message();
  ASSERT_TRUE(runtime.ok()) << runtime.status();
  const char* const directory = std::getenv("SINQ_CUBLAS_DIR");
  const auto cublas = LoadCublas(directory == nullptr ? "" : directory);
  if (absl::IsNotFound(cublas.status())) GTEST_SKIP() << cublas.status().message();
  ASSERT_TRUE(cublas.ok()) << cublas.status();
  auto meter = MakeCudaOutputErrorMeter(*runtime, *cublas, {});
  ASSERT_TRUE(meter.ok()) << meter.status();
  const std::vector<std::byte> original = LayerBytes(512, 1024, 1);
  const std::vector<std::byte> changed = LayerBytes(512, 1024, 2);
  const std::vector<float> samples = LayerLikeValues(32, 1024, 3);
  const OutputErrorInput input{{original.data(), 512, 1024, WeightDtype::kBf16, {}},
                               {changed.data(), 512, 1024, WeightDtype::kBf16, {}},
                               samples,
                               32,
                               {}};
  const auto never = [] { return false; };
  const OutputError expected =
      MakeCpuOutputErrorMeter()->Measure(input, RunOnAllCores, never).value();
  const absl::StatusOr<OutputError> first = (*meter)->Measure(input, RunSerially, never);
  const absl::StatusOr<OutputError> second = (*meter)->Measure(input, RunSerially, never);
  ASSERT_TRUE(first.ok() && second.ok()) << first.status() << second.status();
  // fp32 products of 1024 terms: at most 1024 * 2^-24 of the sum of magnitudes.
  EXPECT_NEAR(first->Relative() / expected.Relative(), 1, 1e-4);
  EXPECT_EQ(first->error, second->error);
  EXPECT_EQ(first->power, second->power);
}

}  // namespace
}  // namespace sinq::kernels
