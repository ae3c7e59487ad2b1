#include "data/dataset.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "core/error.h"
#include "data/sampler.h"
#include "tests/data/golden.h"

namespace occam::testing {
namespace {

/// Classes of given sizes, interleaved; no real pixels.
class Counted : public Dataset {
 public:
  explicit Counted(std::vector<int64_t> sizes) {
    for (size_t k = 0; k < sizes.size(); ++k) {
      names_.push_back(std::string(1, char('a' + k)));
      labels_.insert(labels_.end(), size_t(sizes[k]), int64_t(k));
    }
    Rng rng(9, "mixed");
    for (size_t i = labels_.size(); i > 1; --i)
      std::swap(labels_[i - 1], labels_[size_t(rng.below(int64_t(i)))]);
  }
  int64_t size() const override { return int64_t(labels_.size()); }
  const std::vector<std::string>& class_names() const override { return names_; }
  int64_t channels() const override { return 1; }
  int64_t label(int64_t i) const override { return labels_[size_t(i)]; }
  Sample get(int64_t i) const override { return {Image(1, 1, 1), label(i)}; }
  std::string path(int64_t i) const override { return std::to_string(i); }

 private:
  std::vector<std::string> names_;
  std::vector<int64_t> labels_;
};

std::vector<int64_t> places(const Dataset& set) {
  std::vector<int64_t> out;
  for (int64_t i = 0; i < set.size(); ++i) out.push_back(std::stoll(set.path(i)));
  return out;
}

std::vector<int64_t> class_counts(const Dataset& set) {
  std::vector<int64_t> out(size_t(set.classes()));
  for (int64_t i = 0; i < set.size(); ++i) ++out[size_t(set.label(i))];
  return out;
}

TEST(Dataset, SubsetKeepsOrderAndChecksRange) {
  auto base = std::make_shared<Counted>(std::vector<int64_t>{3, 4});
  DatasetPtr part = subset(base, {5, 0, 5});
  EXPECT_EQ(places(*part), list(5, 0, 5));
  EXPECT_EQ(part->get(0).label, base->label(5));
  EXPECT_THROW(subset(base, {7}), Error);
}

TEST(Dataset, LimitIsStratifiedSeededAndOrdered) {
  auto base = std::make_shared<Counted>(std::vector<int64_t>{100, 50, 30, 20});
  DatasetPtr part = limit(base, 20, LimitOrder::stratified, 1);
  EXPECT_EQ(class_counts(*part), list(10, 5, 3, 2));
  EXPECT_TRUE(std::ranges::is_sorted(places(*part)));
  EXPECT_EQ(places(*part), places(*limit(base, 20, LimitOrder::stratified, 1)));
  EXPECT_NE(places(*part), places(*limit(base, 20, LimitOrder::stratified, 2)));
  // 7 of 200: 3.5, 1.75, 1.05, 0.7 become 3, 2, 1, 1 (the two largest remainders are rounded up).
  EXPECT_EQ(class_counts(*limit(base, 7, LimitOrder::stratified, 1)), list(3, 2, 1, 1));
  // Of equal remainders the lower classes win.
  auto even = std::make_shared<Counted>(std::vector<int64_t>{10, 10, 10, 10});
  EXPECT_EQ(class_counts(*limit(even, 6, LimitOrder::stratified, 3)), list(2, 2, 1, 1));
  EXPECT_EQ(places(*limit(base, 4, LimitOrder::sequential, 1)), list(0, 1, 2, 3));
  EXPECT_EQ(limit(base, 0, LimitOrder::stratified, 1), base);
  EXPECT_EQ(limit(base, 200, LimitOrder::stratified, 1), base);
}

TEST(Dataset, HoldoutSplitsIntoComplementaryStratifiedParts) {
  auto base = std::make_shared<Counted>(std::vector<int64_t>{60, 40, 20});
  for (double amount : {0.1, 12.0}) {
    HoldoutSplit split = holdout_split(base, amount, 5);
    EXPECT_EQ(class_counts(*split.held), list(6, 4, 2));
    EXPECT_EQ(class_counts(*split.rest), list(54, 36, 18));
    std::vector<int64_t> all = places(*split.held);
    for (int64_t i : places(*split.rest)) all.push_back(i);
    std::ranges::sort(all);
    EXPECT_EQ(all, places(*base));
  }
  EXPECT_NE(places(*holdout_split(base, 12, 5).held), places(*holdout_split(base, 12, 6).held));
  for (double amount : {0.001, 120.0, 500.0, -1.0, 0.9999})
    EXPECT_THROW(holdout_split(base, amount, 5), Error);
}

TEST(Dataset, HeadMayBeLargerNotSmaller) {
  Counted set({1, 1, 1});
  EXPECT_EQ(check_head(set, 3), "");
  EXPECT_TRUE(has(check_head(set, 5), "3 classes"));
  EXPECT_THROW(check_head(set, 2), Error);
}

TEST(Sampler, PermutationIsUniform) {
  // Chi-squared over the 24 orders of four: 23 degrees of freedom, mean 23, deviation 6.8.
  std::map<std::vector<int64_t>, int> seen;
  const int n = 24000;
  Rng rng(3, "perm");
  for (int i = 0; i < n; ++i) ++seen[permutation(4, rng)];
  ASSERT_EQ(seen.size(), 24u);
  double chi = 0;
  for (auto& [order, count] : seen) chi += (count - n / 24.0) * (count - n / 24.0) / (n / 24.0);
  EXPECT_LT(chi, 58);
}

TEST(Sampler, EpochsArePermutationsAndRepeatable) {
  Sampler a(103, {.batch = 10, .shuffle = true, .seed = 7}),
      b(103, {.batch = 10, .shuffle = true, .seed = 7});
  EXPECT_EQ(a.batches_per_epoch(), 11);
  std::vector<int64_t> previous;
  for (int64_t epoch : {0, 1, 5}) {
    std::vector<int64_t> order;
    for (int64_t i = 0; i < 11; ++i)
      for (int64_t index : a.batch(epoch, i)) order.push_back(index);
    std::set<int64_t> distinct(order.begin(), order.end());
    EXPECT_EQ(distinct.size(), 103u);
    EXPECT_EQ(*distinct.rbegin(), 102);
    EXPECT_NE(order, previous);
    previous = order;
  }
  EXPECT_EQ(b.batch(5, 10), a.batch(5, 10));  // any place, in any order
  EXPECT_EQ(b.batch(0, 3), a.batch(0, 3));
  EXPECT_EQ(a.batch(0, 10).size(), 3u);
  Sampler other(103, {.batch = 10, .shuffle = true, .seed = 8});
  EXPECT_NE(other.batch(0, 0), a.batch(0, 0));
}

TEST(Sampler, DropLastAndSequential) {
  Sampler s(25, {.batch = 10, .drop_last = true});
  EXPECT_EQ(s.batches_per_epoch(), 2);
  EXPECT_EQ(s.batch(3, 1).front(), 10);
  EXPECT_THROW(Sampler(9, {.batch = 10, .drop_last = true}), Error);
  EXPECT_THROW(Sampler(0, {.batch = 1}), Error);
  EXPECT_THROW(Sampler(5, {.batch = 0}), Error);
}

}  // namespace
}  // namespace occam::testing
