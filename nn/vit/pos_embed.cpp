#include "nn/vit/pos_embed.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/check.h"

namespace occam {

namespace {

/// Keys' cubic with a = -1/2, which antialiased resizing uses (plain bicubic has a = -3/4 in PyTorch).
double cubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

struct Taps {
  int64_t first = 0;
  std::vector<double> weights;
};

/// Weights of the input points behind each of `out` points over `in`: the filter is widened by the scale when
/// shrinking, cut at the border and normalised.
std::vector<Taps> taps_of(int64_t in, int64_t out) {
  const double scale = double(in) / double(out), stretch = std::max(scale, 1.0), support = 2 * stretch;
  std::vector<Taps> taps;
  for (int64_t i = 0; i < out; ++i) {
    const double center = scale * (double(i) + 0.5);
    Taps t;
    t.first = std::max(int64_t(center - support + 0.5), int64_t(0));
    const int64_t end = std::min(int64_t(center + support + 0.5), in);
    double sum = 0;
    for (int64_t j = t.first; j < end; ++j) {
      t.weights.push_back(cubic((double(j) - center + 0.5) / stretch));
      sum += t.weights.back();
    }
    for (double& w : t.weights) w /= sum;
    taps.push_back(std::move(t));
  }
  return taps;
}

}  // namespace

Tensor resample_pos_embed(const Tensor& embed, int64_t prefix, int64_t grid) {
  OCCAM_CHECK(embed.rank() == 3 && embed.size(0) == 1 && embed.size(1) > prefix && is_floating(embed.dtype()),
              ErrorKind::input, "pos_embed {} is no [1,tokens,c] with more than {} tokens",
              embed.shape().str(), prefix);
  const int64_t patches = embed.size(1) - prefix, c = embed.size(2),
                old = std::llround(std::sqrt(double(patches)));
  OCCAM_CHECK(old * old == patches, ErrorKind::input, "pos_embed {}: {} patch rows make no square grid",
              embed.shape().str(), patches);
  if (old == grid) return embed;
  const std::vector<double> from = embed.to_vector<double>();
  const std::vector<Taps> taps = taps_of(old, grid);
  // Along a row of the grid first, then down its columns.
  std::vector<double> wide(size_t(old * grid * c), 0), result(size_t((prefix + grid * grid) * c), 0);
  for (int64_t y = 0; y < old; ++y)
    for (int64_t x = 0; x < grid; ++x)
      for (size_t k = 0; k < taps[size_t(x)].weights.size(); ++k)
        for (int64_t i = 0; i < c; ++i)
          wide[size_t((y * grid + x) * c + i)] +=
              taps[size_t(x)].weights[k] *
              from[size_t((prefix + y * old + taps[size_t(x)].first + int64_t(k)) * c + i)];
  std::copy_n(from.begin(), prefix * c, result.begin());
  for (int64_t y = 0; y < grid; ++y)
    for (size_t k = 0; k < taps[size_t(y)].weights.size(); ++k)
      for (int64_t i = 0; i < grid * c; ++i)
        result[size_t((prefix + y * grid) * c + i)] +=
            taps[size_t(y)].weights[k] * wide[size_t((taps[size_t(y)].first + int64_t(k)) * grid * c + i)];
  return from_vector(std::vector<float>(result.begin(), result.end()), {1, prefix + grid * grid, c});
}

}  // namespace occam
