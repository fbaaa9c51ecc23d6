// The CUDA device code, executed on the CPU, against the scalar oracle for what goes beyond the
// native format: folded inputs, layouts of others, zero rules, further storage, squares, codebooks,
// and the measuring of columns.
#include <cmath>
#include <random>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/cuda_steps.h"
#include "tests/kernels/cuda_driver.h"
#include "tests/kernels/test_matrices.h"
#include "tests/reference/reference_backend.h"
#include "tests/reference/run_backend.h"

namespace sinq::kernels {
namespace {

constexpr WeightDtype kDtypes[] = {WeightDtype::kBf16, WeightDtype::kF16, WeightDtype::kF32,
                                   WeightDtype::kF8E4M3};
constexpr Layout kForeignLayouts[] = {
    Layout::kHqq,      Layout::kCompressedTensors, Layout::kAwq,      Layout::kGptq,
    Layout::kGptqV2,   Layout::kGgufQ4_0,          Layout::kGgufQ4_1, Layout::kGgufQ8_0};

bool IsPossible(const QuantParams& params, int64_t rows, int64_t cols) {
  return Validate(params).ok() && PlanesOf(params, rows, cols).ok();
}

// Returns whether the combination exists.
bool ExpectAgreement(const MatrixView& in, const QuantParams& params, const CudaCuts& cuts = {}) {
  if (!IsPossible(params, in.rows, in.cols)) return false;
  EXPECT_EQ(Difference(RunBackend(ReferenceBackend(), in, params),
                       RunBackend(CudaDriver({}, cuts), in, params)),
            "")
      << DescribeCase(in, params);
  return true;
}

// ---------------------------------------------------------------- layouts

TEST(CudaLayoutTest, EveryLayoutOfOthers) {
  int cases = 0;
  for (const Layout layout : kForeignLayouts) {
    for (const Method method : {Method::kSinq, Method::kRtn}) {
      for (const AuxStorage aux : {AuxStorage::kF16, AuxStorage::kBf16, AuxStorage::kF32}) {
        for (const int bits : {2, 3, 4, 5, 6, 8}) {
          for (const bool symmetric : {false, true}) {
            const int group = bits % 3 == 0 ? 64 : 32;
            const QuantParams params{method, Profile::kDefault, aux,   bits,
                                     group,  symmetric,         Tiling::k1D, layout};
            const TestMatrix matrix =
                MakeTestMatrix(96, 128, kDtypes[cases % 4], static_cast<uint32_t>(cases));
            cases += ExpectAgreement(matrix.View(), params);
            if (HasFailure()) return;
          }
        }
      }
    }
  }
  EXPECT_GT(cases, 100);
}

// Rows that fill no whole word of zeros, columns that fill no whole word of codes, and rows in
// several ranges.
TEST(CudaLayoutTest, PartsOfWordsAndRangesOfRows) {
  int cases = 0;
  for (const Layout layout : kForeignLayouts) {
    for (const int bits : {3, 4, 8}) {
      for (const int64_t rows : {40, 33, 96}) {
        for (const int64_t cols : {96, 48, 224}) {
          const QuantParams params{Method::kSinq, Profile::kDefault, AuxStorage::kF16, bits,
                                   cols == 48 ? 16 : 32, layout == Layout::kGgufQ8_0,
                                   Tiling::k1D,   layout};
          const TestMatrix matrix = MakeTestMatrix(rows, cols, WeightDtype::kBf16, 11);
          for (const int64_t cut : {0, 32, 64})
            cases += ExpectAgreement(matrix.View(), params, {2, cut, 0});
          if (HasFailure()) return;
        }
      }
    }
  }
  EXPECT_GT(cases, 50);
}

TEST(CudaLayoutTest, DenseWeights) {
  for (const Profile profile : {Profile::kDefault, Profile::kUpstream}) {
    for (const WeightDtype dtype : kDtypes) {
      for (const AuxStorage aux : {AuxStorage::kU8, AuxStorage::kF16, AuxStorage::kF32}) {
        for (const bool symmetric : {false, true}) {
          const QuantParams params{Method::kSinq, profile, aux, 4, 64, symmetric, Tiling::k1D,
                                   Layout::kDense};
          EXPECT_TRUE(
              ExpectAgreement(MakeTestMatrix(64, 128, dtype, 5).View(), params, {1, 100, 0}));
        }
      }
    }
  }
}

TEST(CudaLayoutTest, SpecialInputs) {
  for (const SpecialMatrix& special : SpecialMatrices()) {
    const TestMatrix matrix = StoreMatrix(64, 128, WeightDtype::kF32, special.values);
    for (const Layout layout : {Layout::kCompressedTensors, Layout::kGptq, Layout::kGgufQ4_1,
                                Layout::kHqq, Layout::kDense}) {
      for (const Method method : {Method::kSinq, Method::kRtn}) {
        const QuantParams params{method, Profile::kDefault, AuxStorage::kF16, 4,
                                 32,     false,             Tiling::k1D,      layout};
        EXPECT_TRUE(ExpectAgreement(matrix.View(), params)) << special.name;
        if (HasFailure()) FAIL() << special.name;
      }
    }
  }
}

TEST(CudaLayoutTest, StorageOfScales) {
  for (const Profile profile : {Profile::kDefault, Profile::kUpstream}) {
    for (const AuxStorage aux : {AuxStorage::kBf16, AuxStorage::kF32}) {
      for (const int bits : {3, 4}) {
        for (const bool symmetric : {false, true}) {
          const QuantParams params{Method::kSinq, profile, aux, bits, 64, symmetric};
          EXPECT_TRUE(
              ExpectAgreement(MakeTestMatrix(64, 128, WeightDtype::kBf16, 5).View(), params));
        }
      }
    }
  }
}

// ---------------------------------------------------------------- folded inputs

std::vector<float> Factors(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> factors;
  for (int64_t i = 0; i < count; ++i) factors.push_back(std::exp(0.4f * normal(random)));
  return factors;
}

TEST(CudaFoldTest, FoldedInputs) {
  for (const WeightDtype dtype : kDtypes) {
    const TestMatrix matrix = MakeTestMatrix(96, 160, dtype, 9);
    const std::vector<float> rows = Factors(96, 1), columns = Factors(160, 2);
    for (const int which : {1, 2, 3}) {
      MatrixView in = matrix.View();
      if (which & 1) in.row_factor = rows;
      if (which & 2) in.column_factor = columns;
      for (const Profile profile : {Profile::kDefault, Profile::kUpstream}) {
        QuantParams params{Method::kSinq, profile, AuxStorage::kU8, 4, 32, false};
        EXPECT_TRUE(ExpectAgreement(in, params));
        EXPECT_TRUE(ExpectAgreement(in, params, {2, 37, 40}));
        params.own_column_scale = false;
        EXPECT_TRUE(ExpectAgreement(in, params));
        if (profile == Profile::kUpstream) continue;
        params.own_column_scale = true;
        params.aux = AuxStorage::kF16;
        params.layout = Layout::kGptq;
        EXPECT_TRUE(ExpectAgreement(in, params, {3, 64, 0}));
        params.layout = Layout::kDense;
        EXPECT_TRUE(ExpectAgreement(in, params));
      }
    }
  }
}

TEST(CudaFoldTest, OverflowByAFactorIsNamed) {
  const TestMatrix matrix = MakeTestMatrix(32, 64, WeightDtype::kF32, 9);
  std::vector<float> columns(64, 1.0f);
  columns[33] = 3e38f;
  std::vector<float> rows(32, 1.0f);
  rows[7] = 3e38f;
  MatrixView in = matrix.View();
  in.row_factor = rows;
  in.column_factor = columns;
  EXPECT_EQ(Difference(RunBackend(ReferenceBackend(), in, {}), RunBackend(CudaDriver(), in, {})),
            "");
  EXPECT_FALSE(RunBackend(CudaDriver(), in, {}).status.ok());
}

// ---------------------------------------------------------------- squares

TEST(CudaSquaresTest, EverySide) {
  int cases = 0;
  for (const Profile profile : {Profile::kDefault, Profile::kUpstream}) {
    for (const int group : {16, 32, 64, 128}) {
      for (const AuxStorage aux : {AuxStorage::kU8, AuxStorage::kF16}) {
        for (const int bits : {3, 4}) {
          for (const bool symmetric : {false, true}) {
            for (const Layout layout : {Layout::kSinq, Layout::kDense}) {
              const QuantParams params{Method::kSinq, profile,   aux,         bits,
                                       group,         symmetric, Tiling::k2D, layout};
              const TestMatrix matrix =
                  MakeTestMatrix(128, 256, kDtypes[cases % 4], static_cast<uint32_t>(cases));
              const CudaCuts cuts = cases % 2 == 0 ? CudaCuts{} : CudaCuts{3, 50, 40};
              cases += ExpectAgreement(matrix.View(), params, cuts);
              if (HasFailure()) return;
            }
          }
        }
      }
    }
  }
  EXPECT_EQ(cases, 128);
}

// ---------------------------------------------------------------- codebooks

TEST(CudaCodebookTest, EveryStorageAndProfile) {
  int cases = 0;
  for (const Method method : {Method::kSinqNf4, Method::kNf4, Method::kSinqNf3, Method::kNf3}) {
    const bool four_bits = method == Method::kSinqNf4 || method == Method::kNf4;
    for (const Profile profile : {Profile::kDefault, Profile::kUpstream}) {
      for (const AuxStorage aux : {AuxStorage::kU8, AuxStorage::kF16, AuxStorage::kBf16}) {
        for (const int group : {32, 64, 128}) {
          for (const Tiling tiling : {Tiling::k1D, Tiling::k2D}) {
            const QuantParams params{method, profile, aux, four_bits ? 4 : 3, group, false, tiling};
            const TestMatrix matrix =
                MakeTestMatrix(128, 128, kDtypes[cases % 4], static_cast<uint32_t>(cases));
            cases += ExpectAgreement(matrix.View(), params);
            if (HasFailure()) return;
          }
        }
      }
    }
  }
  EXPECT_EQ(cases, 144);
}

TEST(CudaCodebookTest, SpecialInputs) {
  for (const SpecialMatrix& special : SpecialMatrices()) {
    const TestMatrix matrix = StoreMatrix(64, 128, WeightDtype::kF32, special.values);
    for (const Method method : {Method::kSinqNf4, Method::kNf3}) {
      for (const Profile profile : {Profile::kDefault, Profile::kUpstream}) {
        const QuantParams params{method, profile, AuxStorage::kU8, method == Method::kNf3 ? 3 : 4,
                                 64,     false};
        EXPECT_TRUE(ExpectAgreement(matrix.View(), params)) << special.name;
        if (HasFailure()) FAIL() << special.name;
      }
    }
  }
}

// ---------------------------------------------------------------- HQQ

TEST(CudaHqqTest, EveryStorageAndProfile) {
  int cases = 0;
  for (const Method method : {Method::kSinqHqq, Method::kHqq}) {
    for (const Profile profile : {Profile::kDefault, Profile::kUpstream}) {
      for (const AuxStorage aux : {AuxStorage::kU8, AuxStorage::kF16, AuxStorage::kF32}) {
        for (const int bits : {2, 3, 4, 8}) {
          const int group = 16 << (cases % 4);
          for (const Tiling tiling : {Tiling::k1D, Tiling::k2D}) {
            const QuantParams params{method, profile, aux, bits, group, false, tiling};
            const TestMatrix matrix =
                MakeTestMatrix(128, 128, kDtypes[cases % 4], static_cast<uint32_t>(cases));
            const CudaCuts cuts = cases % 2 == 0 ? CudaCuts{} : CudaCuts{3, 50, 40};
            cases += ExpectAgreement(matrix.View(), params, cuts);
            if (HasFailure()) return;
          }
        }
      }
    }
  }
  EXPECT_EQ(cases, 96);
}

TEST(CudaHqqTest, OddRowsAndLayoutsOfOthers) {
  for (const Layout layout : {Layout::kHqq, Layout::kGgufQ4_1, Layout::kDense}) {
    for (const int64_t rows : {1, 33, 70}) {
      const QuantParams params{Method::kHqq, Profile::kDefault, AuxStorage::kF16, 4, 32,
                               false,        Tiling::k1D,       layout};
      EXPECT_EQ(ExpectAgreement(MakeTestMatrix(rows, 96, WeightDtype::kBf16, 3).View(), params),
                layout != Layout::kHqq || rows % 2 == 0);
    }
  }
}

TEST(CudaHqqTest, SpecialInputs) {
  for (const SpecialMatrix& special : SpecialMatrices()) {
    const TestMatrix matrix = StoreMatrix(64, 128, WeightDtype::kF32, special.values);
    for (const Profile profile : {Profile::kDefault, Profile::kUpstream}) {
      for (const AuxStorage aux : {AuxStorage::kU8, AuxStorage::kF16}) {
        EXPECT_TRUE(ExpectAgreement(matrix.View(),
                                    {Method::kSinqHqq, profile, aux, 4, 64, false}))
            << special.name;
        if (HasFailure()) FAIL() << special.name;
      }
    }
  }
}

// ---------------------------------------------------------------- activations

// In several orders of the threads, and more samples than a block takes at once.
TEST(CudaActivationTest, EveryMethodProfileAndTiling) {
  int cases = 0;
  for (const Method method : {Method::kAsinq, Method::kAsinqL2, Method::kAwq}) {
    for (const Profile profile : {Profile::kDefault, Profile::kUpstream}) {
      for (const int tokens : {0, 1, 7, 16}) {
        for (const Tiling tiling : {Tiling::k1D, Tiling::k2D}) {
          const int group = 16 << cases % 3;
          TestMatrix matrix = MakeTestMatrix(tiling == Tiling::k2D ? 64 : 40, 64 + group,
                                             kDtypes[cases % 4], static_cast<uint32_t>(cases));
          if (tokens == 0) GiveMoments(matrix, 5);
          if (tokens > 0) GiveSamples(matrix, tokens, 5);
          if (tokens == 7) FoldScales(matrix, false, true, 3);
          const QuantParams params{method, profile, AuxStorage::kF16, 4, group, false, tiling};
          const MatrixView in = matrix.View();
          const cuda_on_cpu::Schedule schedule{static_cast<cuda_on_cpu::Order>(cases % 3),
                                               static_cast<uint32_t>(cases)};
          const CudaCuts cuts = cases % 2 == 0 ? CudaCuts{} : CudaCuts{1, 50, 40};
          ASSERT_TRUE(IsPossible(params, in.rows, in.cols));
          EXPECT_EQ(Difference(RunBackend(ReferenceBackend(), in, params),
                               RunBackend(CudaDriver(schedule, cuts), in, params)),
                    "")
              << tokens << " tokens " << DescribeCase(in, params);
          ++cases;
        }
      }
    }
  }
  EXPECT_EQ(cases, 48);
}

TEST(CudaActivationTest, MoreInputsThanABlockHolds) {
  for (const bool moments : {false, true}) {
    for (const Method method : {Method::kAsinq, Method::kAsinqL2}) {
      TestMatrix matrix = MakeTestMatrix(33, 144, WeightDtype::kBf16, 12);
      if (moments) {
        GiveMoments(matrix, 8);
      } else {
        GiveSamples(matrix, 131, 8);
      }
      EXPECT_TRUE(ExpectAgreement(matrix.View(), {method, Profile::kDefault, AuxStorage::kF16, 3,
                                                  16, false}));
    }
  }
}

TEST(CudaActivationTest, SpecialInputs) {
  for (const SpecialMatrix& special : SpecialMatrices()) {
    TestMatrix matrix = StoreMatrix(64, 128, WeightDtype::kF32, special.values);
    GiveSamples(matrix, 6, 4);
    for (const Profile profile : {Profile::kDefault, Profile::kUpstream}) {
      ExpectAgreement(matrix.View(), {Method::kAsinq, profile, AuxStorage::kF16, 4, 128, false});
      if (HasFailure()) FAIL() << special.name;
    }
  }
}

// Inputs that are 0, or differ by orders of magnitude.
TEST(CudaActivationTest, SpecialActivations) {
  for (const float factor : {0.0f, 1e-20f, 1e18f}) {
    TestMatrix matrix = MakeTestMatrix(40, 64, WeightDtype::kBf16, 13);
    GiveSamples(matrix, 4, 4);
    for (size_t i = 0; i < matrix.samples.size(); ++i) {
      if (i % 64 % 3 == 0) matrix.samples[i] *= factor;
    }
    EXPECT_TRUE(ExpectAgreement(matrix.View(), {Method::kAwq, Profile::kDefault,
                                                AuxStorage::kF16, 4, 32, false}));
  }
}

// The search must be seen to matter: a mutant input chooses another factor.
TEST(CudaActivationTest, OtherInputsGiveOtherBytes) {
  TestMatrix matrix = MakeTestMatrix(64, 128, WeightDtype::kBf16, 14);
  GiveSamples(matrix, 9, 4);
  const QuantParams params{Method::kAsinq, Profile::kDefault, AuxStorage::kF16};
  const QuantizedPlanes expected = RunBackend(ReferenceBackend(), matrix.View(), params);
  for (float& x : matrix.samples) x = 1 / (x + 3);
  EXPECT_NE(Difference(expected, RunBackend(CudaDriver(), matrix.View(), params)), "");
}

// ---------------------------------------------------------------- Hadamard

TEST(CudaHadamardTest, EveryStorage) {
  int cases = 0;
  for (const AuxStorage aux : {AuxStorage::kU8, AuxStorage::kF16, AuxStorage::kF32}) {
    for (const int bits : {2, 4, 8}) {
      for (const int group : {16, 32, 64, 128}) {
        for (const bool symmetric : {false, true}) {
          const QuantParams params{Method::kHadamard, Profile::kDefault, aux, bits, group,
                                   symmetric,         Tiling::k1D,       Layout::kDense};
          const TestMatrix matrix =
              MakeTestMatrix(64, 256, kDtypes[cases % 4], static_cast<uint32_t>(cases));
          cases += ExpectAgreement(matrix.View(), params,
                                   cases % 2 == 0 ? CudaCuts{} : CudaCuts{3, 50, 0});
          if (HasFailure()) return;
        }
      }
    }
  }
  EXPECT_GT(cases, 60);
}

TEST(CudaHadamardTest, SpecialInputsAndOddRows) {
  const QuantParams params{Method::kHadamard, Profile::kDefault, AuxStorage::kF16, 4, 64,
                           false,             Tiling::k1D,       Layout::kDense};
  for (const SpecialMatrix& special : SpecialMatrices()) {
    const TestMatrix matrix = StoreMatrix(64, 128, WeightDtype::kF32, special.values);
    ExpectAgreement(matrix.View(), params);
    if (HasFailure()) FAIL() << special.name;
  }
  for (const int64_t rows : {1, 7, 33})
    ExpectAgreement(MakeTestMatrix(rows, 96, WeightDtype::kBf16, 3).View(), params);
}

// ---------------------------------------------------------------- figures

// Rows around every eighth, strands that begin inside a row, ranges of any size.
TEST(CudaFigureTest, EveryShapeAndCut) {
  int cases = 0;
  for (const int64_t rows : {1, 7, 8, 9, 63, 70}) {
    for (const int64_t cols : {32, 96, 160}) {
      for (const int bits : {3, 4, 5, 8}) {
        const Profile profile = cases % 2 == 0 ? Profile::kDefault : Profile::kUpstream;
        const QuantParams params{Method::kSinq, profile, AuxStorage::kF16, bits, 32, false};
        const TestMatrix matrix =
            MakeTestMatrix(rows, cols, WeightDtype::kBf16, static_cast<uint32_t>(cases));
        for (const CudaCuts& cuts : {CudaCuts{}, CudaCuts{0, 1, 0}, CudaCuts{0, 7, 0}})
          cases += ExpectAgreement(matrix.View(), params, cuts);
        if (HasFailure()) return;
      }
    }
  }
  EXPECT_GT(cases, 150);
}

TEST(CudaFigureTest, AllAreThere) {
  const TensorStats stats =
      RunBackend(CudaDriver(), MakeTestMatrix(40, 64, WeightDtype::kBf16, 2).View(), {}).stats;
  EXPECT_TRUE(stats.balanced_error && stats.cosine && stats.max_abs_error);
}

// ---------------------------------------------------------------- measuring columns

TEST(CudaMeasureTest, ColumnScalesOfAnyMethodAndLayout) {
  for (const Profile profile : {Profile::kDefault, Profile::kUpstream}) {
    for (const Method method : {Method::kSinq, Method::kRtn}) {
      for (const WeightDtype dtype : kDtypes) {
        const TestMatrix matrix = MakeTestMatrix(101, 160, dtype, 31);
        const std::vector<float> factors = Factors(101, 3);
        MatrixView in = matrix.View();
        if (dtype == WeightDtype::kF16) in.row_factor = factors;
        const QuantParams params{method, profile, AuxStorage::kU8, 4, 64, false};
        std::vector<float> expected(160), actual(160);
        const auto never = [] { return false; };
        ASSERT_TRUE(ReferenceBackend()
                        .MeasureColumns(in, params, {}, absl::MakeSpan(expected), RunSerially,
                                        never)
                        .ok());
        ASSERT_TRUE(CudaDriver({}, {2, 0, 0})
                        .MeasureColumns(in, params, {}, absl::MakeSpan(actual), RunSerially, never)
                        .ok());
        EXPECT_EQ(expected, actual) << DescribeCase(in, params);
      }
    }
  }
}

std::vector<QuantParams> MeasuredCandidates() {
  std::vector<QuantParams> candidates;
  for (const Method method :
       {Method::kSinq, Method::kRtn, Method::kSinqNf4, Method::kNf3, Method::kHqq, Method::kAsinq,
        Method::kHadamard}) {
    for (const Profile profile : {Profile::kDefault, Profile::kUpstream}) {
      for (const int bits : {2, 3, 4, 8}) {
        for (const int group : {32, 64}) {
          for (const Layout layout : {Layout::kSinq, Layout::kCompressedTensors, Layout::kGptq,
                                      Layout::kDense}) {
            QuantParams params{method,          profile, AuxStorage::kF16, bits, group,
                               bits + group == 36, Tiling::k1D, layout};
            if (Validate(params).ok()) candidates.push_back(params);
          }
        }
      }
    }
  }
  return candidates;
}

TEST(CudaMeasureTest, ErrorsOfCandidates) {
  const std::vector<QuantParams> candidates = MeasuredCandidates();
  EXPECT_GT(candidates.size(), 40u);
  const std::vector<float> factors = Factors(128, 3);
  for (const WeightDtype dtype : kDtypes) {
    const TestMatrix matrix = MakeTestMatrix(75, 128, dtype, 31);
    MatrixView in = matrix.View();
    if (dtype == WeightDtype::kBf16) in.column_factor = factors;
    std::vector<Measurement> expected(candidates.size()), actual(candidates.size());
    const auto never = [] { return false; };
    ASSERT_TRUE(ReferenceBackend()
                    .MeasureErrors(in, candidates, {}, absl::MakeSpan(expected), RunSerially, never)
                    .ok());
    ASSERT_TRUE(CudaDriver({}, {3, 0, 0})
                    .MeasureErrors(in, candidates, {}, absl::MakeSpan(actual), RunSerially, never)
                    .ok());
    for (size_t c = 0; c < candidates.size(); ++c) {
      EXPECT_EQ(expected[c].error, actual[c].error) << DescribeCase(in, candidates[c]);
      EXPECT_EQ(expected[c].power, actual[c].power) << DescribeCase(in, candidates[c]);
    }
  }
}

}  // namespace
}  // namespace sinq::kernels
