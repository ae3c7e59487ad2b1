#pragma once
// Sparsity of attention by layer and head, gathered image by image from the attention_stats op: streaming
// means and standard deviations, rankings of layers, and how far the metrics agree on them.
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/io/json.h"
#include "core/tensor.h"

namespace occam {

/// Names of the metrics, in the order of the last axis of attention_stats.
std::vector<std::string> sparsity_keys();
/// Does a small value of this metric mean sparse attention (entropy, support, p-mass, distance)?
bool sparse_is_low(const std::string& key);

/// Row sets of attention_stats: all rows, row 0 (CLS), rows after the prefix tokens.
enum class RowSet : uint8_t { all, cls, patch };

class SparsityProfile {
 public:
  explicit SparsityProfile(int64_t layers) : layers_(size_t(layers)) {}

  /// Adds a batch: f32 [b, h, 3, K] on any device, K as sparsity_keys(). Undefined values are NaN.
  void add(int64_t layer, const Tensor& stats);

  int64_t layers() const { return int64_t(layers_.size()); }
  int64_t heads(int64_t layer) const {
    return layers_.at(size_t(layer)).heads;
  }  // 0: the layer was never added
  int64_t images() const;
  /// Mean over images and heads; NaN where undefined.
  double mean(int64_t layer, RowSet rows, size_t key) const;
  /// Standard deviation over images of an image's mean over heads and all rows (n - 1 in the denominator);
  /// NaN for fewer than two images.
  double std(int64_t layer, size_t key) const;
  double head_mean(int64_t layer, int64_t head, RowSet rows, size_t key) const;

  /// What layers are ranked by: the mean over patch rows; where a metric has none, over all rows.
  double ranking_value(int64_t layer, size_t key) const;
  /// Layer indices, sparsest first, by ranking_value. Ties go to the lower index; layers without a value are
  /// left out.
  std::vector<int64_t> ranking(size_t key) const;
  /// Kendall's tau-b between the rankings of two metrics (1 = same order); NaN when one is constant.
  double agreement(size_t a, size_t b) const;

  /// layers[i].{mean,std,cls,patch}.<key>, layers[i].heads[j].<key>, ranking.<key>, images; null where
  /// undefined.
  Json summary() const;
  /// One line a (layer, head, rows) with a column a key.
  std::string csv() const;

 private:
  struct Layer {
    int64_t heads = 0, images = 0;
    std::vector<double> sum;  // [h, 3, K]
    std::vector<double> mean,
        squares;  // [K]: Welford's running mean and sum of squared deviations over images
  };
  std::vector<Layer> layers_;
};

/// Kendall's tau-b of two lists of equal length (M. G. Kendall, "The treatment of ties in ranking problems",
/// Biometrika 33, 1945). Pairs with a NaN are left out; NaN when either list is constant.
double kendall_tau_b(const std::vector<double>& a, const std::vector<double>& b);

}  // namespace occam
