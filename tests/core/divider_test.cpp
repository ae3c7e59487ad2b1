// The division that element-wise kernels use, checked on the host.
#include "core/cuda/divider.h"

#include <gtest/gtest.h>

#include <random>

namespace occam::cuda {
namespace {

constexpr uint32_t kMost = 2147483647;

/// n and its neighbours below kMost.
void check_round(uint32_t n, uint32_t divisor) {
  const Divider divide{int64_t(divisor)};
  for (int64_t at = int64_t(n) - 1; at <= int64_t(n) + 1; ++at) {
    if (at < 0 || at > kMost) continue;
    ASSERT_EQ(divide(uint32_t(at)), uint32_t(at) / divisor) << at << " / " << divisor;
  }
}

TEST(Divider, SmallDivisors) {
  for (uint32_t divisor = 1; divisor < 300; ++divisor) {
    for (uint32_t n = 0; n < 1000; n += 3) check_round(n, divisor);
    check_round(kMost, divisor);
    check_round(kMost / divisor * divisor, divisor);
  }
}

TEST(Divider, LargeDivisors) {
  std::mt19937_64 random(1);
  for (uint32_t divisor : {1u << 16, (1u << 16) + 1, 75648u, (1u << 30) - 1, 1u << 30, (1u << 30) + 1, kMost})
    for (int i = 0; i < 2000; ++i) check_round(uint32_t(random() >> 33) / divisor * divisor, divisor);
  for (int i = 0; i < 200000; ++i) {
    const auto divisor = uint32_t(1 + (random() >> 33) % kMost);
    const auto n = uint32_t(random() >> 33);
    check_round(n, divisor);
    check_round(n / divisor * divisor, divisor);
  }
}

}  // namespace
}  // namespace occam::cuda
