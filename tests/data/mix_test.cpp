#include "data/mix/mix.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace occam {
namespace {

TEST(Mix, BetaHasItsMoments) {
  for (double alpha : {0.2, 0.8, 1.0, 3.0}) {
    Rng rng(7, "beta");
    const int n = 20000;
    double sum = 0, squares = 0;
    for (int i = 0; i < n; ++i) {
      double x = draw_beta(alpha, alpha, rng);
      ASSERT_GE(x, 0);
      ASSERT_LE(x, 1);
      sum += x;
      squares += (x - 0.5) * (x - 0.5);
    }
    double variance = 1 / (4 * (2 * alpha + 1));
    // Five standard errors; the fourth moment about the mean is below variance / 4.
    EXPECT_NEAR(sum / n, 0.5, 5 * std::sqrt(variance / n));
    EXPECT_NEAR(squares / n, variance, 5 * std::sqrt(variance / 4 / n));
  }
}

TEST(Mix, CutmixLambdaIsTheUncoveredShare) {
  Rng rng(3, "cutmix");
  int clipped = 0, odd = 0;
  for (int i = 0; i < 500; ++i) {
    MixPlan plan = draw_mix({.cutmix = 1.0}, 20, 30, rng);
    ASSERT_TRUE(plan.cutmix);
    ASSERT_TRUE(0 <= plan.top && plan.top <= plan.bottom && plan.bottom <= 20);
    ASSERT_TRUE(0 <= plan.left && plan.left <= plan.right && plan.right <= 30);
    int64_t covered = (plan.bottom - plan.top) * (plan.right - plan.left);
    EXPECT_DOUBLE_EQ(plan.lambda, 1 - double(covered) / 600);
    bool cut = plan.top == 0 || plan.left == 0 || plan.bottom == 20 || plan.right == 30;
    clipped += cut;
    if (cut) continue;
    // Whole boxes are floor(20 r) x floor(30 r) for one r.
    int64_t h = plan.bottom - plan.top, w = plan.right - plan.left;
    EXPECT_LT(std::max(double(h) / 20, double(w) / 30), std::min(double(h + 1) / 20, double(w + 1) / 30));
    odd += h % 2;
  }
  EXPECT_GT(clipped, 100);
  EXPECT_GT(odd, 15);
}

TEST(Mix, ChoosesAsOftenAsAsked) {
  Rng rng(5, "switch");
  int none = 0, cut = 0, mixed = 0;
  for (int i = 0; i < 4000; ++i) {
    MixPlan plan =
        draw_mix({.mixup = 0.8, .cutmix = 1.0, .probability = 0.5, .switch_prob = 0.25}, 8, 8, rng);
    (plan.lambda == 1 && !plan.cutmix ? none : plan.cutmix ? cut : mixed) += 1;
  }
  EXPECT_NEAR(none, 2000, 160);
  EXPECT_NEAR(cut, 500, 105);
  EXPECT_NEAR(mixed, 1500, 155);
}

// Against the definition x * lambda + flipped(x) * (1 - lambda), or the pasted box, for even and odd batches.
TEST(Mix, ImagesAndTargetsFollowTheDefinition) {
  const int64_t c = 2, h = 5, w = 4, classes = 3;
  for (int64_t b : {1, 2, 5, 6})
    for (bool cutmix : {false, true}) {
      MixPlan plan{.lambda = 0.3, .cutmix = cutmix, .top = 1, .bottom = 4, .left = 0, .right = 2};
      std::vector<float> x(size_t(b * c * h * w));
      std::iota(x.begin(), x.end(), 0.0f);
      std::vector<float> before = x;
      mix_images(x.data(), b, c, h, w, plan);
      for (int64_t i = 0; i < b; ++i)
        for (int64_t k = 0; k < c * h * w; ++k) {
          int64_t row = k / w % h, column = k % w;
          float own = before[size_t(i * c * h * w + k)], other = before[size_t((b - 1 - i) * c * h * w + k)];
          bool inside = row >= 1 && row < 4 && column < 2;
          float expected = cutmix ? (inside ? other : own) : own * 0.3f + other * 0.7f;
          EXPECT_FLOAT_EQ(x[size_t(i * c * h * w + k)], expected);
        }
      std::vector<int64_t> labels{0, 1, 2, 2, 1, 1};
      std::vector<float> targets(size_t(b * classes));
      mix_targets(labels.data(), b, classes, plan, targets.data());
      for (int64_t i = 0; i < b; ++i)
        for (int64_t k = 0; k < classes; ++k) {
          float expected =
              0.3f * float(labels[size_t(i)] == k) + 0.7f * float(labels[size_t(b - 1 - i)] == k);
          EXPECT_NEAR(targets[size_t(i * classes + k)], expected, 1e-6f);
        }
    }
}

}  // namespace
}  // namespace occam
