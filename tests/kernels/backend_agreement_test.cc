// The same bytes from every SIMD target as from the scalar oracle, whatever the order and number of
// threads.
#include <algorithm>
#include <limits>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/kernels/test_matrices.h"
#include "tests/reference/reference_backend.h"
#include "tests/reference/run_backend.h"

namespace sinq::kernels {
namespace {

void RunReversed(size_t n, absl::FunctionRef<void(size_t)> body) {
  for (size_t i = n; i > 0; --i) body(i - 1);
}

void RunThreaded(size_t n, absl::FunctionRef<void(size_t)> body) {
  std::vector<std::thread> threads;
  for (size_t first = 0; first < std::min<size_t>(n, 3); ++first) {
    threads.emplace_back([=] {
      for (size_t i = first; i < n; i += 3) body(i);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

const std::vector<std::unique_ptr<Backend>>& Targets() {
  static const std::vector<std::unique_ptr<Backend>> kTargets = MakeCpuBackendsForAllTargets();
  return kTargets;
}

// Oracle against every target; the targets also in reverse order and on threads.
void ExpectAgreement(const TestMatrix& matrix, const QuantParams& params,
                     const std::string& what = "") {
  const MatrixView in = matrix.View();
  const QuantizedPlanes expected = RunBackend(ReferenceBackend(), in, params);
  for (const std::unique_ptr<Backend>& target : Targets()) {
    const std::string where =
        absl::StrCat(target->GetCapabilities().target, " ", what, " ", DescribeCase(in, params));
    EXPECT_EQ(Difference(expected, RunBackend(*target, in, params)), "") << where;
  }
  const Backend& best = *Targets().front();
  EXPECT_EQ(Difference(expected, RunBackend(best, in, params, RunReversed, 3)), "")
      << "reversed " << what << DescribeCase(in, params);
  EXPECT_EQ(Difference(expected, RunBackend(best, in, params, RunThreaded, 4)), "")
      << "threads " << what << DescribeCase(in, params);
}

bool IsPossible(const QuantParams& params, int64_t rows, int64_t cols) {
  return Validate(params).ok() && PlanesOf(params, rows, cols).ok();
}

std::vector<QuantParams> AllParams() {
  std::vector<QuantParams> all;
  for (const Method method : {Method::kSinq, Method::kRtn}) {
    for (const Profile profile : {Profile::kDefault, Profile::kUpstream}) {
      for (const AuxStorage aux : {AuxStorage::kU8, AuxStorage::kF16}) {
        for (const int bits : {2, 3, 4, 5, 6, 8}) {
          for (const int group : {32, 64, 128}) {
            for (const bool symmetric : {false, true})
              all.push_back({method, profile, aux, bits, group, symmetric});
          }
        }
      }
    }
  }
  return all;
}

TEST(BackendAgreementTest, SomeTargetExists) { ASSERT_FALSE(Targets().empty()); }

// Every combination of parameters and dtype; 64 x 256 is two row blocks and at least two tiles.
TEST(BackendAgreementTest, EveryCombinationOfParameters) {
  uint32_t seed = 0;
  for (const QuantParams& params : AllParams()) {
    if (!Validate(params).ok()) continue;
    for (const WeightDtype dtype :
         {WeightDtype::kBf16, WeightDtype::kF16, WeightDtype::kF32, WeightDtype::kF8E4M3}) {
      ++seed;
      ExpectAgreement(MakeTestMatrix(seed % 2 == 0 ? 64 : 32, 256, dtype, seed), params);
      if (HasFailure()) return;
    }
  }
}

TEST(BackendAgreementTest, EveryDtypeInEveryProfile) {
  for (const WeightDtype dtype :
       {WeightDtype::kBf16, WeightDtype::kF16, WeightDtype::kF32, WeightDtype::kF8E4M3}) {
    for (const Profile profile : {Profile::kDefault, Profile::kUpstream}) {
      for (const bool symmetric : {false, true}) {
        ExpectAgreement(MakeTestMatrix(160, 384, dtype, 5),
                        {Method::kSinq, profile, AuxStorage::kU8, 4, 64, symmetric});
      }
    }
  }
}

// Row counts around the block of 32 and the vector, columns that halve the group, one tile and
// many.
TEST(BackendAgreementTest, OddShapes) {
  for (const int64_t rows : {1, 2, 31, 32, 33, 101, 257}) {
    for (const int64_t cols : {16, 48, 80, 96, 64, 192}) {
      for (const int bits : {3, 4, 8}) {
        for (const Profile profile : {Profile::kDefault, Profile::kUpstream}) {
          const QuantParams params{
              Method::kSinq, profile, rows % 2 ? AuxStorage::kF16 : AuxStorage::kU8,
              bits,          64,      cols == 80};
          if (!IsPossible(params, rows, cols)) continue;
          ExpectAgreement(
              MakeTestMatrix(rows, cols, rows == 33 ? WeightDtype::kF32 : WeightDtype::kBf16,
                         static_cast<uint32_t>(rows + cols)),
              params);
        }
      }
    }
  }
}

TEST(BackendAgreementTest, SpecialInputs) {
  for (const SpecialMatrix& special : SpecialMatrices()) {
    const TestMatrix matrix = StoreMatrix(64, 128, WeightDtype::kF32, special.values);
    for (const Method method : {Method::kSinq, Method::kRtn}) {
      for (const Profile profile : {Profile::kDefault, Profile::kUpstream}) {
        for (const AuxStorage aux : {AuxStorage::kU8, AuxStorage::kF16}) {
          for (const bool symmetric : {false, true}) {
            ExpectAgreement(matrix, {method, profile, aux, 4, 64, symmetric}, special.name);
          }
        }
      }
    }
  }
}

void ExpectBadElement(const QuantParams& params, std::vector<size_t> places, float value,
                      const std::string& expected) {
  std::vector<float> values = LayerLikeValues(70, 128, 3);
  for (const size_t place : places) values[place] = value;
  for (const WeightDtype dtype : {WeightDtype::kF32, WeightDtype::kBf16, WeightDtype::kF16}) {
    const TestMatrix matrix = StoreMatrix(70, 128, dtype, values);
    for (const std::unique_ptr<Backend>& target : Targets()) {
      const absl::Status status = RunBackend(*target, matrix.View(), params).status;
      EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
      EXPECT_TRUE(absl::StrContains(status.message(), expected)) << status << " lacks " << expected;
    }
    const absl::Status status = RunBackend(ReferenceBackend(), matrix.View(), params).status;
    EXPECT_TRUE(absl::StrContains(status.message(), expected)) << status;
  }
}

TEST(BackendAgreementTest, NonFiniteElementsAreNamed) {
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

// Fitted by rows, where the first bad row may lie in any block of them.
TEST(BackendAgreementTest, NonFiniteElementsOfUnbalancedGroupsAreNamed) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const bool symmetric : {false, true}) {
    QuantParams params{Method::kSinq, Profile::kDefault, AuxStorage::kF16, 4, 64, symmetric};
    params.layout = Layout::kCompressedTensors;
    ExpectBadElement(params, {5 * 128 + 100}, nan, "[5, 100] is NaN");
    ExpectBadElement(params, {69 * 128 + 127, 68 * 128}, nan, "[68, 0] is NaN");
    ExpectBadElement(params, {9 * 128 + 3, 4 * 128 + 70}, nan, "[4, 70] is NaN");
  }
}

TEST(BackendAgreementTest, Fp8NanIsNamed) {
  TestMatrix matrix = MakeTestMatrix(64, 128, WeightDtype::kF8E4M3, 1);
  matrix.bytes[128 * 2 + 9] = std::byte{0xff};
  for (const std::unique_ptr<Backend>& target : Targets()) {
    const absl::Status status = RunBackend(*target, matrix.View(), {}).status;
    EXPECT_TRUE(absl::StrContains(status.message(), "[2, 9] is NaN")) << status;
  }
}

TEST(BackendAgreementTest, CancelledBetweenTiles) {
  const TestMatrix matrix = MakeTestMatrix(64, 128, WeightDtype::kBf16, 1);
  const QuantParams params;
  const Backend& backend = *Targets().front();
  const std::vector<PlaneSpec> specs = NativePlanes(params, 64, 128).value();
  std::vector<std::vector<std::byte>> planes;
  std::vector<absl::Span<std::byte>> spans;
  for (const PlaneSpec& spec : specs) planes.emplace_back(spec.size_bytes);
  for (std::vector<std::byte>& plane : planes) spans.push_back(absl::MakeSpan(plane));
  std::vector<std::byte> scratch(backend.ScratchBytes(params, 64, 128) + 64);
  std::byte* aligned =
      scratch.data() + (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64) % 64;
  TensorStats stats;
  int asked = 0;
  const absl::Status status = backend.Quantize(
      matrix.View(), params, {aligned, scratch.size() - 64}, spans, RunSerially,
      [&] { return ++asked == 2; }, &stats);
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
  EXPECT_EQ(asked, 2);
}

// An agreement test that cannot fail is worth nothing.
TEST(BackendAgreementTest, AMutantOracleDisagrees) {
  const TestMatrix matrix = MakeTestMatrix(64, 128, WeightDtype::kBf16, 8);
  ReferenceOptions mutant;
  mutant.tau_factor = 1.01f;
  EXPECT_NE(Difference(RunBackend(ReferenceBackend(mutant), matrix.View(), {}),
                       RunBackend(*Targets().front(), matrix.View(), {})),
            "");
}

// ---------------------------------------------------------------- further methods and layouts

constexpr Profile kProfiles[] = {Profile::kDefault, Profile::kUpstream};
constexpr WeightDtype kDtypes[] = {WeightDtype::kBf16, WeightDtype::kF16, WeightDtype::kF32,
                                   WeightDtype::kF8E4M3};
constexpr AuxStorage kAllAux[] = {AuxStorage::kU8, AuxStorage::kF16, AuxStorage::kBf16,
                                  AuxStorage::kF32};
constexpr Layout kLayouts[] = {Layout::kSinq,     Layout::kHqq,      Layout::kCompressedTensors,
                               Layout::kAwq,      Layout::kGptq,     Layout::kGptqV2,
                               Layout::kGgufQ4_0, Layout::kGgufQ4_1, Layout::kGgufQ8_0,
                               Layout::kDense};

TEST(BackendAgreementTest, FoldedInputs) {
  for (const WeightDtype dtype : kDtypes) {
    for (const Profile profile : kProfiles) {
      for (const int which : {1, 2, 3}) {
        TestMatrix matrix = MakeTestMatrix(96, 192, dtype, 21);
        FoldScales(matrix, which & 1, which & 2, 4);
        ExpectAgreement(matrix, {Method::kSinq, profile, AuxStorage::kU8, 4, 64, false}, "folded");
      }
    }
  }
}

TEST(BackendAgreementTest, FoldingThatOverflowsNamesTheElement) {
  TestMatrix matrix = MakeTestMatrix(64, 128, WeightDtype::kBf16, 3);
  matrix.column_factor.assign(128, 1.0f);
  matrix.column_factor[70] = 3e38f;
  matrix.row_factor.assign(64, 1.0f);
  matrix.row_factor[5] = 1e30f;
  QuantParams unbalanced;
  unbalanced.own_column_scale = false;
  for (const QuantParams& params : {QuantParams(), unbalanced}) {
    const absl::Status status = RunBackend(*Targets().front(), matrix.View(), params).status;
    EXPECT_TRUE(absl::StrContains(status.message(), "[5, 70] is infinite with its folded scales"))
        << status;
    EXPECT_FALSE(RunBackend(ReferenceBackend(), matrix.View(), params).status.ok());
  }
}

// Scales without a balanced tile around them: every way of reading rows, and blocks of them that
// are not full.
TEST(BackendAgreementTest, UnbalancedGroups) {
  for (const WeightDtype dtype : kDtypes) {
    for (const int64_t rows : {1, 31, 33, 300}) {
      for (const int which : {0, 1, 2, 3}) {
        TestMatrix matrix = MakeTestMatrix(rows, 192, dtype, 31);
        FoldScales(matrix, which & 1, which & 2, 5);
        QuantParams params{Method::kSinq, Profile::kDefault, AuxStorage::kF16, 4, 64, which > 1};
        params.layout = Layout::kSinq;
        params.own_column_scale = false;
        ExpectAgreement(matrix, params, "by rows");
      }
    }
  }
}

TEST(BackendAgreementTest, UnbalancedGroupsAtAnOddAddress) {
  const TestMatrix matrix = MakeTestMatrix(40, 128, WeightDtype::kBf16, 33);
  std::vector<std::byte> moved(1);
  moved.insert(moved.end(), matrix.bytes.begin(), matrix.bytes.end());
  MatrixView view = matrix.View();
  QuantParams params;
  params.own_column_scale = false;
  for (const std::unique_ptr<Backend>& target : Targets()) {
    view.data = matrix.bytes.data();
    const auto expected = RunBackend(*target, view, params);
    // Memory of a vector begins at an even address.
    view.data = moved.data() + 1;
    const auto actual = RunBackend(*target, view, params);
    ASSERT_TRUE(actual.status.ok()) << actual.status;
    EXPECT_EQ(actual.planes, expected.planes) << target->GetCapabilities().target;
  }
}

// Every layout with every width, aux and symmetry that it holds.
TEST(BackendAgreementTest, EveryLayout) {
  int tried = 0;
  for (const Layout layout : kLayouts) {
    for (const int bits : {2, 3, 4, 8}) {
      for (const AuxStorage aux : kAllAux) {
        for (const bool symmetric : {false, true}) {
          QuantParams params{Method::kSinq, Profile::kDefault, aux, bits, 64, symmetric};
          params.layout = layout;
          if (!IsPossible(params, 160, 128)) continue;
          ++tried;
          TestMatrix matrix =
              MakeTestMatrix(160, 128, WeightDtype::kBf16, static_cast<uint32_t>(tried));
          if (tried % 3 == 0) FoldScales(matrix, false, true, 8);
          ExpectAgreement(matrix, params);
        }
      }
    }
  }
  EXPECT_GT(tried, 60);
}

// One-sided, constant and empty groups, where integer zeros have to be fitted again.
TEST(BackendAgreementTest, SpecialInputsInLayoutsOfOthers) {
  for (const SpecialMatrix& special : SpecialMatrices()) {
    const TestMatrix matrix = StoreMatrix(64, 128, WeightDtype::kF32, special.values);
    for (const Layout layout : kLayouts) {
      for (const bool symmetric : {false, true}) {
        for (const Method method : {Method::kSinq, Method::kRtn}) {
          QuantParams params{
              method, Profile::kDefault, AuxStorage::kF16, layout == Layout::kGgufQ8_0 ? 8 : 4,
              32,     symmetric};
          params.layout = layout;
          if (IsPossible(params, 64, 128)) ExpectAgreement(matrix, params, special.name);
        }
      }
    }
  }
}

TEST(BackendAgreementTest, NoColumnScaleOfItsOwn) {
  for (const Profile profile : kProfiles) {
    for (const Layout layout : {Layout::kSinq, Layout::kDense}) {
      for (const AuxStorage aux : {AuxStorage::kU8, AuxStorage::kF16}) {
        QuantParams params{Method::kSinq, profile, aux, 4, 64, false};
        params.layout = layout;
        params.own_column_scale = false;
        ExpectAgreement(MakeTestMatrix(64, 192, WeightDtype::kF16, 12), params);
      }
    }
  }
}

TEST(BackendAgreementTest, AuxiliariesOfEveryDtype) {
  for (const AuxStorage aux : {AuxStorage::kBf16, AuxStorage::kF32}) {
    for (const Profile profile : kProfiles) {
      for (const bool symmetric : {false, true}) {
        ExpectAgreement(MakeTestMatrix(96, 128, WeightDtype::kBf16, 31),
                        {Method::kSinq, profile, aux, 4, 32, symmetric});
      }
    }
  }
}

TEST(BackendAgreementTest, DenseOutputsOfEveryDtypeAndMethod) {
  for (const WeightDtype dtype : kDtypes) {
    for (const Method method : {Method::kSinq, Method::kRtn, Method::kSinqNf4, Method::kNf3,
                                Method::kSinqHqq, Method::kHadamard}) {
      for (const Profile profile : kProfiles) {
        for (const AuxStorage aux : {AuxStorage::kU8, AuxStorage::kF16}) {
          QuantParams params{method, profile, aux, method == Method::kNf3 ? 3 : 4, 64, false};
          params.layout = Layout::kDense;
          if (IsPossible(params, 64, 256))
            ExpectAgreement(MakeTestMatrix(64, 256, dtype, 41), params);
        }
      }
    }
  }
}

TEST(BackendAgreementTest, DenseOutputsStayFinite) {
  for (const WeightDtype dtype : {WeightDtype::kF16, WeightDtype::kBf16}) {
    std::vector<float> values = LayerLikeValues(64, 128, 2);
    for (float& value : values) value *= dtype == WeightDtype::kF16 ? 5e4f : 1e38f;
    for (float& value : values) value = std::clamp(value, -65504.0f, 65504.0f);
    QuantParams params{Method::kSinq, Profile::kDefault, AuxStorage::kF32, 2, 64, false};
    params.layout = Layout::kDense;
    ExpectAgreement(StoreMatrix(64, 128, dtype, values), params);
  }
}

TEST(BackendAgreementTest, Squares) {
  for (const Method method : {Method::kSinq, Method::kRtn, Method::kSinqNf4, Method::kSinqHqq}) {
    for (const Profile profile : kProfiles) {
      for (const AuxStorage aux : kAllAux) {
        for (const int group : {32, 64}) {
          for (const bool symmetric : {false, true}) {
            QuantParams params{method, profile, aux, 4, group, symmetric};
            params.tiling = Tiling::k2D;
            params.layout = aux == AuxStorage::kBf16 ? Layout::kDense : Layout::kSinq;
            if (!IsPossible(params, 128, 192)) continue;
            TestMatrix matrix = MakeTestMatrix(128, 192, WeightDtype::kBf16, 51);
            if (symmetric) FoldScales(matrix, true, true, 6);
            ExpectAgreement(matrix, params);
          }
        }
      }
    }
  }
}

TEST(BackendAgreementTest, CodebooksAndHqq) {
  for (const Method method : {Method::kSinqNf4, Method::kNf4, Method::kSinqNf3, Method::kNf3,
                              Method::kSinqHqq, Method::kHqq}) {
    for (const Profile profile : kProfiles) {
      for (const AuxStorage aux : kAllAux) {
        for (const int bits : {2, 3, 4, 8}) {
          for (const int group : {32, 128}) {
            const QuantParams params{method, profile, aux, bits, group, false};
            if (!IsPossible(params, 75, 256) && !IsPossible(params, 76, 256)) continue;
            const int64_t rows = IsPossible(params, 75, 256) ? 75 : 76;
            ExpectAgreement(MakeTestMatrix(rows, 256, WeightDtype::kBf16, 61), params);
          }
        }
      }
    }
  }
}

TEST(BackendAgreementTest, SpecialInputsOfCodebooksHqqAndHadamard) {
  for (const SpecialMatrix& special : SpecialMatrices()) {
    const TestMatrix matrix = StoreMatrix(64, 128, WeightDtype::kF32, special.values);
    for (const Method method :
         {Method::kSinqNf4, Method::kNf4, Method::kSinqHqq, Method::kHqq, Method::kHadamard}) {
      for (const Profile profile : kProfiles) {
        for (const AuxStorage aux : {AuxStorage::kU8, AuxStorage::kF16}) {
          QuantParams params{method, profile, aux, 4, 64, false};
          if (method == Method::kHadamard) params.layout = Layout::kDense;
          if (IsPossible(params, 64, 128)) ExpectAgreement(matrix, params, special.name);
        }
      }
    }
  }
}

TEST(BackendAgreementTest, HqqWithErrorsThatAreShrunk) {
  std::vector<float> values = LayerLikeValues(64, 128, 5);
  for (float& value : values) value *= 100;
  for (const int bits : {2, 4}) {
    ExpectAgreement(StoreMatrix(64, 128, WeightDtype::kF32, values),
                    {Method::kHqq, Profile::kUpstream, AuxStorage::kF32, bits, 64, false});
  }
}

TEST(BackendAgreementTest, Hadamard) {
  for (const int group : {32, 64, 128}) {
    for (const int bits : {2, 4}) {
      for (const bool symmetric : {false, true}) {
        QuantParams params{Method::kHadamard, Profile::kDefault, AuxStorage::kU8, bits, group,
                           symmetric};
        params.layout = Layout::kDense;
        ExpectAgreement(MakeTestMatrix(80, 256, WeightDtype::kBf16, 71), params);
      }
    }
  }
}

TEST(BackendAgreementTest, ActivationAwareMethods) {
  for (const Method method : {Method::kAsinq, Method::kAsinqL2, Method::kAwq}) {
    for (const Profile profile : kProfiles) {
      for (const int tokens : {0, 1, 7, 16}) {
        for (const Tiling tiling : {Tiling::k1D, Tiling::k2D}) {
          // 2D wants whole squares; 70 rows leave a part of a block of 32.
          const int64_t rows = tiling == Tiling::k2D ? 64 : 70;
          TestMatrix matrix = MakeTestMatrix(rows, 128, WeightDtype::kBf16, 81);
          if (tokens == 0) GiveMoments(matrix, 5);
          if (tokens > 0) GiveSamples(matrix, tokens, 5);
          if (tokens == 7) FoldScales(matrix, false, true, 3);
          QuantParams params{method, profile, AuxStorage::kF16, 4, 32, false};
          params.tiling = tiling;
          ExpectAgreement(matrix, params, absl::StrCat(tokens, " tokens"));
        }
      }
    }
  }
}

TEST(BackendAgreementTest, MissingOrWrongActivationsAreRefused) {
  const QuantParams params{Method::kAsinq};
  const auto expect = [&](const TestMatrix& matrix, const std::string& part) {
    const absl::Status status = RunBackend(*Targets().front(), matrix.View(), params).status;
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), part)) << status;
    EXPECT_TRUE(
        absl::IsInvalidArgument(RunBackend(ReferenceBackend(), matrix.View(), params).status));
  };
  TestMatrix matrix = MakeTestMatrix(64, 128, WeightDtype::kBf16, 1);
  expect(matrix, "needs activations");
  GiveSamples(matrix, 5, 2);
  matrix.samples[3 * 128 + 9] = std::numeric_limits<float>::infinity();
  expect(matrix, "[3, 9] is not finite");
  matrix.samples[3 * 128 + 9] = 0;
  matrix.activations.tokens = 4;
  expect(matrix, "not 4 tokens x 128");
  matrix.activations.second_moments = absl::MakeConstSpan(matrix.samples).first(100);
  expect(matrix, "either samples or second moments");
  matrix.activations.samples = {};
  expect(matrix, "100 values, not 128 x 128");
}

// ---------------------------------------------------------------- measuring

template <class Result, class Call>
std::vector<Result> Measured(const Backend& backend, const QuantParams& params,
                             const TestMatrix& matrix, size_t count, const Call& call) {
  std::vector<std::byte> memory(2 * backend.ScratchBytes(params, matrix.rows, matrix.cols) + 64,
                                std::byte{0xff});
  std::byte* aligned = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
  std::vector<Result> results(count);
  const absl::Status status =
      call(absl::Span<std::byte>(aligned, memory.size() - 64), absl::MakeSpan(results));
  EXPECT_TRUE(status.ok()) << status;
  return results;
}

std::vector<float> ColumnsOf(const Backend& backend, const TestMatrix& matrix,
                             const QuantParams& params) {
  return Measured<float>(backend, params, matrix, static_cast<size_t>(matrix.cols),
                         [&](absl::Span<std::byte> scratch, absl::Span<float> t) {
                           return backend.MeasureColumns(matrix.View(), params, scratch, t,
                                                         RunThreaded, [] { return false; });
                         });
}

TEST(MeasureColumnsTest, EveryTargetFindsTheOraclesColumns) {
  for (const WeightDtype dtype : kDtypes) {
    for (const Profile profile : kProfiles) {
      for (const int64_t rows : {1, 101}) {
        TestMatrix matrix = MakeTestMatrix(rows, 320, dtype, 91);
        FoldScales(matrix, true, true, 2);
        QuantParams params{Method::kRtn, profile, AuxStorage::kF16, 4, 64, true};
        params.layout = Layout::kAwq;  // neither method nor layout matter
        if (profile == Profile::kUpstream) params.layout = Layout::kSinq;
        const std::vector<float> expected = ColumnsOf(ReferenceBackend(), matrix, params);
        for (const std::unique_ptr<Backend>& target : Targets())
          EXPECT_EQ(ColumnsOf(*target, matrix, params), expected)
              << target->GetCapabilities().target;
        EXPECT_EQ(std::count(expected.begin(), expected.end(), 1.0f) == 320, rows == 1);
      }
    }
  }
}

// What is quantized by rows, without memory for a tile, is measured by tiles all the same.
TEST(MeasureColumnsTest, ScratchOfTallAndNarrowLayersIsEnough) {
  const TestMatrix matrix = MakeTestMatrix(2048, 128, WeightDtype::kF32, 17);
  QuantParams params{Method::kSinq, Profile::kDefault, AuxStorage::kF16, 2, 128, true};
  params.layout = Layout::kGptq;
  for (const std::unique_ptr<Backend>& target : Targets())
    EXPECT_EQ(ColumnsOf(*target, matrix, params).size(), 128u);
}

std::vector<double> ErrorsOf(const Backend& backend, const TestMatrix& matrix,
                             const std::vector<QuantParams>& candidates) {
  const QuantParams widest{Method::kSinqHqq, Profile::kDefault, AuxStorage::kF16, 8, 128, false};
  const std::vector<Measurement> measured = Measured<Measurement>(
      backend, widest, matrix, candidates.size(),
      [&](absl::Span<std::byte> scratch, absl::Span<Measurement> results) {
        return backend.MeasureErrors(matrix.View(), candidates, scratch, results, RunThreaded,
                                     [] { return false; });
      });
  std::vector<double> values;
  for (const Measurement& m : measured) values.insert(values.end(), {m.error, m.power});
  return values;
}

TEST(MeasureErrorsTest, EveryTargetFindsTheOraclesErrors) {
  std::vector<QuantParams> candidates;
  for (const Method method : {Method::kSinq, Method::kRtn, Method::kSinqNf4, Method::kHqq}) {
    for (const int bits : {2, 3, 4, 8}) {
      for (const int group : {32, 64, 128}) {
        for (const Layout layout : {Layout::kSinq, Layout::kCompressedTensors, Layout::kGptq}) {
          for (const bool symmetric : {false, true}) {
            QuantParams params{method, Profile::kDefault, AuxStorage::kF16, bits, group, symmetric};
            params.layout = layout;
            if (Validate(params).ok()) candidates.push_back(params);
          }
        }
      }
    }
  }
  TestMatrix matrix = MakeTestMatrix(75, 256, WeightDtype::kBf16, 95);
  FoldScales(matrix, false, true, 7);
  const std::vector<double> expected = ErrorsOf(ReferenceBackend(), matrix, candidates);
  for (const std::unique_ptr<Backend>& target : Targets())
    EXPECT_EQ(ErrorsOf(*target, matrix, candidates), expected) << target->GetCapabilities().target;
}

// More bits and smaller groups measure less error: what the planner relies on.
TEST(MeasureErrorsTest, ErrorsFallWithBitsAndRiseWithGroups) {
  const TestMatrix matrix = MakeTestMatrix(128, 256, WeightDtype::kBf16, 97);
  const auto share = [&](int bits, int group) {
    const std::vector<double> values =
        ErrorsOf(*Targets().front(), matrix,
                 {{Method::kSinq, Profile::kDefault, AuxStorage::kF16, bits, group, false}});
    return values[0] / values[1];
  };
  EXPECT_LT(share(4, 64), 0.4 * share(3, 64));
  EXPECT_LT(share(8, 64), 0.05 * share(4, 64));
  EXPECT_LT(share(4, 32), share(4, 128));
}

}  // namespace
}  // namespace sinq::kernels
