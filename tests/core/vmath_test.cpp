#include "core/vmath.h"

#include <gtest/gtest.h>

#include <limits>

namespace occam {
namespace {

TEST(Vmath, ExpWithinTwoUlp) {
  double worst = 0;
  for (double x = -87.3; x < 88.7; x += 0.000613) {
    double want = std::exp(double(float(x)));
    worst = std::max(worst, std::abs(double(vexp(float(x))) - want) / want);
  }
  EXPECT_LT(worst, 2 * std::ldexp(1.0, -23));
  EXPECT_EQ(vexp(-100.0f), 0.0f);
  EXPECT_EQ(vexp(-std::numeric_limits<float>::infinity()), 0.0f);
  EXPECT_EQ(vexp(std::numeric_limits<float>::infinity()), std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(vexp(std::nanf(""))));
}

TEST(Vmath, SigmoidWithinFourUlp) {
  double worst = 0;
  for (double x = -86; x < 87; x += 0.000613) {
    const double want = 1 / (1 + std::exp(-double(float(x))));
    worst = std::max(worst, std::abs(double(vsigmoid(float(x))) - want) / want);
  }
  EXPECT_LT(worst, 4 * std::ldexp(1.0, -23));  // vexp's two, the sum and the quotient
  const float inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(vsigmoid(inf), 1.0f);
  EXPECT_EQ(vsigmoid(100.0f), 1.0f);
  EXPECT_LT(vsigmoid(-inf), 1e-37f);
  EXPECT_TRUE(std::isnan(vsigmoid(std::nanf(""))));
}

// Whatever the bits below: memory that nobody wrote may hold any of them.
TEST(Vmath, NanStaysNan) {
  for (uint32_t bits : {0x7fc00000u, 0xffc00000u, 0x7fc00001u, 0x7fc000ffu, 0x7fc00100u, 0xffffffffu}) {
    const float nan = std::bit_cast<float>(bits);
    for (float y : {vexp(nan), vsigmoid(nan), vtanh(nan), vnormal(nan)}) EXPECT_TRUE(std::isnan(y)) << bits;
  }
}

TEST(Vmath, Tanh) {
  double worst = 0;
  for (double x = -12; x < 12; x += 0.000171) {
    auto f = float(x);
    worst = std::max(worst, std::abs(double(vtanh(f)) - std::tanh(double(f))));
  }
  EXPECT_LT(worst, 2e-7);
  for (float tiny : {1e-30f, -3e-8f}) EXPECT_FLOAT_EQ(vtanh(tiny), tiny);
  float inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(vtanh(inf), 1.0f);
  EXPECT_TRUE(std::isnan(vtanh(std::nanf(""))));
}

TEST(Vmath, NormalAndGelu) {
  double worst = 0, slope = 0;
  for (double x = -14; x < 14; x += 0.000171) {
    const auto f = float(x);
    worst = std::max(worst, std::abs(double(vnormal(f)) - normal_of(double(f))));
    slope = std::max(slope, std::abs(double(gelu_slope(f)) - gelu_slope(double(f))));
  }
  // The fits' 6e-8, two roundings of R and one of the result.
  EXPECT_LT(worst, 1.5e-7);
  EXPECT_LT(slope, 3e-7);  // this, and two ulp of an exponential times 0.24 at most, and their roundings
  EXPECT_EQ(vnormal(0.0f), 0.5f);
  const float inf = std::numeric_limits<float>::infinity();
  for (float large : {30.0f, 1e30f, inf}) {
    EXPECT_EQ(vnormal(large), 1.0f);
    EXPECT_EQ(vnormal(-large), 0.0f);
    EXPECT_EQ(gelu_of(large), large);
    if (large < inf) {
      EXPECT_EQ(gelu_of(-large), 0.0f);
      EXPECT_EQ(gelu_slope(large), 1.0f);
      EXPECT_EQ(gelu_slope(-large), 0.0f);
    }
  }
}

}  // namespace
}  // namespace occam
