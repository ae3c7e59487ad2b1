#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/attention_stats/op.h"
#include "ops/softmax/op.h"
#include "ops/spec.h"

namespace {
using namespace occam::spec;
using occam::AttentionStatsOptions;
using occam::Tensor;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

/// softmax(scale q k^T), materialised: [b,h,t,t].
Array attention_maps(const Array& qkv, double scale) {
  int64_t b = qkv.size(0), t = qkv.size(1), h = qkv.size(3), d = qkv.size(4);
  Array maps({b, h, t, t});
  for (int64_t n = 0; n < b; ++n)
    for (int64_t head = 0; head < h; ++head)
      for (int64_t i = 0; i < t; ++i) {
        double largest = -INFINITY, sum = 0;
        for (int64_t j = 0; j < t; ++j) {
          double& score = maps(n, head, i, j);
          for (int64_t c = 0; c < d; ++c) score += scale * qkv(n, i, 0, head, c) * qkv(n, j, 1, head, c);
          largest = std::max(largest, score);
        }
        for (int64_t j = 0; j < t; ++j) sum += maps(n, head, i, j) = std::exp(maps(n, head, i, j) - largest);
        for (int64_t j = 0; j < t; ++j) maps(n, head, i, j) /= sum;
      }
  return maps;
}

double mass_of_largest(const std::vector<double>& descending, double k) {
  double mass = 0;
  for (size_t i = 0; i < descending.size() && double(i) < k; ++i) mass += descending[i];
  return mass;
}

/// The keys of one row of probabilities, in their order; sink_mass_max is of a set of rows and stays NaN.
std::vector<double> row_keys(const std::vector<double>& a, int64_t row, const AttentionStatsOptions& o) {
  int64_t t = int64_t(a.size()), p = o.prefix_tokens;
  double n = double(t), below = 0, below_uniform = 0, entropy = 0, squares = 0;
  for (double x : a) {
    if (x < 1e-3) ++below;
    if (x * n < 1 - 1e-12) ++below_uniform;  // a uniform row has no entry below 1/N
    if (x > 0) entropy -= x * std::log(x);
    squares += x * x;
  }
  std::vector<double> v{below / n, below_uniform / n, entropy / std::log(n), std::exp(entropy),
                        (std::sqrt(n) - 1 / std::sqrt(squares)) / (std::sqrt(n) - 1)};
  if (o.order_metrics) {
    std::vector<double> s = a;
    std::sort(s.begin(), s.end());
    double gini = 1;
    for (int64_t j = 1; j <= t; ++j) gini -= 2 * s[size_t(j - 1)] * (n - double(j) + 0.5) / n;
    std::reverse(s.begin(), s.end());
    double support = 1;
    while (support < n && mass_of_largest(s, support) < 0.9 - 1e-12) ++support;
    v.insert(v.end(), {gini, mass_of_largest(s, 1), mass_of_largest(s, 5), mass_of_largest(s, 10),
                       mass_of_largest(s, std::ceil(n / 10)), support / n});
  } else {
    v.insert(v.end(), 6, kNan);
  }
  double mass = 0, distance = 0, window3 = 0, window5 = 0;
  if (row >= p)
    for (int64_t j = p; j < t; ++j) {
      int64_t dy = (j - p) / o.grid_w - (row - p) / o.grid_w, dx = (j - p) % o.grid_w - (row - p) % o.grid_w;
      double x = a[size_t(j)];
      mass += x, distance += x * std::hypot(double(dy), double(dx));
      int64_t reach = std::max(std::abs(dy), std::abs(dx));
      if (reach <= 1) window3 += x;
      if (reach <= 2) window5 += x;
    }
  bool patch = row >= p;
  v.insert(v.end(), {patch && mass > 0 ? distance / mass : kNan, patch ? window3 : kNan,
                     patch ? window5 : kNan, p > 0 ? a[0] : kNan, kNan});
  return v;
}

Arrays naive_stats(const Array& maps, const AttentionStatsOptions& o) {
  int64_t b = maps.size(0), h = maps.size(1), t = maps.size(2), keys = occam::kAttentionStatCount;
  Array out({b, h, 3, keys}, kNan);
  for (int64_t n = 0; n < b; ++n)
    for (int64_t head = 0; head < h; ++head) {
      std::vector<std::vector<double>> rows, values;
      for (int64_t i = 0; i < t; ++i) {
        std::vector<double> a;
        double sum = 0;
        for (int64_t j = 0; j < t; ++j) a.push_back(std::abs(maps(n, head, i, j))), sum += a.back();
        for (double& x : a) x /= sum;
        values.push_back(row_keys(a, i, o));
        rows.push_back(std::move(a));
      }
      auto fill = [&](int64_t set, int64_t first, int64_t last) {
        for (int64_t k = 0; k < keys; ++k) {
          bool spatial = k >= occam::kAttentionDistance && k <= occam::kWindowMass5;
          double sum = 0, count = 0;
          for (int64_t i = spatial && set == 0 ? o.prefix_tokens : first; i < last; ++i) {
            double x = values[size_t(i)][size_t(k)];
            if (k == occam::kAttentionDistance && std::isnan(x) && i >= o.prefix_tokens) continue;
            sum += x, count += 1;
          }
          out(n, head, set, k) = sum / count;
        }
        double most = 0;
        for (int64_t j = 0; j < t; ++j) {
          double column = 0;
          for (int64_t i = first; i < last; ++i) column += rows[size_t(i)][size_t(j)];
          most = std::max(most, column / double(last - first));
        }
        out(n, head, set, occam::kSinkMassMax) = most;
      };
      fill(0, 0, t);
      if (o.prefix_tokens > 0) fill(1, 0, 1);
      fill(2, o.prefix_tokens, t);
    }
  return {out};
}

Arrays naive_moments(const Array& qkv, double scale) {
  Array maps = attention_maps(qkv, scale);
  int64_t b = maps.size(0), each = int64_t(maps.v.size()) / std::max<int64_t>(1, b);
  Array out({2, maps.size(1), maps.size(2), maps.size(3)});
  for (int64_t n = 0; n < b; ++n)
    for (int64_t i = 0; i < each; ++i) {
      double a = maps.v[size_t(n * each + i)];
      out.v[size_t(i)] += a;
      out.v[size_t(each + i)] += a * a;
    }
  return {out};
}
}  // namespace

OP_SPEC(attention_stats) {
  // On the CPU and for f32 everything is computed in f64 from the inputs as stored and rounded to f32: no
  // term that cancels and no length enters, and counts are exact. Counts are so for bf16 on a GPU too; what
  // f32 adds to the rest there is far below the rounding of a bf16 that half_roundings allows.
  auto add = [&](std::string name, Input qkv, AttentionStatsOptions o, double scale = 0) -> Sample& {
    double s = scale != 0 ? scale : 1 / std::sqrt(double(qkv.shape[4]));
    std::optional<double> given = scale != 0 ? std::optional(scale) : std::nullopt;
    return spec
        .sample(
            std::move(name), {qkv.no_grad()},
            [o, given](const std::vector<Tensor>& in) {
              return std::vector{occam::attention_stats(in[0], o, given)};
            },
            [o, s](const Arrays& in) { return naive_stats(attention_maps(in[0], s), o); })
        .no_gradient()
        .half_roundings(1);
  };
  auto grid = [](int64_t prefix, int64_t h, int64_t w) {
    return AttentionStatsOptions{.prefix_tokens = prefix, .grid_h = h, .grid_w = w};
  };
  add("2x5x2x4", randn({2, 5, 3, 2, 4}, 2), grid(1, 2, 2)).small();
  add("1x8x1x3-two-prefix", randn({1, 8, 3, 1, 3}, 2), grid(2, 2, 3), 0.7).small();
  add("2x6x1x4-no-prefix", randn({2, 6, 3, 1, 4}, 2), grid(0, 3, 2)).small();
  add("2x17x2x8", outliers({2, 17, 3, 2, 8}), grid(1, 4, 4)).small();
  add("1x50x3x16", randn({1, 50, 3, 3, 16}, 2), grid(1, 7, 7));
  add("1x197x1x64", randn({1, 197, 3, 1, 64}, 2), grid(1, 14, 14));
  add("1x198x1x64-distilled", randn({1, 198, 3, 1, 64}, 2), grid(2, 14, 14));
  // Long rows exercise the loops over keys; a query tile that ends inside the sequence.
  add("1x577x1x16", randn({1, 577, 3, 1, 16}, 2), grid(1, 24, 24));
  add("1x1025x1x8", randn({1, 1025, 3, 1, 8}, 3), grid(1, 32, 32));
  // The kernels for bf16: rows of every sorting network, heads of several lengths, long rows without a sort.
  add("1x65x2x32", randn({1, 65, 3, 2, 32}, 2), grid(1, 8, 8));
  add("2x130x1x24-two-prefix", randn({2, 130, 3, 1, 24}, 2), grid(2, 8, 16));
  add("1x257x1x128", randn({1, 257, 3, 1, 128}, 2), grid(1, 16, 16));
  add("1x1153x1x8", randn({1, 1153, 3, 1, 8}, 3), grid(1, 32, 36));
  // Heads of 64, whose rows up to 256 tokens have a kernel of their own: one group of 64 rows, all of them,
  // warps without rows, every number of keys that it is compiled for and one more, many prefix tokens.
  auto unsorted = [&](std::string name, Input qkv, AttentionStatsOptions o) {
    o.order_metrics = false;
    add(std::move(name), std::move(qkv), o);
  };
  unsorted("1x300x2x16-streaming", randn({1, 300, 3, 2, 16}, 2), grid(1, 13, 23));
  unsorted("1x1x1x64-streaming", randn({1, 1, 3, 1, 64}), grid(0, 1, 1));
  unsorted("2x17x2x64-streaming", randn({2, 17, 3, 2, 64}, 2), grid(1, 4, 4));
  unsorted("1x66x1x64-two-prefix-streaming", outliers({1, 66, 3, 1, 64}, 8), grid(2, 8, 8));
  unsorted("1x92x1x64-streaming", randn({1, 92, 3, 1, 64}, 3), grid(1, 7, 13));
  unsorted("1x144x2x64-eight-prefix-streaming", randn({1, 144, 3, 2, 64}, 2), grid(8, 8, 17));
  unsorted("1x145x2x64-nine-prefix-streaming", randn({1, 145, 3, 2, 64}, 2), grid(9, 8, 17));
  unsorted("2x197x2x64-streaming", randn({2, 197, 3, 2, 64}, 2), grid(1, 14, 14));
  unsorted("1x256x1x64-no-prefix-streaming", randn({1, 256, 3, 1, 64}, 2), grid(0, 16, 16));
  add("1x256x1x64-many-prefix", randn({1, 256, 3, 1, 64}, 2), grid(31, 15, 15));
  // Token 0 takes all but 1e-64: what is left for the grid is below the range of f32.
  std::vector<double> taken(size_t(17 * 3 * 64), 0.25);
  for (size_t i = 0; i < 17; ++i)
    taken[i * 192] = 30, taken[i * 192 + 64] = i == 0 ? 40 : 1 + double(i % 4) / 8;
  add("1x17x1x64-taken", values({1, 17, 3, 1, 64}, taken), grid(1, 4, 4));
  unsorted("1x17x1x64-taken-streaming", values({1, 17, 3, 1, 64}, taken), grid(1, 4, 4));
  // No score is above -90: the largest of them is the base, not 0.
  std::vector<double> negative(size_t(17 * 3 * 64), 0.25);
  for (size_t i = 0; i < 17 * 64; ++i)
    negative[i / 64 * 192 + i % 64] = 3, negative[i / 64 * 192 + 64 + i % 64] = -4 - double(i / 64 % 5) / 16;
  unsorted("1x17x1x64-negative-streaming", values({1, 17, 3, 1, 64}, negative), grid(1, 4, 4));
  // Probabilities so close to 1/N that f32 cannot count them.
  add("1x65x1x16-nearly-uniform", randn({1, 65, 3, 1, 16}, 0.01), grid(1, 8, 8));
  // All scores 0: every row is uniform, nothing is below 1/N, and 90 % of the tokens hold 0.9.
  add("1x10x1x4-uniform", values({1, 10, 3, 1, 4}, std::vector<double>(120, 0.0)), grid(1, 3, 3));
  // One key takes nearly all: entropy goes to 0, Hoyer to 1.
  add("1x17x1x8-peaked", outliers({1, 17, 3, 1, 8}, 16), grid(1, 4, 4));
  unsorted("2x17x1x8-unsorted", randn({2, 17, 3, 1, 8}), grid(1, 4, 4));
  add("no-images", randn({0, 5, 3, 2, 4}), grid(1, 2, 2));

  spec.sample(
          "given-maps-2x2x5x5", {randn({2, 2, 5, 5}).no_grad()},
          [=](const std::vector<Tensor>& in) { return std::vector{occam::row_stats(in[0], grid(1, 2, 2))}; },
          [=](const Arrays& in) { return naive_stats(in[0], grid(1, 2, 2)); })
      .no_gradient()
      .half_roundings(1)
      .small();
  for (auto [b, t, h, d] : {std::array<int64_t, 4>{3, 5, 2, 4}, {2, 40, 1, 16}, {2, 70, 2, 8}})
    spec.sample(
            fmt::format("moments-{}x{}x{}x{}", b, t, h, d), {randn({b, t, 3, h, d}, 2).no_grad()},
            [](const std::vector<Tensor>& in) { return std::vector{occam::attention_map_moments(in[0])}; },
            [d](const Arrays& in) { return naive_moments(in[0], 1 / std::sqrt(double(d))); })
        .no_gradient()
        .sum_length(double(b + d))  // a score sums d products; exp grows its error by the score, up to 8
        .conditioned(8)
        .half_roundings(1)
        .small();

  spec.bad(
      "grid",
      [] {
        occam::attention_stats(occam::zeros({1, 17, 3, 1, 4}),
                               {.prefix_tokens = 1, .grid_h = 4, .grid_w = 5});
      },
      "attention_stats: 1 prefix token(s) and a grid of 4 x 5 patches do not make the 17 tokens of "
      "[1,17,3,1,4]");
  spec.bad(
      "axes",
      [] {
        occam::attention_stats(occam::zeros({1, 17, 12}), {.prefix_tokens = 1, .grid_h = 4, .grid_w = 4});
      },
      "attention_stats: qkv [1,17,12]");
}
