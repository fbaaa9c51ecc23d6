// The same bytes from every SIMD target as from the scalar oracle, whatever the order and number of
// threads.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/half.h"
#include "tests/reference/reference_backend.h"
#include "tests/reference/run_backend.h"

namespace sinq::kernels {
namespace {

// A matrix with its storage.
struct Matrix {
  int64_t rows, cols;
  WeightDtype dtype;
  std::vector<std::byte> bytes;
  std::vector<float> block_scales;
  std::vector<float> row_factor = {}, column_factor = {};
  std::vector<float> samples = {}, second_moments = {};
  ActivationView activations = {};
  MatrixView View() const {
    MatrixView view{bytes.data(), rows, cols, dtype, block_scales, row_factor, column_factor};
    if (!samples.empty() || !second_moments.empty()) view.activations = &activations;
    return view;
  }
};

template <class T>
void Append(std::vector<std::byte>& bytes, T value) {
  const auto* raw = reinterpret_cast<const std::byte*>(&value);
  bytes.insert(bytes.end(), raw, raw + sizeof value);
}

Matrix Store(int64_t rows, int64_t cols, WeightDtype dtype, const std::vector<float>& values) {
  Matrix m{rows, cols, dtype, {}, {}};
  for (const float value : values) {
    if (dtype == WeightDtype::kF32) Append(m.bytes, value);
    if (dtype == WeightDtype::kF16) Append(m.bytes, FloatToF16(value));
    if (dtype == WeightDtype::kBf16)
      Append(m.bytes, static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16));
  }
  return m;
}

// Weights as in a layer: rows and columns of different spread, a few outliers.
std::vector<float> LayerLike(int64_t rows, int64_t cols, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> col_spread, values;
  for (int64_t k = 0; k < cols; ++k) col_spread.push_back(0.02f * std::exp(0.7f * normal(random)));
  for (int64_t i = 0; i < rows; ++i) {
    const float row_spread = std::exp(0.5f * normal(random));
    for (int64_t k = 0; k < cols; ++k) {
      const float outlier = random() % 97 == 0 ? 6.0f : 1.0f;
      values.push_back(normal(random) * row_spread * col_spread[static_cast<size_t>(k)] * outlier);
    }
  }
  return values;
}

Matrix Fp8(int64_t rows, int64_t cols, uint32_t seed) {
  std::mt19937 random(seed);
  Matrix m{rows, cols, WeightDtype::kF8E4M3, {}, {}};
  for (int64_t i = 0; i < rows * cols; ++i) {
    uint8_t code = static_cast<uint8_t>(random());
    if ((code & 0x7f) == 0x7f) code = 0x38;
    m.bytes.push_back(static_cast<std::byte>(code));
  }
  const int64_t blocks = ((rows + 127) / 128) * ((cols + 127) / 128);
  for (int64_t b = 0; b < blocks; ++b)
    m.block_scales.push_back(1e-4f * (1.0f + static_cast<float>(random() % 1000) / 333.0f));
  return m;
}

Matrix MakeMatrix(int64_t rows, int64_t cols, WeightDtype dtype, uint32_t seed) {
  if (dtype == WeightDtype::kF8E4M3) return Fp8(rows, cols, seed);
  return Store(rows, cols, dtype, LayerLike(rows, cols, seed));
}

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

std::string Describe(const MatrixView& in, const QuantParams& p) {
  return absl::StrCat(in.rows, "x", in.cols, " dtype ", static_cast<int>(in.dtype), " bits ",
                      p.bits, " group ", p.group_size, p.symmetric ? " symmetric " : " asymmetric ",
                      AuxName(p.aux), " ", ProfileName(p.profile), " ", MethodName(p.method), " ",
                      TilingName(p.tiling), " layout ", static_cast<int>(p.layout),
                      p.own_column_scale ? "" : " no column scale");
}

// Oracle against every target; the targets also in reverse order and on threads.
void ExpectAgreement(const Matrix& matrix, const QuantParams& params,
                     const std::string& what = "") {
  const MatrixView in = matrix.View();
  const QuantizedPlanes expected = RunBackend(ReferenceBackend(), in, params);
  for (const std::unique_ptr<Backend>& target : Targets()) {
    const std::string where =
        absl::StrCat(target->GetCapabilities().target, " ", what, " ", Describe(in, params));
    EXPECT_EQ(Difference(expected, RunBackend(*target, in, params)), "") << where;
  }
  const Backend& best = *Targets().front();
  EXPECT_EQ(Difference(expected, RunBackend(best, in, params, RunReversed, 3)), "")
      << "reversed " << what << Describe(in, params);
  EXPECT_EQ(Difference(expected, RunBackend(best, in, params, RunThreaded, 4)), "")
      << "threads " << what << Describe(in, params);
}

bool IsPossible(const QuantParams& params, int64_t rows, int64_t cols) {
  return Validate(params).ok() && PlanesOf(params, rows, cols).ok();
}

// Scales from 1/4 to 4 on rows and columns.
void Fold(Matrix& m, bool rows, bool columns, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  const auto factor = [&] { return std::exp2(std::clamp(normal(random), -2.0f, 2.0f)); };
  for (int64_t i = 0; rows && i < m.rows; ++i) m.row_factor.push_back(factor());
  for (int64_t k = 0; columns && k < m.cols; ++k) m.column_factor.push_back(factor());
}

void GiveSamples(Matrix& m, int64_t tokens, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> spread;
  for (int64_t k = 0; k < m.cols; ++k) spread.push_back(std::exp(0.8f * normal(random)));
  for (int64_t i = 0; i < tokens * m.cols; ++i)
    m.samples.push_back(normal(random) * spread[static_cast<size_t>(i % m.cols)]);
  m.activations = {m.samples, tokens, {}};
}

// What samples would have averaged to.
void GiveMoments(Matrix& m, uint32_t seed) {
  constexpr int64_t kTokens = 9;
  GiveSamples(m, kTokens, seed);
  const auto sample = [&](int64_t token, int64_t k) {
    return m.samples[static_cast<size_t>(token * m.cols + k)];
  };
  for (int64_t a = 0; a < m.cols; ++a) {
    for (int64_t b = 0; b < m.cols; ++b) {
      float sum = 0;
      for (int64_t token = 0; token < kTokens; ++token) sum += sample(token, a) * sample(token, b);
      m.second_moments.push_back(sum / kTokens);
    }
  }
  m.samples.clear();
  m.activations = {{}, 0, m.second_moments};
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
      ExpectAgreement(MakeMatrix(seed % 2 == 0 ? 64 : 32, 256, dtype, seed), params);
      if (HasFailure()) return;
    }
  }
}

TEST(BackendAgreementTest, EveryDtypeInEveryProfile) {
  for (const WeightDtype dtype :
       {WeightDtype::kBf16, WeightDtype::kF16, WeightDtype::kF32, WeightDtype::kF8E4M3}) {
    for (const Profile profile : {Profile::kDefault, Profile::kUpstream}) {
      for (const bool symmetric : {false, true}) {
        ExpectAgreement(MakeMatrix(160, 384, dtype, 5),
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
              MakeMatrix(rows, cols, rows == 33 ? WeightDtype::kF32 : WeightDtype::kBf16,
                         static_cast<uint32_t>(rows + cols)),
              params);
        }
      }
    }
  }
}

struct Special {
  const char* name;
  std::vector<float> values;
};

// 64 x 128, group 64.
std::vector<Special> Specials() {
  const std::vector<float> plain = LayerLike(64, 128, 77);
  const size_t count = plain.size();
  std::vector<Special> all;
  const auto made = [&](const char* name, auto&& change) {
    Special special{name, plain};
    for (size_t i = 0; i < count; ++i) special.values[i] = change(i, plain[i]);
    all.push_back(special);
  };
  made("zeros", [](size_t, float) { return 0.0f; });
  made("negative zeros", [](size_t i, float) { return i % 3 ? -0.0f : 0.0f; });
  made("zero rows", [](size_t i, float w) { return i / 128 % 4 == 1 ? 0.0f : w; });
  made("zero and negative zero in a one-sided row",
       [](size_t i, float w) { return i % 5 ? std::abs(w) : (i % 2 ? -0.0f : 0.0f); });
  made("zero columns", [](size_t i, float w) { return i % 7 == 1 ? 0.0f : w; });
  made("constant", [](size_t, float) { return 0.0625f; });
  made("negative constant", [](size_t, float) { return -3.0f; });
  made("constant groups", [](size_t i, float w) { return i / 128 % 5 == 2 ? 0.3f : w; });
  made("one-sided", [](size_t, float w) { return std::abs(w) + 0.5f; });
  made("one-sided far", [](size_t i, float w) { return i / 128 == 3 ? w + 30.0f : w; });
  made("negative one-sided", [](size_t, float w) { return -std::abs(w) - 0.01f; });
  made("outlier", [](size_t i, float w) { return i == 777 ? 50.0f : w; });
  made("single non-zero", [](size_t i, float) { return i == 4000 ? 1.5f : 0.0f; });
  made("large", [](size_t, float w) { return w * 1e5f; });
  made("tiny", [](size_t, float w) { return w * 1e-6f; });
  made("1e30", [](size_t, float w) { return w * 1e30f; });
  made("1e-30", [](size_t, float w) { return w * 1e-30f; });
  made("denormal", [](size_t, float w) { return w * 1e-38f; });
  made("smallest denormals", [](size_t i, float) { return static_cast<float>(i % 5) * 0x1p-149f; });
  made("3e38", [](size_t i, float w) { return i % 2 ? 3e38f : w; });
  made("mixed scales", [](size_t i, float w) { return i % 2 ? w * 1e15f : w * 1e-15f; });
  return all;
}

TEST(BackendAgreementTest, SpecialInputs) {
  for (const Special& special : Specials()) {
    const Matrix matrix = Store(64, 128, WeightDtype::kF32, special.values);
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
  std::vector<float> values = LayerLike(70, 128, 3);
  for (const size_t place : places) values[place] = value;
  for (const WeightDtype dtype : {WeightDtype::kF32, WeightDtype::kBf16, WeightDtype::kF16}) {
    const Matrix matrix = Store(70, 128, dtype, values);
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

TEST(BackendAgreementTest, Fp8NanIsNamed) {
  Matrix matrix = Fp8(64, 128, 1);
  matrix.bytes[128 * 2 + 9] = std::byte{0xff};
  for (const std::unique_ptr<Backend>& target : Targets()) {
    const absl::Status status = RunBackend(*target, matrix.View(), {}).status;
    EXPECT_TRUE(absl::StrContains(status.message(), "[2, 9] is NaN")) << status;
  }
}

TEST(BackendAgreementTest, CancelledBetweenTiles) {
  const Matrix matrix = MakeMatrix(64, 128, WeightDtype::kBf16, 1);
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
  const Matrix matrix = MakeMatrix(64, 128, WeightDtype::kBf16, 8);
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
        Matrix matrix = MakeMatrix(96, 192, dtype, 21);
        Fold(matrix, which & 1, which & 2, 4);
        ExpectAgreement(matrix, {Method::kSinq, profile, AuxStorage::kU8, 4, 64, false}, "folded");
      }
    }
  }
}

TEST(BackendAgreementTest, FoldingThatOverflowsNamesTheElement) {
  Matrix matrix = MakeMatrix(64, 128, WeightDtype::kBf16, 3);
  matrix.column_factor.assign(128, 1.0f);
  matrix.column_factor[70] = 3e38f;
  matrix.row_factor.assign(64, 1.0f);
  matrix.row_factor[5] = 1e30f;
  const absl::Status status = RunBackend(*Targets().front(), matrix.View(), {}).status;
  EXPECT_TRUE(absl::StrContains(status.message(), "[5, 70] is infinite with its folded scales"))
      << status;
  EXPECT_FALSE(RunBackend(ReferenceBackend(), matrix.View(), {}).status.ok());
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
          Matrix matrix = MakeMatrix(160, 128, WeightDtype::kBf16, static_cast<uint32_t>(tried));
          if (tried % 3 == 0) Fold(matrix, false, true, 8);
          ExpectAgreement(matrix, params);
        }
      }
    }
  }
  EXPECT_GT(tried, 60);
}

// One-sided, constant and empty groups, where integer zeros have to be fitted again.
TEST(BackendAgreementTest, SpecialInputsInLayoutsOfOthers) {
  for (const Special& special : Specials()) {
    const Matrix matrix = Store(64, 128, WeightDtype::kF32, special.values);
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
        ExpectAgreement(MakeMatrix(64, 192, WeightDtype::kF16, 12), params);
      }
    }
  }
}

TEST(BackendAgreementTest, AuxiliariesOfEveryDtype) {
  for (const AuxStorage aux : {AuxStorage::kBf16, AuxStorage::kF32}) {
    for (const Profile profile : kProfiles) {
      for (const bool symmetric : {false, true}) {
        ExpectAgreement(MakeMatrix(96, 128, WeightDtype::kBf16, 31),
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
          if (IsPossible(params, 64, 256)) ExpectAgreement(MakeMatrix(64, 256, dtype, 41), params);
        }
      }
    }
  }
}

TEST(BackendAgreementTest, DenseOutputsStayFinite) {
  for (const WeightDtype dtype : {WeightDtype::kF16, WeightDtype::kBf16}) {
    std::vector<float> values = LayerLike(64, 128, 2);
    for (float& value : values) value *= dtype == WeightDtype::kF16 ? 5e4f : 1e38f;
    for (float& value : values) value = std::clamp(value, -65504.0f, 65504.0f);
    QuantParams params{Method::kSinq, Profile::kDefault, AuxStorage::kF32, 2, 64, false};
    params.layout = Layout::kDense;
    ExpectAgreement(Store(64, 128, dtype, values), params);
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
            Matrix matrix = MakeMatrix(128, 192, WeightDtype::kBf16, 51);
            if (symmetric) Fold(matrix, true, true, 6);
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
            ExpectAgreement(MakeMatrix(rows, 256, WeightDtype::kBf16, 61), params);
          }
        }
      }
    }
  }
}

TEST(BackendAgreementTest, SpecialInputsOfCodebooksHqqAndHadamard) {
  for (const Special& special : Specials()) {
    const Matrix matrix = Store(64, 128, WeightDtype::kF32, special.values);
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
  std::vector<float> values = LayerLike(64, 128, 5);
  for (float& value : values) value *= 100;
  for (const int bits : {2, 4}) {
    ExpectAgreement(Store(64, 128, WeightDtype::kF32, values),
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
        ExpectAgreement(MakeMatrix(80, 256, WeightDtype::kBf16, 71), params);
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
          Matrix matrix = MakeMatrix(tiling == Tiling::k2D ? 64 : 70, 128, WeightDtype::kBf16, 81);
          if (tokens == 0) GiveMoments(matrix, 5);
          if (tokens > 0) GiveSamples(matrix, tokens, 5);
          if (tokens == 7) Fold(matrix, false, true, 3);
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
  const auto expect = [&](const Matrix& matrix, const std::string& part) {
    const absl::Status status = RunBackend(*Targets().front(), matrix.View(), params).status;
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), part)) << status;
    EXPECT_TRUE(
        absl::IsInvalidArgument(RunBackend(ReferenceBackend(), matrix.View(), params).status));
  };
  Matrix matrix = MakeMatrix(64, 128, WeightDtype::kBf16, 1);
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
                             const Matrix& matrix, size_t count, const Call& call) {
  std::vector<std::byte> memory(2 * backend.ScratchBytes(params, matrix.rows, matrix.cols) + 64,
                                std::byte{0xff});
  std::byte* aligned = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
  std::vector<Result> results(count);
  const absl::Status status =
      call(absl::Span<std::byte>(aligned, memory.size() - 64), absl::MakeSpan(results));
  EXPECT_TRUE(status.ok()) << status;
  return results;
}

std::vector<float> ColumnsOf(const Backend& backend, const Matrix& matrix,
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
        Matrix matrix = MakeMatrix(rows, 320, dtype, 91);
        Fold(matrix, true, true, 2);
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

std::vector<double> ErrorsOf(const Backend& backend, const Matrix& matrix,
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
  Matrix matrix = MakeMatrix(75, 256, WeightDtype::kBf16, 95);
  Fold(matrix, false, true, 7);
  const std::vector<double> expected = ErrorsOf(ReferenceBackend(), matrix, candidates);
  for (const std::unique_ptr<Backend>& target : Targets())
    EXPECT_EQ(ErrorsOf(*target, matrix, candidates), expected) << target->GetCapabilities().target;
}

// More bits and smaller groups measure less error: what the planner relies on.
TEST(MeasureErrorsTest, ErrorsFallWithBitsAndRiseWithGroups) {
  const Matrix matrix = MakeMatrix(128, 256, WeightDtype::kBf16, 97);
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
