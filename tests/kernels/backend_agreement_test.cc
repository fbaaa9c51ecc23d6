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
  MatrixView View() const { return {bytes.data(), rows, cols, dtype, block_scales}; }
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
                      AuxName(p.aux), " ", ProfileName(p.profile), " ", MethodName(p.method));
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
  return Validate(params).ok() && NativePlanes(params, rows, cols).ok();
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

}  // namespace
}  // namespace sinq::kernels
