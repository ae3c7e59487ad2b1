#include "nn/profile/sparsity.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

namespace occam {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

/// Stats of one image with one head where every key of every row set is `value`.
Tensor constant_stats(double value) { return full({1, 1, 3, int64_t(sparsity_keys().size())}, value); }

size_t key_index(const std::string& name) {
  auto keys = sparsity_keys();
  return size_t(std::find(keys.begin(), keys.end(), name) - keys.begin());
}

TEST(Kendall, AgreesWithScipy) {
  // scipy.stats.kendalltau([1,2,3,4,5],[3,1,2,5,5]) and with a tie in both lists
  EXPECT_NEAR(kendall_tau_b({1, 2, 3, 4, 5}, {3, 1, 2, 5, 5}), 0.5270462766947299, 1e-12);
  EXPECT_NEAR(kendall_tau_b({1, 1, 2, 3}, {1, 2, 2, 3}), 0.8, 1e-12);
  EXPECT_EQ(kendall_tau_b({1, 2, 3}, {3, 2, 1}), -1);
  EXPECT_TRUE(std::isnan(kendall_tau_b({1, 1}, {1, 2})));
  EXPECT_EQ(kendall_tau_b({1, 2, kNaN}, {1, 2, 0}), 1);
}

TEST(SparsityProfile, MeansAndSpreadOverImages) {
  SparsityProfile p(2);
  for (double v : {1.0, 2.0, 6.0}) p.add(0, constant_stats(v));
  size_t k = key_index("entropy");
  EXPECT_DOUBLE_EQ(p.mean(0, RowSet::patch, k), 3);
  EXPECT_NEAR(p.std(0, k), std::sqrt(7.0), 1e-12);
  EXPECT_EQ(p.images(), 3);
  Json s = p.summary();
  EXPECT_TRUE(s["layers"][1].is_null());
  EXPECT_EQ(s["layers"][0]["heads"][0]["entropy"], 3.0);
  EXPECT_EQ(s["ranking"]["entropy"], Json::array({0}));
}

TEST(SparsityProfile, RankingRunsFromSparseToDenseWithTiesToTheLowerIndex) {
  SparsityProfile p(4);
  for (int64_t i = 0; i < 4; ++i)
    p.add(i, constant_stats(std::vector<double>{0.5, 0.2, 0.9, 0.2}[size_t(i)]));
  EXPECT_EQ(p.ranking(key_index("entropy")), (std::vector<int64_t>{1, 3, 0, 2}));
  EXPECT_EQ(p.ranking(key_index("gini")), (std::vector<int64_t>{2, 0, 1, 3}));
  EXPECT_EQ(p.agreement(key_index("entropy"), key_index("gini")), -1);
}

TEST(SparsityProfile, UndefinedValuesAreNull) {
  SparsityProfile p(1);
  Tensor stats = constant_stats(0.5);
  stats.fill_(kNaN);
  p.add(0, stats);
  EXPECT_TRUE(p.summary()["layers"][0]["cls"]["attention_distance"].is_null());
  EXPECT_TRUE(p.ranking(0).empty());
}

}  // namespace
}  // namespace occam
