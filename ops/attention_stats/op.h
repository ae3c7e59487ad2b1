#pragma once
#include <array>
#include <optional>
#include <string_view>
#include <vector>

#include "core/tensor.h"
#include "ops/attention_stats/keys.h"

namespace occam {

/// Names of the statistics, in the order of attention_stats' last axis. For a row a of length N with sum 1:
///   threshold_share_1e-3, threshold_share_1/N   share of entries below 1e-3, below 1/N
///   entropy              -sum a ln a / ln N: 0 = one key, 1 = uniform (NaN for N = 1)
///   effective_support    exp(-sum a ln a), in tokens, of each row; then averaged
///   hoyer                (sqrt N - 1/|a|_2) / (sqrt N - 1), Hoyer 2004 (NaN for N = 1)
///   gini                 1 - 2 sum_j a_(j) (N - j + 1/2) / N, a_(j) ascending; Hurley & Rickard 2009
///   top_k_mass_k         sum of the k largest; 10pct: k = ceil(N / 10); all of them when N < k
///   p_mass_support_0.9   least k whose k largest sum to 0.9 or more, divided by N
///   attention_distance   patch queries and keys only: mean Euclidean distance on the grid, in patches, under
///                        the row renormalised over patch keys (ViT, arXiv 2010.11929, appendix D.7)
///   window_mass_k        mass that a patch query puts on patch keys at most (k-1)/2 rows and columns away,
///                        of the whole row
///   sink_mass_cls        mass on token 0; NaN without prefix tokens
///   sink_mass_max        of a whole map: the largest mean over the rows of the mass on one key
/// An entry within a relative 1e-9 of a threshold counts as equal to it (keys.h: kTie).
inline constexpr std::array<std::string_view, kAttentionStatCount> kAttentionStatNames{"threshold_share_1e-3",
                                                                                       "threshold_share_1/N",
                                                                                       "entropy",
                                                                                       "effective_support",
                                                                                       "hoyer",
                                                                                       "gini",
                                                                                       "top_k_mass_1",
                                                                                       "top_k_mass_5",
                                                                                       "top_k_mass_10",
                                                                                       "top_k_mass_10pct",
                                                                                       "p_mass_support_0.9",
                                                                                       "attention_distance",
                                                                                       "window_mass_3",
                                                                                       "window_mass_5",
                                                                                       "sink_mass_cls",
                                                                                       "sink_mass_max"};

/// The row sets, in the order of attention_stats' last axis but one: all rows; row 0; the rows after the
/// prefix tokens.
enum class AttentionRows : int { all, cls, patch };
inline constexpr int kAttentionRowSets = 3;

struct AttentionStatsOptions {
  int64_t prefix_tokens = 1;  // before the patches: CLS, then a distillation token where there is one
  int64_t grid_h = 0, grid_w = 0;
  bool order_metrics = true;  // gini, top_k_mass_*, p_mass_support_0.9 (they sort each row); else NaN
};

/// Sparsity of softmax(scale q k^T) without storing the map: means over the rows of each set, for each image
/// and head. qkv [b,t,3,h,d] -> f32 [b,h,3,16] (f64 for f64 input); `scale` is 1/sqrt(d) unless given.
/// NaN: spatial keys of row 0 (for `all` they are those of `patch`), every key of row 0 without prefix
/// tokens, attention_distance when no row has mass on patches, and rows with a score that is not finite.
/// Counts are those of exact arithmetic: probabilities are computed in f64, for bf16 on a GPU in f32 and
/// again in f64 where f32 cannot decide (README.md; fast for heads of 8, 16, ... 128 and, with order metrics,
/// t up to 2048). Not differentiable. Throws Error{shape} when prefix_tokens + grid_h * grid_w is not t. On a
/// GPU t is at most 16384.
Tensor attention_stats(const Tensor& qkv, const AttentionStatsOptions& options,
                       std::optional<double> scale = {});

/// The same for given maps a [b,h,t,t], such as the mixing matrices of mixers without softmax: rows are taken
/// as |a| / sum |a|.
Tensor row_stats(const Tensor& a, const AttentionStatsOptions& options);

/// Sums over the batch of the map softmax(scale q k^T) and of its squares: qkv [b,t,3,h,d] -> f32 [2,h,t,t]
/// (f64 for f64 input). The mean map over n images is the first part of their sum, divided by n. On a GPU t
/// is at most 8192.
Tensor attention_map_moments(const Tensor& qkv, std::optional<double> scale = {});

/// Share of the maps' variance that is between images, for each head, from attention_map_moments summed over
/// `images`: mean_ij Var_x(a_ij) / Var_xij(a_ij), in [0,1] (x images; the variance over all entries
/// splits into that between images and that of the mean map). 0: every image has the same map; 1: the mean
/// map is uniform. NaN where all entries are equal.
std::vector<double> data_dependence(const Tensor& moments, int64_t images);

}  // namespace occam
