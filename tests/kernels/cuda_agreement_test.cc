// The same bytes from the CUDA device code, executed on the CPU, as from the scalar oracle, however
// the tensor is cut and in whatever order the threads run.
#include <cmath>
#include <limits>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/cuda_steps.h"
#include "tests/kernels/cuda_driver.h"
#include "tests/kernels/test_matrices.h"
#include "tests/reference/golden_case.h"
#include "tests/reference/reference_backend.h"
#include "tests/reference/run_backend.h"

namespace sinq::kernels {
namespace {

using cuda_on_cpu::Order;

constexpr WeightDtype kDtypes[] = {WeightDtype::kBf16, WeightDtype::kF16, WeightDtype::kF32,
                                   WeightDtype::kF8E4M3};

bool IsPossible(const QuantParams& params, int64_t rows, int64_t cols) {
  return Validate(params).ok() && NativePlanes(params, rows, cols).ok();
}

std::string CompareWithOracle(const MatrixView& in, const QuantParams& params,
                              const CudaDriver& driver = CudaDriver()) {
  return Difference(RunBackend(ReferenceBackend(), in, params), RunBackend(driver, in, params));
}

// Every bits x group x symmetric x aux x dtype, in both profiles; 64 x 128 is two row blocks and at
// least one tile. The order of the threads changes from case to case.
struct SweepCase {
  Method method;
  Profile profile;
  WeightDtype dtype;
};

std::vector<SweepCase> SweepCases() {
  std::vector<SweepCase> cases;
  for (const Method method : {Method::kSinq, Method::kRtn}) {
    for (const Profile profile : {Profile::kDefault, Profile::kUpstream}) {
      for (const WeightDtype dtype : kDtypes) cases.push_back({method, profile, dtype});
    }
  }
  return cases;
}

class CudaSweepTest : public testing::TestWithParam<SweepCase> {};
INSTANTIATE_TEST_SUITE_P(All, CudaSweepTest, testing::ValuesIn(SweepCases()),
                         [](const testing::TestParamInfo<SweepCase>& info) {
                           const SweepCase& c = info.param;
                           return absl::StrCat(MethodName(c.method), "_", ProfileName(c.profile),
                                               "_dtype", static_cast<int>(c.dtype));
                         });

TEST_P(CudaSweepTest, EveryCombinationOfParameters) {
  const SweepCase& sweep = GetParam();
  uint32_t seed = 0;
  for (const AuxStorage aux : {AuxStorage::kU8, AuxStorage::kF16}) {
    for (const int bits : {2, 3, 4, 5, 6, 8}) {
      for (const int group : {16, 32, 64, 128}) {
        for (const bool symmetric : {false, true}) {
          const QuantParams params{sweep.method, sweep.profile, aux, bits, group, symmetric};
          ++seed;
          const int64_t rows = seed % 3 == 0 ? 64 : 32;
          if (!IsPossible(params, rows, 128)) continue;
          const TestMatrix matrix = MakeTestMatrix(rows, 128, sweep.dtype, seed);
          const CudaDriver driver({static_cast<Order>(seed % 3), seed});
          EXPECT_EQ(CompareWithOracle(matrix.View(), params, driver), "")
              << DescribeCase(matrix.View(), params);
          if (HasFailure()) return;
        }
      }
    }
  }
}

// Row counts around the block of 32 and the warp's 256 rows, columns that halve the group.
TEST(CudaAgreementTest, OddShapes) {
  for (const int64_t rows : {1, 2, 31, 32, 33, 101, 257}) {
    for (const int64_t cols : {16, 48, 80, 96, 192}) {
      for (const int bits : {3, 4, 8}) {
        for (const Profile profile : {Profile::kDefault, Profile::kUpstream}) {
          const QuantParams params{
              Method::kSinq, profile, rows % 2 ? AuxStorage::kF16 : AuxStorage::kU8,
              bits,          64,      cols == 80};
          if (!IsPossible(params, rows, cols)) continue;
          const TestMatrix matrix =
              MakeTestMatrix(rows, cols, rows == 33 ? WeightDtype::kF32 : WeightDtype::kBf16,
                             static_cast<uint32_t>(rows + cols));
          EXPECT_EQ(CompareWithOracle(matrix.View(), params), "")
              << DescribeCase(matrix.View(), params);
        }
      }
    }
  }
}

TEST(CudaAgreementTest, SpecialInputs) {
  for (const SpecialMatrix& special : SpecialMatrices()) {
    const TestMatrix matrix = StoreMatrix(64, 128, WeightDtype::kF32, special.values);
    for (const Method method : {Method::kSinq, Method::kRtn}) {
      for (const Profile profile : {Profile::kDefault, Profile::kUpstream}) {
        for (const AuxStorage aux : {AuxStorage::kU8, AuxStorage::kF16}) {
          for (const bool symmetric : {false, true}) {
            const QuantParams params{method, profile, aux, 4, 64, symmetric};
            EXPECT_EQ(CompareWithOracle(matrix.View(), params), "")
                << special.name << " " << DescribeCase(matrix.View(), params);
          }
        }
      }
    }
  }
}

// ---------------------------------------------------------------- cutting

TEST(CudaAgreementTest, PanelsAndRangesDoNotMatter) {
  for (const Profile profile : {Profile::kDefault, Profile::kUpstream}) {
    for (const WeightDtype dtype : kDtypes) {
      for (const int bits : {3, 4}) {
        const QuantParams params{Method::kSinq, profile, AuxStorage::kU8, bits, 32, false};
        const TestMatrix matrix = MakeTestMatrix(96, 224, dtype, 17);
        const QuantizedPlanes expected = RunBackend(ReferenceBackend(), matrix.View(), params);
        for (const CudaCuts& cuts : {CudaCuts{1, 1, 1}, CudaCuts{2, 13, 40}, CudaCuts{3, 50, 95},
                                     CudaCuts{6, 64, 32}, CudaCuts{100, 10000, 10000}}) {
          EXPECT_EQ(Difference(expected, RunBackend(CudaDriver({}, cuts), matrix.View(), params)),
                    "")
              << cuts.tiles << " tiles " << DescribeCase(matrix.View(), params);
        }
      }
    }
  }
}

// ---------------------------------------------------------------- order of the threads

TEST(CudaAgreementTest, TheOrderOfThreadsDoesNotMatter) {
  const TestMatrix matrix = MakeTestMatrix(330, 192, WeightDtype::kBf16, 23);
  for (const Profile profile : {Profile::kDefault, Profile::kUpstream}) {
    for (const AuxStorage aux : {AuxStorage::kU8, AuxStorage::kF16}) {
      const QuantParams params{Method::kSinq, profile, aux, 4, 64, aux == AuxStorage::kF16};
      const QuantizedPlanes expected = RunBackend(ReferenceBackend(), matrix.View(), params);
      for (const cuda_on_cpu::Schedule& schedule :
           {cuda_on_cpu::Schedule{Order::kForward, 0}, cuda_on_cpu::Schedule{Order::kReverse, 0},
            cuda_on_cpu::Schedule{Order::kRandom, 1}, cuda_on_cpu::Schedule{Order::kRandom, 2},
            cuda_on_cpu::Schedule{Order::kRandom, 3}}) {
        EXPECT_EQ(Difference(expected, RunBackend(CudaDriver(schedule), matrix.View(), params)), "")
            << "order " << static_cast<int>(schedule.order) << " seed " << schedule.seed << " "
            << DescribeCase(matrix.View(), params);
      }
    }
  }
}

// ---------------------------------------------------------------- errors

void ExpectBadElement(const QuantParams& params, const std::vector<size_t>& places, float value,
                      const std::string& expected) {
  std::vector<float> values = LayerLikeValues(70, 128, 3);
  for (const size_t place : places) values[place] = value;
  for (const WeightDtype dtype : {WeightDtype::kF32, WeightDtype::kBf16, WeightDtype::kF16}) {
    const TestMatrix matrix = StoreMatrix(70, 128, dtype, values);
    const CudaDriver driver({}, {1, 0, 32});
    const absl::Status status = RunBackend(driver, matrix.View(), params).status;
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), expected)) << status << " lacks " << expected;
  }
}

TEST(CudaAgreementTest, NonFiniteElementsAreNamed) {
  const float infinity = std::numeric_limits<float>::infinity(),
              nan = std::numeric_limits<float>::quiet_NaN();
  for (const Method method : {Method::kSinq, Method::kRtn}) {
    for (const Profile profile : {Profile::kDefault, Profile::kUpstream}) {
      const QuantParams params{method, profile, AuxStorage::kF16, 4, 64, false};
      ExpectBadElement(params, {5 * 128 + 100}, nan, "[5, 100] is NaN");
      ExpectBadElement(params, {69 * 128 + 127}, -infinity, "[69, 127] is infinite");
      // The first in row-major order, though a later tile holds it.
      ExpectBadElement(params, {9 * 128 + 3, 4 * 128 + 70}, infinity, "[4, 70] is infinite");
    }
  }
}

TEST(CudaAgreementTest, Fp8NanIsNamed) {
  TestMatrix matrix = MakeTestMatrix(64, 128, WeightDtype::kF8E4M3, 1);
  matrix.bytes[128 * 2 + 9] = std::byte{0xff};
  const absl::Status status = RunBackend(CudaDriver(), matrix.View(), {}).status;
  EXPECT_TRUE(absl::StrContains(status.message(), "[2, 9] is NaN")) << status;
}

// An agreement test that cannot fail is worth nothing.
TEST(CudaAgreementTest, AMutantOracleDisagrees) {
  const TestMatrix matrix = MakeTestMatrix(64, 128, WeightDtype::kBf16, 8);
  ReferenceOptions mutant;
  mutant.tau_factor = 1.01f;
  EXPECT_NE(Difference(RunBackend(ReferenceBackend(mutant), matrix.View(), {}),
                       RunBackend(CudaDriver(), matrix.View(), {})),
            "");
}

// ---------------------------------------------------------------- golden vectors

class CudaGoldenTest : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Golden, CudaGoldenTest, testing::ValuesIn(GoldenNames(SINQ_GOLDEN_DIR)),
                         [](const testing::TestParamInfo<std::string>& info) {
                           return info.param;
                         });

// The oracle is held to the authors' answers by golden_test; here the device code is held to the
// oracle, in both profiles.
TEST_P(CudaGoldenTest, AnswersAsTheOracle) {
  const GoldenCase golden = LoadGolden(SINQ_GOLDEN_DIR, GetParam());
  for (const Profile profile : {Profile::kDefault, Profile::kUpstream}) {
    QuantParams params = golden.params;
    params.profile = profile;
    if (!Validate(params).ok()) continue;
    EXPECT_EQ(CompareWithOracle(golden.View(), params), "") << ProfileName(profile);
  }
}

}  // namespace
}  // namespace sinq::kernels
