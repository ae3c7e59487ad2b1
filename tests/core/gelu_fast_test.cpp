// The short forms of GELU and its slope against the double library, over the floats (as the host computes
// them; 2^x on the GPU is within 2^-22).
#include "core/cuda/gelu_fast.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

namespace occam::cuda {
namespace {

double gelu_of(double x) { return 0.5 * x * std::erfc(-x * M_SQRT1_2); }
double slope_of(double x) {
  return 0.5 * std::erfc(-x * M_SQRT1_2) + x * std::exp(-0.5 * x * x) / std::sqrt(2 * M_PI);
}

TEST(GeluFast, IsFarInsideTheRoundingOfBf16) {
  for (uint64_t bits = 0; bits <= 0xffffffffu; bits += 1009) {
    const float x = std::bit_cast<float>(uint32_t(bits));
    if (!std::isfinite(x)) continue;
    const GeluParts parts = gelu_parts(x);
    const double want = gelu_of(x);
    const double error = x >= -5 ? std::ldexp(std::abs(want), -16) + 1e-37 : std::ldexp(1.0, -33);
    ASSERT_NEAR(gelu_fast(x, parts), want, error) << "x " << x;
    ASSERT_NEAR(gelu_slope_fast(x, parts), slope_of(x), std::ldexp(1.0, -16)) << "x " << x;
  }
}

TEST(GeluFast, SpecialValues) {
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(gelu_fast(infinity), infinity);
  EXPECT_NEAR(gelu_fast(-infinity), 0, 1e-28);
  EXPECT_EQ(gelu_fast(0), 0);
  EXPECT_EQ(gelu_slope_fast(infinity, gelu_parts(infinity)), 1);
  EXPECT_NEAR(gelu_slope_fast(-infinity, gelu_parts(-infinity)), 0, 1e-27);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(gelu_fast(nan)));
  EXPECT_TRUE(std::isnan(gelu_slope_fast(nan, gelu_parts(nan))));
}

}  // namespace
}  // namespace occam::cuda
