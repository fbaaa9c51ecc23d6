#include "kernels/folding.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/half.h"

namespace sinq::kernels {
namespace {

std::vector<int8_t> CodesOf(const std::vector<float>& t, int group_size) {
  std::vector<int8_t> codes(t.size());
  ColumnCodes(t, group_size, absl::MakeSpan(codes));
  return codes;
}

TEST(ColumnCodes, AreThirtySecondsOfAnOctaveAroundTheTilesGeometricMean) {
  // Geometric means 2 and 1.
  EXPECT_EQ(CodesOf({1, 4, 2, 2, 0.5f, 2, 1, 1}, 4),
            (std::vector<int8_t>{-32, 32, 0, 0, -32, 32, 0, 0}));
  // 2^(1/32) is one step, half of that rounds to even: 0.
  const float step = static_cast<float>(std::exp2(1.0 / 32));
  EXPECT_EQ(CodesOf({step, 1 / step}, 2), (std::vector<int8_t>{1, -1}));
}

TEST(ColumnCodes, StayWithin127) {
  EXPECT_EQ(CodesOf({1e6f, 1e-6f}, 2), (std::vector<int8_t>{127, -127}));
}

// Against the C library's logarithm; values near the middle of two codes may go either way there.
TEST(ColumnCodes, AgreeWithTheLibrarysLogarithm) {
  std::mt19937 random(3);
  std::lognormal_distribution<float> values(0.0f, 0.6f);
  constexpr int kGroup = 64;
  std::vector<float> t(40 * kGroup);
  for (float& value : t) value = values(random);
  const std::vector<int8_t> codes = CodesOf(t, kGroup);
  for (size_t begin = 0; begin < t.size(); begin += kGroup) {
    double mean = 0;
    for (size_t i = begin; i < begin + kGroup; ++i) mean += std::log2(double{t[i]}) / kGroup;
    for (size_t i = begin; i < begin + kGroup; ++i)
      EXPECT_NEAR(codes[i], 32 * (std::log2(double{t[i]}) - mean), 0.5 + 1e-9) << i;
  }
}

TEST(SharedScale, IsTheGeometricMean) {
  EXPECT_EQ(SharedScale(0, 3, false), 1.0f);
  EXPECT_EQ(SharedScale(3 * 32, 3, false), 2.0f);
  EXPECT_FLOAT_EQ(SharedScale(-10 + 3, 2, false), static_cast<float>(std::exp2(-7.0 / 64)));
  EXPECT_EQ(SharedScale(40, 1, true), 2.0f);  // 2^1.25
  EXPECT_EQ(SharedScale(-70, 1, true), 0.25f);
  EXPECT_EQ(SharedScale(-16, 1, true), 1.0f);  // 2^-0.5: to even
}

TEST(FoldElement, ReportsTheFactorThatTheStoredValueStandsFor) {
  for (const WeightDtype dtype : {WeightDtype::kBf16, WeightDtype::kF16, WeightDtype::kF32}) {
    const float w = 1.1015625f, t = 1.3f;  // w fits every dtype
    const FoldedElement folded = FoldElement(VectorFold::kTimes, w, t, dtype);
    const float step = dtype == WeightDtype::kBf16  ? 0x1p-8f
                       : dtype == WeightDtype::kF16 ? 0x1p-11f
                                                    : 0x1p-24f;
    EXPECT_NEAR(folded.value, w * t, w * t * step);
    EXPECT_FLOAT_EQ(folded.scale, folded.value / w);
  }
  // 1.3 * 1.1015625 = 1.43203 lies between 1.4296875 and 1.4375.
  const FoldedElement folded =
      FoldElement(VectorFold::kTimes, 1.1015625f, 1.3f, WeightDtype::kBf16);
  EXPECT_EQ(folded.value, 1.4296875f);
}

TEST(FoldElement, OfOnePlusW) {
  const FoldedElement folded = FoldElement(VectorFold::kPlusOne, 0.25f, 1.5f, WeightDtype::kF32);
  EXPECT_EQ(folded.value, 0.875f);
  EXPECT_EQ(folded.scale, 1.5f);
  const FoldedElement rounded = FoldElement(VectorFold::kPlusOne, 0.25f, 1.3f, WeightDtype::kBf16);
  EXPECT_EQ(rounded.value, 0.625f);  // 0.62500000xx: what BF16 holds next to 1.25 * 1.3 - 1
  EXPECT_FLOAT_EQ(rounded.scale, 1.625f / 1.25f);
}

TEST(FoldElement, LeavesWhatItCannotStore) {
  const auto expect_unchanged = [](VectorFold fold, float w, float t, WeightDtype dtype) {
    const FoldedElement folded = FoldElement(fold, w, t, dtype);
    EXPECT_EQ(folded.value, w);
    EXPECT_EQ(folded.scale, 1.0f);
  };
  expect_unchanged(VectorFold::kTimes, 0.0f, 2.0f, WeightDtype::kBf16);
  expect_unchanged(VectorFold::kPlusOne, -1.0f, 2.0f, WeightDtype::kBf16);
  expect_unchanged(VectorFold::kTimes, 60000.0f, 2.0f, WeightDtype::kF16);  // overflows
  expect_unchanged(VectorFold::kTimes, 0x1p-24f, 0.4f, WeightDtype::kF16);  // becomes 0
  // 1 + w = 2^-8 with w = -1 + 2^-8: times 0.4 it is -1 + 2^-8 or -1 in BF16.
  expect_unchanged(VectorFold::kPlusOne, -0.99609375f, 0.3f, WeightDtype::kBf16);
}

template <class T>
const std::byte* BytesOf(const std::vector<T>& values) {
  return reinterpret_cast<const std::byte*>(values.data());
}

TEST(FoldMatrix, RoundsTheProductOnce) {
  const std::vector<float> weights = {1.0f, 2.0f, -3.0f, 0.1f, 5.0f, -6.0f};
  const std::vector<float> rows = {1.0f, 1.7f}, columns = {0.3f, 1.0f, 1.1f};
  MatrixView view{BytesOf(weights), 2, 3, WeightDtype::kF32, {}};
  view.row_factor = rows;
  view.column_factor = columns;
  std::vector<uint16_t> out(6);
  ASSERT_TRUE(FoldMatrix(view, WeightDtype::kBf16,
                         {reinterpret_cast<std::byte*>(out.data()), out.size() * 2})
                  .ok());
  for (size_t i = 0; i < 6; ++i) {
    const float product = weights[i] * rows[i / 3] * columns[i % 3];
    EXPECT_EQ(Bf16ToFloat(out[i]), RoundToBf16(product)) << i;
  }
}

TEST(FoldMatrix, NamesAnElementThatOverflows) {
  const std::vector<float> weights = {1.0f, 60000.0f};
  const std::vector<float> columns = {1.0f, 2.0f};
  MatrixView view{BytesOf(weights), 1, 2, WeightDtype::kF32, {}};
  view.column_factor = columns;
  std::vector<std::byte> out(4);
  const absl::Status status = FoldMatrix(view, WeightDtype::kF16, absl::MakeSpan(out));
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_NE(status.message().find("[0, 1]"), std::string::npos) << status;
  const std::vector<float> bad = {std::numeric_limits<float>::quiet_NaN(), 0.0f};
  MatrixView broken{BytesOf(bad), 1, 2, WeightDtype::kF32, {}};
  EXPECT_FALSE(FoldMatrix(broken, WeightDtype::kBf16, absl::MakeSpan(out)).ok());
}

TEST(Elements, SurviveARoundTripInEveryDtype) {
  for (const WeightDtype dtype : {WeightDtype::kBf16, WeightDtype::kF16, WeightDtype::kF32}) {
    std::vector<std::byte> data(3 * BytesPerElement(dtype));
    for (size_t i = 0; i < 3; ++i) StoreElement(1.5f - 0.25f * i, data.data(), i, dtype);
    for (size_t i = 0; i < 3; ++i) EXPECT_EQ(LoadElement(data.data(), i, dtype), 1.5f - 0.25f * i);
  }
}

}  // namespace
}  // namespace sinq::kernels
