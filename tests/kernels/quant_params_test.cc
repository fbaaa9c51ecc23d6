// Which combinations are refused, and that the sentence names the field and what works.
#include "kernels/quant_params.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sinq::kernels {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

QuantParams With(Method method, int bits = 4) {
  QuantParams params;
  params.method = method;
  params.bits = bits;
  return params;
}

QuantParams In(Layout layout, AuxStorage aux = AuxStorage::kF16) {
  QuantParams params;
  params.layout = layout;
  params.aux = aux;
  return params;
}

TEST(ViolationsTest, EveryMethodHasAValidForm) {
  for (const absl::string_view name : MethodNames()) {
    Method method;
    ASSERT_TRUE(ParseMethod(name, &method)) << name;
    QuantParams params = With(method, RoundingOf(method) == Rounding::kNf3 ? 3 : 4);
    if (method == Method::kHadamard) params.layout = Layout::kDense;
    EXPECT_THAT(Violations(params), IsEmpty()) << name;
  }
}

TEST(ViolationsTest, EveryLayoutHasAValidForm) {
  for (const Layout layout : {Layout::kSinq, Layout::kHqq, Layout::kCompressedTensors, Layout::kAwq,
                              Layout::kGptq, Layout::kGptqV2, Layout::kGgufQ4_1, Layout::kDense}) {
    EXPECT_THAT(Violations(In(layout)), IsEmpty()) << static_cast<int>(layout);
  }
  QuantParams q4_0 = In(Layout::kGgufQ4_0), q8_0 = In(Layout::kGgufQ8_0);
  q4_0.symmetric = q8_0.symmetric = true;
  q8_0.bits = 8;
  EXPECT_THAT(Violations(q4_0), IsEmpty());
  EXPECT_THAT(Violations(q8_0), IsEmpty());
}

TEST(ViolationsTest, CodebooksHaveOneWidth) {
  EXPECT_THAT(Violations(With(Method::kNf4, 3)),
              ElementsAre(AllOf(HasSubstr("nf4"), HasSubstr("needs bits 4"))));
  EXPECT_THAT(Violations(With(Method::kSinqNf3, 4)),
              ElementsAre(AllOf(HasSubstr("sinq_nf3"), HasSubstr("needs bits 3"))));
}

TEST(ViolationsTest, RealZerosAreNotSymmetric) {
  for (const Method method : {Method::kSinqHqq, Method::kNf4}) {
    QuantParams params = With(method);
    params.symmetric = true;
    EXPECT_THAT(Violations(params), ElementsAre(AllOf(HasSubstr("symmetric"),
                                                      HasSubstr(std::string(MethodName(method))))));
  }
}

TEST(ViolationsTest, MethodsNeedALayoutThatHoldsThem) {
  QuantParams params = In(Layout::kAwq);
  params.method = Method::kNf4;
  EXPECT_THAT(Violations(params), ElementsAre(HasSubstr("only layouts sinq and dense hold")));
  params.method = Method::kHqq;
  EXPECT_THAT(Violations(params), ElementsAre(HasSubstr("use layout sinq, hqq, gguf_q4_1")));
  params.method = Method::kAsinq;
  EXPECT_THAT(Violations(params), ElementsAre(HasSubstr("column scale of its own")));
  params.method = Method::kHadamard;
  EXPECT_THAT(Violations(params), ElementsAre(HasSubstr("use layout dense")));
}

TEST(ViolationsTest, ActivationsNeedAColumnScaleOfTheirOwn) {
  QuantParams params = With(Method::kAwq);
  params.own_column_scale = false;
  EXPECT_THAT(Violations(params), ElementsAre(HasSubstr("own_column_scale true")));
}

TEST(ViolationsTest, HadamardIsOursAndHasNoTiles) {
  QuantParams params = In(Layout::kDense);
  params.method = Method::kHadamard;
  params.tiling = Tiling::k2D;
  EXPECT_THAT(Violations(params), ElementsAre(HasSubstr("tiling 1D")));
  params.tiling = Tiling::k1D;
  params.profile = Profile::kUpstream;
  EXPECT_THAT(Violations(params), ElementsAre(HasSubstr("profile default")));
}

TEST(ViolationsTest, SquaresNeedAPlaceForTheirColumnScales) {
  for (const Layout layout : {Layout::kHqq, Layout::kCompressedTensors, Layout::kGgufQ4_1}) {
    QuantParams params = In(layout);
    params.tiling = Tiling::k2D;
    EXPECT_THAT(Violations(params), ElementsAre(HasSubstr("tiling 2D")));
  }
}

TEST(ViolationsTest, LayoutsHoldTheirWidths) {
  QuantParams params = In(Layout::kAwq);
  params.bits = 3;
  EXPECT_THAT(Violations(params), ElementsAre(HasSubstr("layout awq holds bits 4; got 3")));
  params = In(Layout::kGptq);
  params.bits = 5;
  EXPECT_THAT(Violations(params), ElementsAre(HasSubstr("holds bits 2, 3, 4, 8; got 5")));
  params = In(Layout::kGgufQ4_1);
  params.bits = 8;
  params.group_size = 16;
  params.symmetric = true;
  EXPECT_THAT(Violations(params), ElementsAre(HasSubstr("bits 4; got 8"), HasSubstr("group_size"),
                                              HasSubstr("minima")));
  EXPECT_THAT(Violations(In(Layout::kGgufQ4_0)), ElementsAre(HasSubstr("symmetric true")));
}

TEST(ViolationsTest, LayoutsHoldTheirAux) {
  EXPECT_THAT(Violations(In(Layout::kGptq, AuxStorage::kBf16)),
              ElementsAre(HasSubstr("aux f16; got bf16")));
  EXPECT_THAT(Violations(In(Layout::kCompressedTensors, AuxStorage::kU8)),
              ElementsAre(HasSubstr("aux u8 is only for layouts sinq and dense")));
}

TEST(ViolationsTest, ProfileUpstreamKeepsToTheAuthorsFormat) {
  QuantParams params = In(Layout::kCompressedTensors);
  params.profile = Profile::kUpstream;
  EXPECT_THAT(Violations(params), ElementsAre(HasSubstr("profile upstream")));
  params.layout = Layout::kHqq;
  EXPECT_THAT(Violations(params), IsEmpty());
}

TEST(ViolationsTest, EveryViolationIsTold) {
  QuantParams params = With(Method::kNf4, 7);
  params.group_size = 48;
  params.symmetric = true;
  const absl::Status status = Validate(params);
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  for (const char* part : {"got 7", "got 48", "needs bits 4", "symmetric"})
    EXPECT_THAT(std::string(status.message()), HasSubstr(part));
}

}  // namespace
}  // namespace sinq::kernels
