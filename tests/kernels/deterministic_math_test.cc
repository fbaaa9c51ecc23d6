// Powers against the C library's: within a rounding of the true value.
#include "kernels/deterministic_math.h"

#include <cmath>
#include <limits>
#include <random>

#include "gtest/gtest.h"

namespace sinq::kernels {
namespace {

TEST(Log2Test, IsWithin1e15OfTheLibrary) {
  std::mt19937 random(1);
  for (int i = 0; i < 200000; ++i) {
    const uint32_t bits = random() % 0x7f7fffff + 1;  // positive and finite, subnormals included
    float x;
    std::memcpy(&x, &bits, sizeof x);
    const double expected = std::log2(static_cast<double>(x));
    ASSERT_NEAR(Log2(x), expected, 1e-15 * std::max(1.0, std::abs(expected))) << x;
  }
}

TEST(Exp2Test, IsWithin1e15OfTheLibrary) {
  for (double y = -1000; y <= 1000; y += 0.01357)
    ASSERT_NEAR(Exp2(y) / std::exp2(y), 1, 1e-15) << y;
  EXPECT_EQ(Exp2(-1001), 0);
  EXPECT_EQ(Exp2(2000), std::exp2(1000.0));
}

TEST(PowerTest, IsTheTrueValueRounded) {
  std::mt19937 random(2);
  std::uniform_real_distribution<double> magnitude(-5, 5), exponent(-1, 1);
  for (int i = 0; i < 200000; ++i) {
    const float x = static_cast<float>(std::pow(10, magnitude(random)));
    const double y = exponent(random);
    const double expected = std::pow(static_cast<double>(x), y);
    // Half a step of fp32 and what fp64 may have been off.
    ASSERT_NEAR(Power(x, y), expected, expected * (0x1p-24 + 1e-13)) << x << " " << y;
  }
}

TEST(PowerTest, EdgesAreExact) {
  EXPECT_EQ(Power(0, 0), 1.0f);
  EXPECT_EQ(Power(0, 0.5), 0.0f);
  EXPECT_EQ(Power(3, 0), 1.0f);
  EXPECT_EQ(Power(1, -0.3), 1.0f);
  EXPECT_EQ(Power(4, 0.5), 2.0f);
  EXPECT_EQ(Power(0.25f, -0.5), 2.0f);
  EXPECT_EQ(Power(std::numeric_limits<float>::max(), 1.0), std::numeric_limits<float>::max());
  EXPECT_EQ(Power(0x1p-149f, 1.0), 0x1p-149f);
}

}  // namespace
}  // namespace sinq::kernels
