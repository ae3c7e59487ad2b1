#include "nn/profile/sparsity.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/dispatch.h"
#include "ops/attention_stats/op.h"

namespace occam {

namespace {
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr size_t kRowSets = 3;
constexpr const char* kRowNames[kRowSets] = {"all", "cls", "patch"};
}  // namespace

std::vector<std::string> sparsity_keys() {
  return std::vector<std::string>(kAttentionStatNames.begin(), kAttentionStatNames.end());
}

bool sparse_is_low(const std::string& key) {
  return key == "entropy" || key == "effective_support" || key.starts_with("p_mass_support") ||
         key == "attention_distance";
}

void SparsityProfile::add(int64_t layer, const Tensor& stats) {
  size_t keys = sparsity_keys().size();
  OCCAM_CHECK(stats.rank() == 4 && stats.size(2) == int64_t(kRowSets) && stats.size(3) == int64_t(keys),
              ErrorKind::shape, "sparsity profile: stats are {}, expected [b,h,3,{}]", stats.shape().str(),
              keys);
  Layer& l = layers_.at(size_t(layer));
  auto heads = size_t(stats.size(1));
  if (l.heads == 0) {
    l.heads = int64_t(heads);
    l.sum.assign(heads * kRowSets * keys, 0.0);
    l.mean.assign(keys, 0.0);
    l.squares.assign(keys, 0.0);
  }
  OCCAM_CHECK(l.heads == int64_t(heads), ErrorKind::shape, "sparsity profile: layer {} had {} heads, now {}",
              layer, l.heads, heads);
  const Tensor host = raw::contiguous(raw::to(stats, kCPU));
  dispatch_float(host.dtype(), [&]<class T>() {
    std::vector<double> mean(keys);  // of an image over its heads, all rows
    for (size_t image = 0; image < size_t(host.size(0)); ++image) {
      const T* one = host.data<T>() + image * heads * kRowSets * keys;
      for (size_t i = 0; i < l.sum.size(); ++i) l.sum[i] += double(one[i]);
      std::fill(mean.begin(), mean.end(), 0.0);
      for (size_t h = 0; h < heads; ++h)
        for (size_t k = 0; k < keys; ++k) mean[k] += double(one[h * kRowSets * keys + k]);
      ++l.images;
      for (size_t k = 0; k < keys; ++k) {
        double delta = mean[k] / double(heads) - l.mean[k];
        l.mean[k] += delta / double(l.images);
        l.squares[k] += delta * (mean[k] / double(heads) - l.mean[k]);
      }
    }
  });
}

int64_t SparsityProfile::images() const {
  int64_t most = 0;
  for (const Layer& l : layers_) most = std::max(most, l.images);
  return most;
}

double SparsityProfile::head_mean(int64_t layer, int64_t head, RowSet rows, size_t key) const {
  const Layer& l = layers_.at(size_t(layer));
  if (l.images == 0) return kNaN;
  size_t keys = l.mean.size();
  return l.sum.at((size_t(head) * kRowSets + size_t(rows)) * keys + key) / double(l.images);
}

double SparsityProfile::mean(int64_t layer, RowSet rows, size_t key) const {
  const Layer& l = layers_.at(size_t(layer));
  if (l.images == 0) return kNaN;
  double sum = 0;
  for (int64_t h = 0; h < l.heads; ++h) sum += head_mean(layer, h, rows, key);
  return sum / double(l.heads);
}

double SparsityProfile::std(int64_t layer, size_t key) const {
  const Layer& l = layers_.at(size_t(layer));
  return l.images < 2 ? kNaN : std::sqrt(l.squares.at(key) / double(l.images - 1));
}

double SparsityProfile::ranking_value(int64_t layer, size_t key) const {
  double patch = mean(layer, RowSet::patch, key);
  return std::isnan(patch) ? mean(layer, RowSet::all, key) : patch;
}

std::vector<int64_t> SparsityProfile::ranking(size_t key) const {
  bool low = sparse_is_low(sparsity_keys().at(key));
  std::vector<int64_t> order;
  for (int64_t i = 0; i < layers(); ++i)
    if (!std::isnan(ranking_value(i, key))) order.push_back(i);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    double x = ranking_value(a, key), y = ranking_value(b, key);
    return low ? x < y : x > y;
  });
  return order;
}

double SparsityProfile::agreement(size_t a, size_t b) const {
  std::vector<std::string> keys = sparsity_keys();
  auto values = [&](size_t key) {
    std::vector<double> v;
    for (int64_t i = 0; i < layers(); ++i)
      v.push_back((sparse_is_low(keys.at(key)) ? -1 : 1) * ranking_value(i, key));
    return v;
  };
  return kendall_tau_b(values(a), values(b));
}

Json SparsityProfile::summary() const {
  std::vector<std::string> keys = sparsity_keys();
  auto number = [](double v) { return std::isfinite(v) ? Json(v) : Json(nullptr); };
  Json layers_json = Json::array();
  for (int64_t i = 0; i < layers(); ++i) {
    if (heads(i) == 0) {
      layers_json.push_back(nullptr);
      continue;
    }
    Json layer = {{"mean", Json::object()},
                  {"std", Json::object()},
                  {"cls", Json::object()},
                  {"patch", Json::object()}};
    for (size_t k = 0; k < keys.size(); ++k) {
      layer["mean"][keys[k]] = number(mean(i, RowSet::all, k));
      layer["std"][keys[k]] = number(std(i, k));
      layer["cls"][keys[k]] = number(mean(i, RowSet::cls, k));
      layer["patch"][keys[k]] = number(mean(i, RowSet::patch, k));
    }
    Json heads_json = Json::array();
    for (int64_t h = 0; h < heads(i); ++h) {
      Json head = Json::object();
      for (size_t k = 0; k < keys.size(); ++k) head[keys[k]] = number(head_mean(i, h, RowSet::all, k));
      heads_json.push_back(std::move(head));
    }
    layer["heads"] = std::move(heads_json);
    layers_json.push_back(std::move(layer));
  }
  Json rankings = Json::object();
  for (size_t k = 0; k < keys.size(); ++k) rankings[keys[k]] = ranking(k);
  return {{"images", images()}, {"layers", std::move(layers_json)}, {"ranking", std::move(rankings)}};
}

std::string SparsityProfile::csv() const {
  std::vector<std::string> keys = sparsity_keys();
  std::string text = "layer,head,rows";
  for (const std::string& key : keys) text += "," + key;
  text += "\n";
  for (int64_t i = 0; i < layers(); ++i)
    for (int64_t h = 0; h < heads(i); ++h)
      for (size_t r = 0; r < kRowSets; ++r) {
        text += fmt::format("{},{},{}", i, h, kRowNames[r]);
        for (size_t k = 0; k < keys.size(); ++k) {
          double v = head_mean(i, h, RowSet(r), k);
          text += std::isfinite(v) ? fmt::format(",{:.9g}", v) : ",";
        }
        text += "\n";
      }
  return text;
}

double kendall_tau_b(const std::vector<double>& a, const std::vector<double>& b) {
  OCCAM_ASSERT(a.size() == b.size());
  auto sign = [](double d) { return d > 0 ? 1 : d < 0 ? -1 : 0; };
  double both = 0, in_a = 0, in_b = 0;
  for (size_t i = 0; i < a.size(); ++i)
    for (size_t j = 0; j < i; ++j) {
      if (std::isnan(a[i] + b[i] + a[j] + b[j])) continue;
      int x = sign(a[i] - a[j]), y = sign(b[i] - b[j]);
      both += x * y, in_a += x * x, in_b += y * y;
    }
  return in_a == 0 || in_b == 0 ? kNaN : both / std::sqrt(in_a * in_b);
}

}  // namespace occam
