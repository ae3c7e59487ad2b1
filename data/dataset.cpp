#include "data/dataset.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/check.h"
#include "core/rng.h"
#include "data/sampler.h"

namespace occam {

namespace {

class Subset : public Dataset {
 public:
  Subset(DatasetPtr base, std::vector<int64_t> indices)
      : base_(std::move(base)), indices_(std::move(indices)) {}
  int64_t size() const override { return int64_t(indices_.size()); }
  const std::vector<std::string>& class_names() const override { return base_->class_names(); }
  int64_t channels() const override { return base_->channels(); }
  int64_t label(int64_t index) const override { return base_->label(at(index)); }
  Sample get(int64_t index) const override { return base_->get(at(index)); }
  std::string path(int64_t index) const override { return base_->path(at(index)); }
  Rect common_size() const override { return base_->common_size(); }

 private:
  int64_t at(int64_t index) const {
    OCCAM_ASSERT(index >= 0 && index < size());
    return indices_[size_t(index)];
  }
  DatasetPtr base_;
  std::vector<int64_t> indices_;
};

/// Marks `count` images of `data`, class by class in proportion to class sizes.
std::vector<bool> stratified_choice(const Dataset& data, int64_t count, uint64_t seed, const char* purpose) {
  auto classes = size_t(data.classes());
  std::vector<std::vector<int64_t>> members(classes);
  for (int64_t i = 0; i < data.size(); ++i) members[size_t(data.label(i))].push_back(i);

  // Largest remainders, in integers: class k is due size_k * count / n images.
  std::vector<int64_t> take(classes), remainder(classes);
  int64_t left = count, n = data.size();
  for (size_t k = 0; k < classes; ++k) {
    auto due = static_cast<__int128>(members[k].size()) * count;
    take[k] = int64_t(due / n);
    remainder[k] = int64_t(due % n);
    left -= take[k];
  }
  std::vector<size_t> by_remainder(classes);
  std::iota(by_remainder.begin(), by_remainder.end(), size_t(0));
  std::stable_sort(by_remainder.begin(), by_remainder.end(),
                   [&](size_t a, size_t b) { return remainder[a] > remainder[b]; });
  for (size_t i = 0; left > 0; ++i, --left) ++take[by_remainder[i]];

  std::vector<bool> chosen(size_t(n), false);
  for (size_t k = 0; k < classes; ++k) {
    Rng rng(seed, purpose, k);
    std::vector<int64_t> order = permutation(int64_t(members[k].size()), rng);
    for (int64_t i = 0; i < take[k]; ++i) chosen[size_t(members[k][size_t(order[size_t(i)])])] = true;
  }
  return chosen;
}

std::vector<int64_t> where(const std::vector<bool>& mask, bool value) {
  std::vector<int64_t> indices;
  for (size_t i = 0; i < mask.size(); ++i)
    if (mask[i] == value) indices.push_back(int64_t(i));
  return indices;
}

}  // namespace

DatasetPtr subset(DatasetPtr base, std::vector<int64_t> indices) {
  for (int64_t i : indices)
    OCCAM_CHECK(i >= 0 && i < base->size(), ErrorKind::usage, "subset: image {} of a data set of {}", i,
                base->size());
  return std::make_shared<Subset>(std::move(base), std::move(indices));
}

DatasetPtr limit(DatasetPtr base, int64_t count, LimitOrder order, uint64_t seed) {
  if (count <= 0 || count >= base->size()) return base;
  std::vector<int64_t> indices;
  if (order == LimitOrder::sequential) {
    indices.resize(size_t(count));
    std::iota(indices.begin(), indices.end(), int64_t(0));
  } else {
    indices = where(stratified_choice(*base, count, seed, "data.limit"), true);
  }
  return subset(std::move(base), std::move(indices));
}

HoldoutSplit holdout_split(DatasetPtr base, double amount, uint64_t seed) {
  int64_t count = std::llround(amount < 1 ? amount * double(base->size()) : amount);
  OCCAM_CHECK(
      amount > 0 && count >= 1 && count < base->size(), ErrorKind::usage,
      "data.holdout={} of {} training images leaves one part empty; give a fraction below 1 or a count",
      amount, base->size());
  std::vector<bool> held = stratified_choice(*base, count, seed, "data.holdout");
  return {subset(base, where(held, false)), subset(base, where(held, true))};
}

std::string check_head(const Dataset& data, int64_t head_classes) {
  OCCAM_CHECK(data.classes() <= head_classes, ErrorKind::input,
              "the data set has {} classes, the model's head {} outputs; set model.classes to at least {}",
              data.classes(), head_classes, data.classes());
  if (data.classes() == head_classes) return "";
  return fmt::format(
      "the data set has {} classes, the model's head {} outputs; labels are taken as the first {}",
      data.classes(), head_classes, data.classes());
}

}  // namespace occam
