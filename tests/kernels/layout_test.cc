#include "kernels/layout.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sinq::kernels {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

QuantParams ParamsFor(Layout layout, int bits, int group_size, bool symmetric,
                      AuxStorage aux = AuxStorage::kF16) {
  QuantParams params;
  params.layout = layout;
  params.bits = bits;
  params.group_size = group_size;
  params.symmetric = symmetric;
  params.aux = aux;
  return params;
}

std::vector<PlaneSpec> PlanesOrFail(const QuantParams& params, int64_t rows, int64_t cols,
                                    PlaneDtype dense = PlaneDtype::kBf16) {
  const auto planes = PlanesOf(params, rows, cols, dense);
  EXPECT_TRUE(planes.ok()) << planes.status();
  return planes.ok() ? *planes : std::vector<PlaneSpec>();
}

std::string RefusalOf(const QuantParams& params, int64_t rows, int64_t cols) {
  const auto planes = PlanesOf(params, rows, cols);
  if (planes.ok()) return "";
  EXPECT_EQ(planes.status().code(), absl::StatusCode::kFailedPrecondition);
  return std::string(planes.status().message());
}

std::vector<PlaneKind> KindsOf(const std::vector<PlaneSpec>& planes) {
  std::vector<PlaneKind> kinds;
  for (const PlaneSpec& plane : planes) kinds.push_back(plane.kind);
  return kinds;
}

TEST(LayoutTest, NativePlanesAreTheSinqLayout) {
  const QuantParams params = ParamsFor(Layout::kSinq, 4, 64, false, AuxStorage::kU8);
  const auto native = NativePlanes(params, 64, 128);
  const auto planes = PlanesOrFail(params, 64, 128);
  ASSERT_EQ(planes.size(), 8u);
  for (size_t i = 0; i < planes.size(); ++i) {
    EXPECT_EQ(planes[i].kind, (*native)[i].kind);
    EXPECT_EQ(planes[i].size_bytes, (*native)[i].size_bytes);
  }
}

TEST(LayoutTest, NativeAuxiliariesTakeTheDtypeOfAux) {
  const auto planes =
      PlanesOrFail(ParamsFor(Layout::kSinq, 4, 64, true, AuxStorage::kF32), 64, 128);
  ASSERT_THAT(KindsOf(planes), ElementsAre(PlaneKind::kCodes, PlaneKind::kColumnScale,
                                           PlaneKind::kScale, PlaneKind::kZero));
  for (size_t i = 1; i < 4; ++i) EXPECT_EQ(planes[i].dtype, PlaneDtype::kF32) << i;
  EXPECT_EQ(planes[1].size_bytes, 4u * 128);
  EXPECT_EQ(
      PlanesOrFail(ParamsFor(Layout::kSinq, 4, 64, true, AuxStorage::kBf16), 64, 128)[2].dtype,
      PlaneDtype::kBf16);
}

// 2D: T = (N / g)(K / g) squares, each with its own column scale and g row scales.
TEST(LayoutTest, SquareTilesHaveColumnScalesOfTheirOwn) {
  QuantParams params = ParamsFor(Layout::kSinq, 4, 64, false);
  params.tiling = Tiling::k2D;
  const auto planes = PlanesOrFail(params, 128, 192);
  ASSERT_EQ(planes.size(), 4u);
  EXPECT_THAT(planes[1].shape, ElementsAre(6, 1, 64));
  EXPECT_THAT(planes[2].shape, ElementsAre(6, 64, 1));
  EXPECT_THAT(planes[3].shape, ElementsAre(6, 64, 1));
  EXPECT_THAT(RefusalOf(params, 96, 192), HasSubstr("out_features = 96"));
  params.layout = Layout::kGptq;
  EXPECT_THAT(RefusalOf(params, 128, 192), HasSubstr("2D"));
}

TEST(LayoutTest, CompressedTensorsPacksCodesAlongRowsAndZerosAlongColumns) {
  const auto planes =
      PlanesOrFail(ParamsFor(Layout::kCompressedTensors, 4, 32, false, AuxStorage::kBf16), 72, 96);
  ASSERT_THAT(KindsOf(planes), ElementsAre(PlaneKind::kCodes, PlaneKind::kScale, PlaneKind::kZero));
  EXPECT_THAT(planes[0].shape, ElementsAre(72, 12));
  EXPECT_EQ(planes[0].dtype, PlaneDtype::kI32);
  EXPECT_EQ(planes[0].size_bytes, 4u * 72 * 12);
  EXPECT_THAT(planes[1].shape, ElementsAre(72, 3));
  EXPECT_EQ(planes[1].dtype, PlaneDtype::kBf16);
  EXPECT_THAT(planes[2].shape, ElementsAre(9, 3));
  const auto symmetric =
      PlanesOrFail(ParamsFor(Layout::kCompressedTensors, 8, 32, true, AuxStorage::kF32), 70, 96);
  ASSERT_EQ(symmetric.size(), 2u);
  EXPECT_THAT(symmetric[0].shape, ElementsAre(70, 24));
  EXPECT_EQ(symmetric[1].dtype, PlaneDtype::kF32);
}

// 70 zeros of 4 bits need 9 words, 48 codes of 3 bits need 5.
TEST(LayoutTest, CompressedTensorsRoundsStreamsUpToWords) {
  EXPECT_THAT(PlanesOrFail(ParamsFor(Layout::kCompressedTensors, 4, 32, false), 70, 96)[2].shape,
              ElementsAre(9, 3));
  EXPECT_THAT(PlanesOrFail(ParamsFor(Layout::kCompressedTensors, 3, 16, true), 70, 48)[0].shape,
              ElementsAre(70, 5));
}

TEST(LayoutTest, AwqIsTransposedAndAlwaysHasZeros) {
  for (const bool symmetric : {false, true}) {
    const auto planes = PlanesOrFail(ParamsFor(Layout::kAwq, 4, 64, symmetric), 40, 128);
    ASSERT_THAT(KindsOf(planes),
                ElementsAre(PlaneKind::kCodes, PlaneKind::kScale, PlaneKind::kZero));
    EXPECT_THAT(planes[0].shape, ElementsAre(128, 5));
    EXPECT_THAT(planes[1].shape, ElementsAre(2, 40));
    EXPECT_EQ(planes[1].dtype, PlaneDtype::kF16);
    EXPECT_THAT(planes[2].shape, ElementsAre(2, 5));
  }
}

TEST(LayoutTest, GptqPacksCodesDownAndZerosAcross) {
  for (const Layout layout : {Layout::kGptq, Layout::kGptqV2}) {
    const auto planes = PlanesOrFail(ParamsFor(layout, 3, 64, false), 96, 128);
    ASSERT_THAT(KindsOf(planes),
                ElementsAre(PlaneKind::kCodes, PlaneKind::kScale, PlaneKind::kZero));
    EXPECT_THAT(planes[0].shape, ElementsAre(12, 96));
    EXPECT_THAT(planes[1].shape, ElementsAre(2, 96));
    EXPECT_THAT(planes[2].shape, ElementsAre(2, 9));
    EXPECT_THAT(PlanesOrFail(ParamsFor(layout, 8, 64, true), 20, 128)[0].shape,
                ElementsAre(32, 20));
  }
}

TEST(LayoutTest, HqqKeepsTheNativeCodesAndHasRealZeros) {
  const auto planes =
      PlanesOrFail(ParamsFor(Layout::kHqq, 4, 64, false, AuxStorage::kBf16), 64, 96);
  ASSERT_THAT(KindsOf(planes), ElementsAre(PlaneKind::kCodes, PlaneKind::kScale, PlaneKind::kZero));
  EXPECT_THAT(planes[0].shape, ElementsAre(96, 32));  // 64 does not divide 96: groups of 32
  EXPECT_THAT(planes[1].shape, ElementsAre(192, 1));
  EXPECT_EQ(planes[2].dtype, PlaneDtype::kBf16);
  EXPECT_THAT(planes[2].shape, ElementsAre(192, 1));
}

TEST(LayoutTest, GgufBlocksHoldEverything) {
  const auto size_of = [](Layout layout, int bits, bool symmetric) {
    const auto planes = PlanesOrFail(ParamsFor(layout, bits, 64, symmetric), 3, 128);
    EXPECT_THAT(KindsOf(planes), ElementsAre(PlaneKind::kBlocks));
    return planes.empty() ? std::vector<int64_t>() : planes[0].shape;
  };
  EXPECT_THAT(size_of(Layout::kGgufQ4_0, 4, true), ElementsAre(3, 4 * 18));
  EXPECT_THAT(size_of(Layout::kGgufQ4_1, 4, false), ElementsAre(3, 4 * 20));
  EXPECT_THAT(size_of(Layout::kGgufQ8_0, 8, true), ElementsAre(3, 4 * 34));
}

TEST(LayoutTest, DenseIsOnePlaneOfTheInputsDtype) {
  const auto planes =
      PlanesOrFail(ParamsFor(Layout::kDense, 3, 64, false), 5, 48, PlaneDtype::kF32);
  ASSERT_THAT(KindsOf(planes), ElementsAre(PlaneKind::kDense));
  EXPECT_THAT(planes[0].shape, ElementsAre(5, 48));
  EXPECT_EQ(planes[0].size_bytes, 4u * 5 * 48);
}

TEST(LayoutTest, RefusalsNameTheRule) {
  const auto ct = [](int bits, AuxStorage aux) {
    return ParamsFor(Layout::kCompressedTensors, bits, 64, true, aux);
  };
  EXPECT_THAT(RefusalOf(ct(4, AuxStorage::kU8), 64, 64), HasSubstr("not of u8"));
  EXPECT_THAT(RefusalOf(ct(4, AuxStorage::kF16), 64, 96), HasSubstr("multiple of group_size"));
  EXPECT_THAT(RefusalOf(ct(4, AuxStorage::kF16), 0, 64), HasSubstr("empty"));
  EXPECT_THAT(RefusalOf(ct(4, AuxStorage::kF16), int64_t{1} << 40, int64_t{1} << 40),
              HasSubstr("2^59"));
  EXPECT_THAT(RefusalOf(ParamsFor(Layout::kAwq, 4, 64, false), 60, 64),
              HasSubstr("out_features = 60"));
  EXPECT_THAT(RefusalOf(ParamsFor(Layout::kAwq, 8, 64, false), 64, 64), HasSubstr("8 bits"));
  EXPECT_THAT(RefusalOf(ParamsFor(Layout::kAwq, 4, 64, false, AuxStorage::kBf16), 64, 64),
              HasSubstr("not of bf16"));
  EXPECT_THAT(RefusalOf(ParamsFor(Layout::kGptq, 3, 16, false), 64, 48),
              HasSubstr("in_features = 48"));
  EXPECT_THAT(RefusalOf(ParamsFor(Layout::kGptqV2, 2, 16, false), 24, 48),
              HasSubstr("out_features = 24"));
  EXPECT_THAT(RefusalOf(ParamsFor(Layout::kGptq, 6, 64, false), 64, 64), HasSubstr("6 bits"));
  EXPECT_THAT(RefusalOf(ParamsFor(Layout::kHqq, 5, 64, false), 64, 64), HasSubstr("5 bits"));
  EXPECT_THAT(RefusalOf(ParamsFor(Layout::kHqq, 4, 64, false, AuxStorage::kU8), 64, 64),
              HasSubstr("not of u8"));
  EXPECT_THAT(RefusalOf(ParamsFor(Layout::kGgufQ4_0, 4, 64, false), 64, 64),
              HasSubstr("symmetric"));
  EXPECT_THAT(RefusalOf(ParamsFor(Layout::kGgufQ8_0, 8, 16, true), 64, 64),
              HasSubstr("group_size = 16"));
  EXPECT_THAT(RefusalOf(ParamsFor(Layout::kDense, 4, 64, false), 64, 40),
              HasSubstr("in_features = 40"));
}

TEST(LayoutTest, OnlyU8AuxiliariesFallBack) {
  EXPECT_EQ(EffectiveAux(ParamsFor(Layout::kSinq, 4, 64, false, AuxStorage::kU8), 6, 64),
            AuxStorage::kF16);
  EXPECT_EQ(EffectiveAux(ParamsFor(Layout::kSinq, 4, 64, false, AuxStorage::kU8), 32, 64),
            AuxStorage::kU8);
  EXPECT_EQ(EffectiveAux(ParamsFor(Layout::kSinq, 4, 64, false, AuxStorage::kBf16), 32, 64),
            AuxStorage::kBf16);
}

}  // namespace
}  // namespace sinq::kernels
