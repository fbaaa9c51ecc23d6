// CudaBackend without a device: its own code, the device code executed on the CPU, and a runtime
// that fails on demand. The oracle says which bytes are right.
#include "kernels/backend_cuda.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/measuring.h"
#include "tests/fakes/fake_cuda_runtime.h"
#include "tests/kernels/test_matrices.h"
#include "tests/reference/golden_case.h"
#include "tests/reference/reference_backend.h"
#include "tests/reference/run_backend.h"

namespace sinq::kernels {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

// A backend on a device of its own.
struct Rig {
  std::shared_ptr<FakeCudaRuntime> runtime;
  std::vector<std::unique_ptr<Backend>> backends;

  explicit Rig(const CudaOptions& options = {}, const FakeCudaOptions& device = {})
      : runtime(std::make_shared<FakeCudaRuntime>(device)) {
    absl::StatusOr<std::vector<std::unique_ptr<Backend>>> made =
        MakeCudaBackendsOn(runtime, options);
    EXPECT_TRUE(made.ok()) << made.status();
    if (made.ok()) backends = std::move(*made);
  }
  ~Rig() {
    backends.clear();
    EXPECT_EQ(runtime->LiveObjects(), 0u);
    for (const std::string& violation : runtime->Violations()) ADD_FAILURE() << violation;
  }
  const Backend& backend() const { return *backends.front(); }
};

// One stream whose arena is `bytes`, so that tensors are cut; any piece is allowed.
CudaOptions Tight(size_t bytes) {
  CudaOptions options;
  options.streams = 1;
  options.device_budget_bytes = bytes;
  options.panel_floor_bytes = 1;
  return options;
}

size_t SmallestArena(const MatrixView& in, const QuantParams& params) {
  size_t bytes = 4096;
  while (!PlanCudaMemory(in, params, bytes, bytes).ok()) bytes += kArenaAlignment;
  return bytes;
}

std::string DifferenceFromOracle(const Backend& backend, const MatrixView& in,
                                 const QuantParams& params) {
  return Difference(RunBackend(ReferenceBackend(), in, params), RunBackend(backend, in, params));
}

// ---------------------------------------------------------------- the same bytes

class GoldenInputTest : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Golden, GoldenInputTest, testing::ValuesIn(GoldenNames(SINQ_GOLDEN_DIR)),
                         [](const testing::TestParamInfo<std::string>& info) {
                           return info.param;
                         });

TEST_P(GoldenInputTest, SameBytesAsTheOracle) {
  const GoldenCase golden = LoadGolden(SINQ_GOLDEN_DIR, GetParam());
  const Rig rig;
  for (const Profile profile : {Profile::kUpstream, Profile::kDefault}) {
    QuantParams params = golden.params;
    params.profile = profile;
    EXPECT_EQ(DifferenceFromOracle(rig.backend(), golden.View(), params), "");
  }
}

std::vector<QuantParams> Sweep() {
  std::vector<QuantParams> all;
  for (const Profile profile : {Profile::kDefault, Profile::kUpstream}) {
    for (const int bits : {2, 3, 4, 5, 6, 8}) {
      for (const bool symmetric : {false, true}) {
        const Method method = bits == 5 ? Method::kRtn : Method::kSinq;
        const AuxStorage aux = bits % 2 ? AuxStorage::kF16 : AuxStorage::kU8;
        const QuantParams params{method, profile, aux, bits, bits == 8 ? 32 : 64, symmetric};
        if (Validate(params).ok()) all.push_back(params);
      }
    }
  }
  return all;
}

TEST(CudaBackendTest, SameBytesInEveryShapeAndDtype) {
  const Rig rig;
  uint32_t seed = 0;
  for (const QuantParams& params : Sweep()) {
    for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{32, 128}, {97, 64}, {160, 48}}) {
      ++seed;
      const auto dtype = static_cast<WeightDtype>(seed % 4);
      const TestMatrix matrix = MakeTestMatrix(rows, cols, dtype, seed);
      if (!PlanesOf(params, rows, cols).ok()) continue;
      EXPECT_EQ(DifferenceFromOracle(rig.backend(), matrix.View(), params), "")
          << DescribeCase(matrix.View(), params);
    }
  }
}

// From one tile and one packed row at a time up to everything at once.
TEST(CudaBackendTest, SameBytesInPanelsOfEverySize) {
  uint32_t seed = 100;
  for (const QuantParams& params : Sweep()) {
    ++seed;
    const TestMatrix matrix = MakeTestMatrix(64, 192, static_cast<WeightDtype>(seed % 4), seed);
    const MatrixView in = matrix.View();
    const size_t smallest = SmallestArena(in, params);
    int fewest_launches = std::numeric_limits<int>::max();
    for (const size_t bytes : {smallest, smallest * 5 / 4, smallest * 2, 4 * kMiB}) {
      const Rig rig(Tight(bytes));
      EXPECT_EQ(DifferenceFromOracle(rig.backend(), in, params), "")
          << bytes << " bytes, " << DescribeCase(in, params);
      const int launches = rig.runtime->Calls(CudaCall::kLaunch);
      // In between, a tensor that is just resident leaves room for few tiles to a panel.
      if (bytes == 4 * kMiB) {
        EXPECT_LE(launches, fewest_launches);
      }
      EXPECT_GT(launches, bytes == smallest ? 6 : 4) << DescribeCase(in, params);
      fewest_launches = std::min(fewest_launches, launches);
    }
  }
}

// Folded factors are multiplied out on the device (README.md section 8.1).
TEST(CudaBackendTest, FoldedFactorsReachTheDevice) {
  std::vector<float> row_factor, column_factor;
  for (int i = 0; i < 64; ++i) row_factor.push_back(1 + 0.013f * static_cast<float>(i));
  for (int k = 0; k < 128; ++k) column_factor.push_back(2 - 0.011f * static_cast<float>(k));
  for (const WeightDtype dtype : {WeightDtype::kBf16, WeightDtype::kF8E4M3}) {
    for (const Profile profile : {Profile::kDefault, Profile::kUpstream}) {
      const TestMatrix matrix = MakeTestMatrix(64, 128, dtype, 5);
      MatrixView folded = matrix.View();
      folded.row_factor = row_factor;
      folded.column_factor = column_factor;
      QuantParams params;
      params.profile = profile;
      for (const size_t bytes : {SmallestArena(folded, params), 4 * kMiB}) {
        const Rig rig(Tight(bytes));
        EXPECT_EQ(DifferenceFromOracle(rig.backend(), folded, params), "");
      }
    }
  }
}

// What other formats and methods ask of the same steps, whole and in the smallest pieces.
std::vector<QuantParams> FurtherParams() {
  std::vector<QuantParams> all;
  for (const Layout layout :
       {Layout::kHqq, Layout::kCompressedTensors, Layout::kAwq, Layout::kGptq, Layout::kGptqV2,
        Layout::kGgufQ4_0, Layout::kGgufQ4_1, Layout::kGgufQ8_0, Layout::kDense}) {
    for (const Method method :
         {Method::kSinq, Method::kRtn, Method::kHqq, Method::kNf4, Method::kSinqNf3,
          Method::kHadamard}) {
      for (const int bits : {3, 4, 8}) {
        for (const int group : {32, 64}) {
          for (const bool symmetric : {false, true}) {
            QuantParams params{method, Profile::kDefault, AuxStorage::kF16, bits, group, symmetric};
            params.layout = layout;
            if (Validate(params).ok()) all.push_back(params);
          }
        }
      }
    }
  }
  for (const Method method : {Method::kSinq, Method::kSinqHqq, Method::kSinqNf4, Method::kNf3}) {
    for (const Tiling tiling : {Tiling::k1D, Tiling::k2D}) {
      for (const AuxStorage aux : {AuxStorage::kU8, AuxStorage::kBf16, AuxStorage::kF32}) {
        QuantParams params{method, Profile::kDefault, aux, method == Method::kNf3 ? 3 : 4};
        params.tiling = tiling;
        if (Validate(params).ok()) all.push_back(params);
      }
    }
  }
  return all;
}

TEST(CudaBackendTest, SameBytesInEveryLayoutAndMethod) {
  const auto cpu = MakeCpuBackend();
  uint32_t seed = 200;
  int cases = 0;
  for (const QuantParams& params : FurtherParams()) {
    ++seed;
    const auto dtype = static_cast<WeightDtype>(seed % 3);
    const TestMatrix matrix = MakeTestMatrix(192, 128, dtype, seed);
    const MatrixView in = matrix.View();
    const QuantizedPlanes expected = RunBackend(*cpu, in, params);
    if (!expected.status.ok()) continue;
    ++cases;
    for (const size_t bytes : {SmallestArena(in, params), 4 * kMiB}) {
      const Rig rig(Tight(bytes));
      EXPECT_EQ(Difference(expected, RunBackend(rig.backend(), in, params)), "")
          << bytes << " bytes, layout " << static_cast<int>(params.layout) << " "
          << DescribeCase(in, params);
      if (HasFailure()) return;
    }
  }
  EXPECT_GT(cases, 40);
}

// A call whose input and outputs lie in the backend's own memory.
QuantizedPlanes RunPinned(const Backend& backend, const MatrixView& in, const QuantParams& params) {
  HostMemory& memory = *backend.host_memory();
  QuantizedPlanes out;
  out.specs = PlanesOf(params, in.rows, in.cols).value();
  std::byte* const weights = memory.Allocate(in.SizeBytes()).value();
  std::memcpy(weights, in.data, in.SizeBytes());
  std::vector<absl::Span<std::byte>> views;
  for (const PlaneSpec& spec : out.specs)
    views.push_back({memory.Allocate(spec.size_bytes).value(), spec.size_bytes});
  MatrixView pinned = in;
  pinned.data = weights;
  out.status = backend.Quantize(
      pinned, params, {}, views, RunSerially, [] { return false; }, &out.stats);
  EXPECT_EQ(std::memcmp(weights, in.data, in.SizeBytes()), 0);
  for (const absl::Span<std::byte> view : views) {
    out.planes.emplace_back(view.begin(), view.end());
    memory.Free(view.data(), view.size());
  }
  memory.Free(weights, in.SizeBytes());
  return out;
}

TEST(CudaBackendTest, PinnedMemoryIsCopiedByTheDevice) {
  const TestMatrix matrix = MakeTestMatrix(64, 192, WeightDtype::kBf16, 6);
  const QuantizedPlanes expected = RunBackend(ReferenceBackend(), matrix.View(), {});
  for (const size_t bytes : {SmallestArena(matrix.View(), {}), 4 * kMiB}) {
    const Rig rig(Tight(bytes));
    EXPECT_EQ(Difference(expected, RunPinned(rig.backend(), matrix.View(), {})), "");
  }
  // In one piece: one copy of the weights, and nothing through the staging ring but the figures.
  const Rig rig;
  ASSERT_TRUE(RunPinned(rig.backend(), matrix.View(), {}).status.ok());
  EXPECT_EQ(rig.runtime->Calls(CudaCall::kCopyToDevice), 1);
}

// ---------------------------------------------------------------- measuring

std::vector<QuantParams> MeasuredCandidates() {
  std::vector<QuantParams> candidates;
  for (const Method method : {Method::kSinq, Method::kRtn, Method::kSinqNf4, Method::kHqq}) {
    for (const int bits : {3, 4, 8}) {
      for (const int group : {32, 64}) {
        QuantParams params{method, Profile::kDefault, AuxStorage::kF16, bits, group, false};
        if (Validate(params).ok()) candidates.push_back(params);
      }
    }
  }
  return candidates;
}

absl::StatusOr<std::vector<Measurement>> ErrorsOf(const Backend& backend, const MatrixView& in,
                                                  absl::Span<const QuantParams> candidates) {
  std::vector<Measurement> measured(candidates.size());
  absl::Status status = backend.MeasureErrors(
      in, candidates, {}, absl::MakeSpan(measured), RunSerially, [] { return false; });
  if (!status.ok()) return status;
  return measured;
}

absl::StatusOr<std::vector<float>> ColumnsOf(const Backend& backend, const MatrixView& in,
                                             const QuantParams& params = {}) {
  std::vector<float> t(static_cast<size_t>(in.cols));
  absl::Status status = backend.MeasureColumns(in, params, {}, absl::MakeSpan(t), RunSerially,
                                               [] { return false; });
  if (!status.ok()) return status;
  return t;
}

// The least memory that a set of candidates can be measured in.
size_t SmallestMeasuringArena(const MatrixView& in, absl::Span<const QuantParams> candidates) {
  size_t bytes = 4096;
  for (const std::vector<size_t>& shared : SharedTiles(in.cols, candidates)) {
    std::vector<CudaTensor> tensors;
    for (const size_t c : shared)
      tensors.push_back(PlanErrorMeasure(candidates[c], in.rows, in.cols));
    while (!PlanCudaMeasure(in, tensors, bytes, bytes).ok()) bytes += kArenaAlignment;
  }
  return bytes;
}

void ExpectOraclesErrors(const Backend& backend, const MatrixView& in,
                         absl::Span<const QuantParams> candidates) {
  const auto expected = ErrorsOf(ReferenceBackend(), in, candidates);
  const auto actual = ErrorsOf(backend, in, candidates);
  ASSERT_TRUE(expected.ok() && actual.ok()) << actual.status();
  for (size_t c = 0; c < candidates.size(); ++c) {
    EXPECT_EQ((*expected)[c].error, (*actual)[c].error) << DescribeCase(in, candidates[c]);
    EXPECT_EQ((*expected)[c].power, (*actual)[c].power) << DescribeCase(in, candidates[c]);
  }
}

TEST(CudaBackendMeasureTest, ErrorsAreTheOraclesInPanelsOfEverySize) {
  const std::vector<QuantParams> candidates = MeasuredCandidates();
  std::vector<float> column_factor;
  for (int k = 0; k < 192; ++k) column_factor.push_back(2 - 0.009f * static_cast<float>(k));
  for (const WeightDtype dtype : {WeightDtype::kBf16, WeightDtype::kF8E4M3}) {
    const TestMatrix matrix = MakeTestMatrix(75, 192, dtype, 41);
    MatrixView in = matrix.View();
    if (dtype == WeightDtype::kBf16) in.column_factor = column_factor;
    const size_t smallest = SmallestMeasuringArena(in, candidates);
    for (const size_t bytes : {smallest, smallest * 3 / 2, 4 * kMiB}) {
      const Rig rig(Tight(bytes));
      ExpectOraclesErrors(rig.backend(), in, candidates);
    }
  }
}

// A balanced panel serves every candidate of its set.
TEST(CudaBackendMeasureTest, CandidatesShareTheBalancing) {
  const std::vector<QuantParams> four(4, QuantParams{});
  const TestMatrix matrix = MakeTestMatrix(32, 64, WeightDtype::kBf16, 42);
  const Rig rig(Tight(4 * kMiB));
  ASSERT_TRUE(ErrorsOf(rig.backend(), matrix.View(), four).ok());
  EXPECT_EQ(rig.runtime->Calls(CudaCall::kLaunch), 1 + 4 + 4);
}

TEST(CudaBackendMeasureTest, ColumnsAreTheOraclesInPanelsOfEverySize) {
  for (const Profile profile : {Profile::kDefault, Profile::kUpstream}) {
    QuantParams params{Method::kRtn, profile};  // the method does not matter
    const TestMatrix matrix = MakeTestMatrix(101, 192, WeightDtype::kBf16, 43);
    const MatrixView in = matrix.View();
    const auto expected = ColumnsOf(ReferenceBackend(), in, params);
    ASSERT_TRUE(expected.ok());
    const CudaTensor tensor = PlanColumnMeasure(params, in.rows, in.cols);
    size_t smallest = 4096;
    while (!PlanCudaMeasure(in, {tensor}, smallest, smallest).ok()) smallest += kArenaAlignment;
    for (const size_t bytes : {smallest, smallest * 3 / 2, 4 * kMiB}) {
      const Rig rig(Tight(bytes));
      const auto actual = ColumnsOf(rig.backend(), in, params);
      ASSERT_TRUE(actual.ok()) << actual.status();
      EXPECT_EQ(*expected, *actual) << bytes;
    }
    const Rig rig(Tight(smallest - kArenaAlignment));
    EXPECT_TRUE(absl::IsResourceExhausted(ColumnsOf(rig.backend(), in, params).status()));
  }
}

TEST(CudaBackendMeasureTest, NonFiniteElementsAreNamed) {
  std::vector<float> values = LayerLikeValues(64, 128, 19);
  values[9 * 128 + 3] = std::numeric_limits<float>::infinity();
  values[4 * 128 + 70] = std::numeric_limits<float>::quiet_NaN();
  const TestMatrix matrix = StoreMatrix(64, 128, WeightDtype::kF32, values);
  const Rig rig;
  for (const absl::Status& status :
       {ColumnsOf(rig.backend(), matrix.View()).status(),
        ErrorsOf(rig.backend(), matrix.View(), MeasuredCandidates()).status()}) {
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), "[4, 70] is NaN")) << status;
  }
}

TEST(CudaBackendMeasureTest, WhatCannotBeMeasuredIsRefused) {
  const Rig rig;
  const TestMatrix odd = MakeTestMatrix(32, 40, WeightDtype::kBf16, 1);
  EXPECT_TRUE(absl::IsFailedPrecondition(ColumnsOf(rig.backend(), odd.View()).status()));
  const TestMatrix matrix = MakeTestMatrix(32, 64, WeightDtype::kBf16, 1);
  QuantParams wrong;
  wrong.bits = 7;
  EXPECT_TRUE(absl::IsInvalidArgument(ColumnsOf(rig.backend(), matrix.View(), wrong).status()));
  MatrixView folded = matrix.View();
  const std::vector<float> short_factor(63);
  folded.column_factor = short_factor;
  EXPECT_TRUE(absl::IsInternal(ColumnsOf(rig.backend(), folded).status()));
}

TEST(CudaBackendMeasureTest, ShortageAndLossAreHandledAsForQuantizing) {
  const TestMatrix matrix = MakeTestMatrix(64, 256, WeightDtype::kBf16, 44);
  const std::vector<QuantParams> candidates = MeasuredCandidates();
  for (const CudaCall call : {CudaCall::kLaunch, CudaCall::kCopyToDevice, CudaCall::kCopyToHost}) {
    const Rig rig(Tight(8 * kMiB));
    rig.runtime->FailAt(call, 2, absl::ResourceExhaustedError("short of memory"));
    ExpectOraclesErrors(rig.backend(), matrix.View(), candidates);
    EXPECT_EQ(rig.backend().device_stats().out_of_memory_errors, 1u);
    rig.runtime->FailAt(call, 2, absl::UnavailableError("gone"));
    const absl::Status status = ErrorsOf(rig.backend(), matrix.View(), candidates).status();
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_FALSE(rig.backend().healthy());
  }
}

TEST(CudaBackendMeasureTest, CancelledBetweenPanels) {
  const TestMatrix matrix = MakeTestMatrix(64, 256, WeightDtype::kBf16, 45);
  const std::vector<QuantParams> one = {{}};
  const Rig rig(Tight(SmallestMeasuringArena(matrix.View(), one)));
  std::vector<Measurement> measured(1);
  for (const int stop : {1, 2, 4}) {
    int asked = 0;
    const absl::Status status =
        rig.backend().MeasureErrors(matrix.View(), one, {}, absl::MakeSpan(measured), RunSerially,
                                    [&] { return ++asked == stop; });
    EXPECT_TRUE(absl::IsCancelled(status)) << status;
    EXPECT_EQ(asked, stop);
  }
}

// ---------------------------------------------------------------- many at once

TEST(CudaBackendTest, ManyThreadsShareTheStreams) {
  const Rig rig;
  std::vector<TestMatrix> matrices;
  std::vector<QuantizedPlanes> expected;
  for (uint32_t seed = 0; seed < 4; ++seed) {
    matrices.push_back(MakeTestMatrix(32 + 16 * seed, 128, WeightDtype::kBf16, seed));
    expected.push_back(RunBackend(ReferenceBackend(), matrices.back().View(), {}));
  }
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = 0; i < 6; ++i) {
        const size_t which = (t + i) % matrices.size();
        const QuantizedPlanes got = RunBackend(rig.backend(), matrices[which].View(), {});
        wrong += !Difference(expected[which], got).empty();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  const DeviceStats stats = rig.backend().device_stats();
  EXPECT_GT(stats.h2d_seconds, 0);
  EXPECT_GT(stats.quantize_seconds, 0);
  EXPECT_GT(stats.d2h_seconds, 0);
  EXPECT_GT(stats.peak_bytes, 0u);
  EXPECT_LE(stats.peak_bytes, stats.reserved_bytes);
}

TEST(CudaBackendTest, TwoDevicesWorkSideBySide) {
  const Rig rig({}, {.devices = 2});
  ASSERT_EQ(rig.backends.size(), 2u);
  const TestMatrix matrix = MakeTestMatrix(64, 128, WeightDtype::kBf16, 9);
  std::vector<std::thread> threads;
  for (const std::unique_ptr<Backend>& backend : rig.backends) {
    threads.emplace_back([&] {
      for (int i = 0; i < 4; ++i) EXPECT_EQ(DifferenceFromOracle(*backend, matrix.View(), {}), "");
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(CudaBackendTest, AThousandTensorsTakeNoFurtherMemory) {
  const Rig rig;
  const size_t bytes = rig.runtime->DeviceBytesInUse(), objects = rig.runtime->LiveObjects();
  const int allocations = rig.runtime->Calls(CudaCall::kAllocateDevice);
  const TestMatrix matrix = MakeTestMatrix(16, 32, WeightDtype::kBf16, 3);
  const QuantParams params{Method::kRtn};
  for (int i = 0; i < 1000; ++i) {
    ASSERT_TRUE(RunBackend(rig.backend(), matrix.View(), params).status.ok());
    ASSERT_EQ(rig.runtime->DeviceBytesInUse(), bytes);
  }
  EXPECT_EQ(rig.runtime->LiveObjects(), objects);
  EXPECT_EQ(rig.runtime->Calls(CudaCall::kAllocateDevice), allocations);
}

// ---------------------------------------------------------------- faults

TEST(CudaBackendFaultTest, OutOfMemoryIsTriedAgainInSmallerPanels) {
  const TestMatrix matrix = MakeTestMatrix(64, 256, WeightDtype::kBf16, 11);
  const QuantizedPlanes expected = RunBackend(ReferenceBackend(), matrix.View(), {});
  for (const CudaCall call : {CudaCall::kLaunch, CudaCall::kCopyToDevice, CudaCall::kCopyToHost}) {
    const Rig rig(Tight(8 * kMiB));
    rig.runtime->FailAt(call, 1, absl::ResourceExhaustedError("short of memory"));
    EXPECT_EQ(Difference(expected, RunBackend(rig.backend(), matrix.View(), {})), "");
    EXPECT_EQ(rig.backend().device_stats().out_of_memory_errors, 1u);
    EXPECT_TRUE(rig.backend().healthy());
    // Cut into panels the second time: more than the five steps of a tensor in one piece.
    EXPECT_GT(rig.runtime->Calls(CudaCall::kLaunch), call == CudaCall::kLaunch ? 6 : 5);
  }
}

TEST(CudaBackendFaultTest, LastingShortageEndsAtTheFloor) {
  const TestMatrix matrix = MakeTestMatrix(64, 256, WeightDtype::kBf16, 12);
  for (const size_t floor_bytes : {size_t{1}, size_t{20000}, 64 * kMiB}) {
    CudaOptions options = Tight(8 * kMiB);
    options.panel_floor_bytes = floor_bytes;
    const Rig rig(options);
    rig.runtime->FailAlways(CudaCall::kLaunch, absl::ResourceExhaustedError("short of memory"));
    const absl::Status status = RunBackend(rig.backend(), matrix.View(), {}).status;
    EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
    const uint64_t tries = rig.backend().device_stats().out_of_memory_errors;
    EXPECT_GE(tries, floor_bytes == 1 ? 3u : 1u);
    EXPECT_LE(tries, floor_bytes == 64 * kMiB ? 1u : 12u);
    rig.runtime->Heal();
    EXPECT_EQ(DifferenceFromOracle(rig.backend(), matrix.View(), {}), "");
  }
}

TEST(CudaBackendFaultTest, ATensorThatCannotFitIsRefused) {
  const TestMatrix matrix = MakeTestMatrix(64, 256, WeightDtype::kBf16, 13);
  const Rig rig(Tight(SmallestArena(matrix.View(), {}) - kArenaAlignment));
  const absl::Status status = RunBackend(rig.backend(), matrix.View(), {}).status;
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "[64, 256]")) << status;
}

TEST(CudaBackendFaultTest, AFailedLaunchIsAnErrorAndNoLoss) {
  const TestMatrix matrix = MakeTestMatrix(32, 64, WeightDtype::kBf16, 14);
  const Rig rig;
  rig.runtime->FailAt(CudaCall::kLaunch, 2, absl::InternalError("no kernel image"));
  EXPECT_TRUE(absl::IsInternal(RunBackend(rig.backend(), matrix.View(), {}).status));
  EXPECT_TRUE(rig.backend().healthy());
  EXPECT_EQ(rig.backend().device_stats().launch_errors, 1u);
  EXPECT_EQ(DifferenceFromOracle(rig.backend(), matrix.View(), {}), "");
}

// What the calls of one Quantize are, in panels so that there are many.
void ExpectLossIsReported(CudaCall call, int nth, const TestMatrix& matrix,
                          const QuantParams& params) {
  const std::string where = absl::StrCat("call kind ", static_cast<int>(call), " number ", nth);
  const Rig rig(Tight(SmallestArena(matrix.View(), params)));
  const std::vector<std::byte> before = matrix.bytes;
  rig.runtime->FailAt(call, nth, absl::UnavailableError("the device fell off the bus"));
  const absl::Status status = RunBackend(rig.backend(), matrix.View(), params).status;
  EXPECT_TRUE(absl::IsUnavailable(status)) << where << ": " << status;
  EXPECT_FALSE(rig.backend().healthy()) << where;
  EXPECT_EQ(matrix.bytes, before);
  const int copies = rig.runtime->Calls(CudaCall::kCopyToDevice);
  EXPECT_TRUE(absl::IsUnavailable(RunBackend(rig.backend(), matrix.View(), params).status));
  EXPECT_EQ(rig.runtime->Calls(CudaCall::kCopyToDevice), copies);
  EXPECT_EQ(rig.backend().device_stats().used_bytes, 0u);
}

TEST(CudaBackendFaultTest, ALossIsReportedWhereverItHappens) {
  const TestMatrix matrix = MakeTestMatrix(32, 128, WeightDtype::kBf16, 15);
  QuantParams params;
  params.profile = Profile::kUpstream;  // the most steps
  params.aux = AuxStorage::kF16;
  int sites = 0;
  for (const CudaCall call : kAllCudaCalls) {
    int calls;
    {
      const Rig rig(Tight(SmallestArena(matrix.View(), params)));
      const int made = rig.runtime->Calls(call);
      ASSERT_TRUE(RunBackend(rig.backend(), matrix.View(), params).status.ok());
      calls = rig.runtime->Calls(call) - made;
    }
    for (int nth = 1; nth <= calls; nth += nth < 12 ? 1 : 7) {
      ExpectLossIsReported(call, nth, matrix, params);
      ++sites;
    }
  }
  EXPECT_GT(sites, 50);
}

TEST(CudaBackendFaultTest, NothingIsLeftOfAHalfMadeBackend) {
  for (const CudaCall call : kAllCudaCalls) {
    int calls;
    {
      const Rig rig;
      calls = rig.runtime->Calls(call);
    }
    for (int nth = 1; nth <= calls; ++nth) {
      for (const absl::Status& error :
           {absl::UnavailableError("lost"), absl::InternalError("odd")}) {
        const auto runtime = std::make_shared<FakeCudaRuntime>();
        runtime->FailAt(call, nth, error);
        const absl::Status status = MakeCudaBackendsOn(runtime, {}).status();
        // The last call is the destructor's, which can do nothing about it.
        if (call == CudaCall::kUseDevice && nth == calls) continue;
        EXPECT_EQ(status.code(), error.code()) << static_cast<int>(call) << " " << nth;
        EXPECT_EQ(runtime->LiveObjects(), 0u);
      }
    }
  }
}

// A loss must not keep those waiting that wait for a stream.
TEST(CudaBackendFaultTest, WaitingCallsHearOfTheLoss) {
  CudaOptions options;
  options.streams = 1;
  const Rig rig(options);
  const TestMatrix matrix = MakeTestMatrix(64, 128, WeightDtype::kBf16, 16);
  rig.runtime->FailAt(CudaCall::kSynchronize, 2, absl::UnavailableError("lost"));
  std::atomic<int> lost = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 6; ++t) {
    threads.emplace_back([&] {
      while (!absl::IsUnavailable(RunBackend(rig.backend(), matrix.View(), {}).status)) {
      }
      ++lost;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(lost, 6);
}

// ---------------------------------------------------------------- cancelling, refusing, options

absl::Status QuantizeAsking(const Backend& backend, const TestMatrix& matrix,
                            absl::FunctionRef<bool()> cancelled) {
  const std::vector<PlaneSpec> specs = PlanesOf({}, matrix.rows, matrix.cols).value();
  std::vector<std::vector<std::byte>> planes;
  std::vector<absl::Span<std::byte>> views;
  for (const PlaneSpec& spec : specs) planes.emplace_back(spec.size_bytes);
  for (std::vector<std::byte>& plane : planes) views.push_back(absl::MakeSpan(plane));
  TensorStats stats;
  return backend.Quantize(matrix.View(), {}, {}, views, RunSerially, cancelled, &stats);
}

TEST(CudaBackendTest, CancelledBetweenPanels) {
  const TestMatrix matrix = MakeTestMatrix(64, 256, WeightDtype::kBf16, 17);
  const Rig rig(Tight(SmallestArena(matrix.View(), {})));
  int asked = 0;
  ASSERT_TRUE(QuantizeAsking(rig.backend(), matrix, [&] { return ++asked < 0; }).ok());
  const int questions = asked;
  EXPECT_GE(questions, 1 + 4 + 4);  // before, between four panels and between the ranges of rows
  for (int stop = 1; stop <= questions; ++stop) {
    asked = 0;
    const absl::Status status =
        QuantizeAsking(rig.backend(), matrix, [&] { return ++asked == stop; });
    EXPECT_TRUE(absl::IsCancelled(status)) << status;
    EXPECT_EQ(asked, stop);
  }
  EXPECT_EQ(DifferenceFromOracle(rig.backend(), matrix.View(), {}), "");
}

TEST(CudaBackendTest, AWaitForAStreamCanBeCancelled) {
  CudaOptions options;
  options.streams = 1;
  const Rig rig(options);
  const TestMatrix matrix = MakeTestMatrix(32, 64, WeightDtype::kBf16, 18);
  absl::Status inner;
  const absl::Status outer = QuantizeAsking(rig.backend(), matrix, [&] {
    // The only stream is ours; another call of another thread finds none.
    if (inner.ok()) {
      std::thread([&] {
        inner = QuantizeAsking(rig.backend(), matrix, [] { return true; });
      }).join();
    }
    return false;
  });
  EXPECT_TRUE(outer.ok()) << outer;
  EXPECT_TRUE(absl::IsCancelled(inner)) << inner;
}

TEST(CudaBackendTest, NonFiniteElementsAreNamed) {
  for (const Profile profile : {Profile::kDefault, Profile::kUpstream}) {
    std::vector<float> values = LayerLikeValues(64, 128, 19);
    values[9 * 128 + 3] = std::numeric_limits<float>::infinity();
    values[4 * 128 + 70] = std::numeric_limits<float>::quiet_NaN();
    const TestMatrix matrix = StoreMatrix(64, 128, WeightDtype::kF32, values);
    QuantParams params;
    params.profile = profile;
    for (const size_t bytes : {SmallestArena(matrix.View(), params), 4 * kMiB}) {
      const Rig rig(Tight(bytes));
      const absl::Status status = RunBackend(rig.backend(), matrix.View(), params).status;
      EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
      EXPECT_TRUE(absl::StrContains(status.message(), "[4, 70] is NaN")) << status;
    }
  }
}

TEST(CudaBackendTest, SpecialInputsGiveTheSameAnswer) {
  const Rig rig;
  for (const SpecialMatrix& special : SpecialMatrices()) {
    const TestMatrix matrix = StoreMatrix(64, 128, WeightDtype::kF32, special.values);
    for (const AuxStorage aux : {AuxStorage::kU8, AuxStorage::kF16}) {
      const QuantParams params{Method::kSinq, Profile::kDefault, aux};
      EXPECT_EQ(DifferenceFromOracle(rig.backend(), matrix.View(), params), "") << special.name;
    }
  }
}

TEST(CudaBackendTest, EveryFigureIsTaken) {
  const Rig rig;
  const TestMatrix matrix = MakeTestMatrix(40, 64, WeightDtype::kBf16, 20);
  const QuantizedPlanes got = RunBackend(rig.backend(), matrix.View(), {});
  // Difference looks at figures that both backends took.
  EXPECT_TRUE(got.stats.balanced_error && got.stats.cosine && got.stats.max_abs_error);
  EXPECT_EQ(Difference(RunBackend(ReferenceBackend(), matrix.View(), {}), got), "");
  EXPECT_GT(*got.stats.max_abs_error, 0);
}

// ---------------------------------------------------------------- activations

// Whole and in the smallest pieces: search panels, blocks of rows, and the tensor's own.
TEST(CudaBackendActivationTest, SameBytesInPanelsOfEverySize) {
  int cases = 0;
  for (const Method method : {Method::kAsinq, Method::kAsinqL2, Method::kAwq}) {
    for (const Profile profile : {Profile::kDefault, Profile::kUpstream}) {
      for (const Tiling tiling : {Tiling::k1D, Tiling::k2D}) {
        const auto dtype = static_cast<WeightDtype>(++cases % 4);
        TestMatrix matrix = MakeTestMatrix(tiling == Tiling::k2D ? 96 : 75, 128, dtype, 51);
        GiveSamples(matrix, 5, 6);
        if (dtype == WeightDtype::kF16) FoldScales(matrix, true, true, 7);
        const QuantParams params{method, profile, AuxStorage::kF16, 4, 32, false, tiling};
        const MatrixView in = matrix.View();
        const size_t smallest = SmallestArena(in, params);
        for (const size_t bytes : {smallest, smallest * 5 / 4, 4 * kMiB}) {
          const Rig rig(Tight(bytes));
          EXPECT_EQ(DifferenceFromOracle(rig.backend(), in, params), "")
              << bytes << " bytes, " << DescribeCase(in, params);
        }
      }
    }
  }
}

TEST(CudaBackendActivationTest, MissingOrWrongActivationsAreRefused) {
  const Rig rig;
  const QuantParams params{Method::kAwq};
  TestMatrix matrix = MakeTestMatrix(64, 128, WeightDtype::kBf16, 1);
  const auto expect = [&](const char* part) {
    const absl::Status status = RunBackend(rig.backend(), matrix.View(), params).status;
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), part)) << status;
  };
  expect("needs activations");
  GiveSamples(matrix, 5, 2);
  matrix.samples[3 * 128 + 9] = std::numeric_limits<float>::infinity();
  expect("[3, 9] is not finite");
  matrix.activations.tokens = 4;
  expect("not 4 tokens x 128");
}

// What the CPU is then asked to do; the reason names the activations.
TEST(CudaBackendActivationTest, MomentsThatDoNotFitAreRefused) {
  TestMatrix matrix = MakeTestMatrix(32, 256, WeightDtype::kBf16, 52);
  GiveMoments(matrix, 3);
  const QuantParams params{Method::kAsinq};
  const MatrixView in = matrix.View();
  {
    const Rig rig(Tight(SmallestArena(in, params)));
    EXPECT_EQ(DifferenceFromOracle(rig.backend(), in, params), "");
  }
  const Rig rig(Tight(200 << 10));
  const absl::Status status = RunBackend(rig.backend(), in, params).status;
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "262144 for its activations")) << status;
  EXPECT_TRUE(rig.backend().healthy());
}

TEST(CudaBackendActivationTest, NonFiniteWeightsAreNamed) {
  std::vector<float> values = LayerLikeValues(64, 128, 19);
  values[4 * 128 + 70] = std::numeric_limits<float>::quiet_NaN();
  TestMatrix matrix = StoreMatrix(64, 128, WeightDtype::kF32, values);
  GiveSamples(matrix, 3, 2);
  const Rig rig;
  const absl::Status status =
      RunBackend(rig.backend(), matrix.View(), {Method::kAsinq}).status;
  EXPECT_TRUE(absl::StrContains(status.message(), "[4, 70] is NaN")) << status;
}

TEST(CudaBackendOptionsTest, EveryViolationIsRefused) {
  const auto refusal = [](const CudaOptions& options, const FakeCudaOptions& device = {}) {
    const auto runtime = std::make_shared<FakeCudaRuntime>(device);
    const absl::Status status = MakeCudaBackendsOn(runtime, options).status();
    EXPECT_EQ(runtime->LiveObjects(), 0u);
    return status.code();
  };
  EXPECT_EQ(refusal({.streams = 0}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(refusal({.streams = kMaxCudaStreams + 1}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(refusal({.devices = {0, 0}}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(refusal({.devices = {1}}), absl::StatusCode::kNotFound);
  EXPECT_EQ(refusal({.devices = {-1}}), absl::StatusCode::kNotFound);
  EXPECT_EQ(refusal({}, {.devices = 0}), absl::StatusCode::kNotFound);
  EXPECT_EQ(refusal({}, {.major = 7, .minor = 5}), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(refusal({.device_budget_bytes = 1000 * kMiB}), absl::StatusCode::kResourceExhausted);
}

TEST(CudaBackendOptionsTest, ChosenDevicesInTheirOrder) {
  CudaOptions options;
  options.devices = {2, 0};
  const Rig rig(options, {.devices = 3});
  ASSERT_EQ(rig.backends.size(), 2u);
  EXPECT_EQ(rig.backend().GetCapabilities().name, "cuda");
  EXPECT_EQ(rig.backend().GetCapabilities().target, "sm_90");
  EXPECT_EQ(rig.backends[0]->host_memory(), rig.backends[1]->host_memory());
}

TEST(CudaBackendOptionsTest, MostOfTheFreeMemoryIsTaken) {
  const Rig rig({}, {.device_bytes = 100 * kMiB});
  const DeviceStats stats = rig.backend().device_stats();
  EXPECT_EQ(stats.total_bytes, 100 * kMiB);
  EXPECT_LE(stats.reserved_bytes, 80 * kMiB);
  EXPECT_GT(stats.reserved_bytes, 79 * kMiB);
  EXPECT_EQ(stats.used_bytes, stats.reserved_bytes);
}

// Somebody else takes memory between the question and the allocation.
TEST(CudaBackendOptionsTest, LessIsTakenWhenTheDeviceIsShort) {
  const auto runtime =
      std::make_shared<FakeCudaRuntime>(FakeCudaOptions{.device_bytes = 1000 * kMiB});
  runtime->FailAt(CudaCall::kAllocateDevice, 2, absl::ResourceExhaustedError("taken"));
  const auto backends = MakeCudaBackendsOn(runtime, {});
  ASSERT_TRUE(backends.ok()) << backends.status();
  EXPECT_LE(backends->front()->device_stats().reserved_bytes, 400 * kMiB);
  EXPECT_GT(backends->front()->device_stats().reserved_bytes, 390 * kMiB);
}

}  // namespace
}  // namespace sinq::kernels
