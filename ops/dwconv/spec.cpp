#include "ops/dwconv/op.h"

#include <algorithm>

#include "ops/concat/op.h"
#include "ops/elementwise/op.h"
#include "ops/reduce/op.h"
#include "ops/slice/op.h"
#include "ops/spec.h"
#include "ops/view/op.h"

namespace {
using namespace occam::spec;
using occam::Shape;
using occam::Tensor;

Arrays naive(const Arrays& in, int64_t gh, int64_t gw) {
  const Array &x = in[0], &w = in[1], &prefix_w = in[2], &bias = in[3];
  Array y(x.shape);
  const int64_t b = x.size(0), c = x.size(2), prefix = x.size(1) - gh * gw, kh = w.size(0), kw = w.size(1);
  for (int64_t n = 0; n < b; ++n)
    for (int64_t ch = 0; ch < c; ++ch) {
      double mean = 0;
      for (int64_t p = 0; p < gh * gw; ++p) mean += x(n, prefix + p, ch) / double(gh * gw);
      for (int64_t p = 0; p < prefix; ++p)
        y(n, p, ch) = bias(ch) + prefix_w(0, ch) * x(n, p, ch) + prefix_w(1, ch) * mean;
      for (int64_t r = 0; r < gh; ++r)
        for (int64_t q = 0; q < gw; ++q) {
          double sum = bias(ch);
          for (int64_t i = 0; i < kh; ++i)
            for (int64_t j = 0; j < kw; ++j) {
              const int64_t row = r + i - kh / 2, column = q + j - kw / 2;
              if (row >= 0 && row < gh && column >= 0 && column < gw)
                sum += w(i, j, ch) * x(n, prefix + row * gw + column, ch);
            }
          y(n, prefix + r * gw + q, ch) = sum;
        }
    }
  return {y};
}

/// Every tap as a product with the shifted grid.
std::vector<Tensor> by_shifts(const std::vector<Tensor>& in, int64_t gh, int64_t gw) {
  const Tensor &x = in[0], &w = in[1];
  const int64_t b = x.size(0), c = x.size(2), prefix = x.size(1) - gh * gw, kh = w.size(0), kw = w.size(1);
  auto zeros = [&](int64_t rows, int64_t columns) {
    return occam::zeros({b, rows, columns, c}, occam::options_of(x));
  };
  Tensor patches = occam::slice(x, 1, prefix, gh * gw);
  Tensor grid = occam::reshape(patches, {b, gh, gw, c});
  grid = occam::concat({zeros(kh / 2, gw), grid, zeros(kh / 2, gw)}, 1);
  grid = occam::concat({zeros(gh + kh - 1, kw / 2), grid, zeros(gh + kh - 1, kw / 2)}, 2);
  Tensor sum = in[3];
  for (int64_t i = 0; i < kh; ++i)
    for (int64_t j = 0; j < kw; ++j) {
      Tensor weight = occam::reshape(occam::slice(occam::slice(w, 0, i, 1), 1, j, 1), {c});
      sum = occam::add(occam::mul(occam::slice(occam::slice(grid, 1, i, gh), 2, j, gw), weight), sum);
    }
  Tensor own = occam::mul(occam::slice(x, 1, 0, prefix), occam::slice(in[2], 0, 0, 1));
  Tensor mean = occam::mul(occam::mean(patches, {1}, true), occam::slice(in[2], 0, 1, 1));
  return {occam::concat({occam::add(occam::add(own, mean), in[3]), occam::reshape(sum, {b, gh * gw, c})}, 1)};
}
}  // namespace

OP_SPEC(dwconv) {
  auto add = [&](const char* name, int64_t b, int64_t prefix, int64_t gh, int64_t gw, int64_t c, int64_t kh,
                 int64_t kw) -> Sample& {
    // A weight's gradient sums over all images and patches, an output over the taps.
    return spec
        .sample(
            name, {randn({b, prefix + gh * gw, c}), randn({kh, kw, c}), randn({2, c}), randn({c})},
            [=](const std::vector<Tensor>& in) {
              return std::vector{occam::dwconv(in[0], in[1], in[2], in[3], gh, gw)};
            },
            [=](const Arrays& in) { return naive(in, gh, gw); })
        .sum_length(double(std::max(kh * kw, b * (prefix + gh * gw))))
        .half_roundings(1.01);  // what is stored; sums are f32
  };
  auto composite = [](int64_t gh, int64_t gw) {
    return [=](const std::vector<Tensor>& in) { return by_shifts(in, gh, gw); };
  };
  add("2x1+3x4x2-3x3", 2, 1, 3, 4, 2, 3, 3).small().same_as(composite(3, 4));
  add("1x2+2x5x3-3x5", 1, 2, 2, 5, 3, 3, 5).small().same_as(composite(2, 5));
  add("1x1+1x1x1-1x1", 1, 1, 1, 1, 1, 1, 1).small().same_as(composite(1, 1));
  add("2x0+3x3x4-3x3", 2, 0, 3, 3, 4, 3, 3).small();
  // Widths round the strips of four columns; every kernel width that has its own kernel, and others; channels
  // round the 64 of a block.
  add("2x1+4x5x64-5x5", 2, 1, 4, 5, 64, 5, 5);
  add("3x1+9x7x66-7x7", 3, 1, 9, 7, 66, 7, 7).same_as(composite(9, 7));
  add("2x1+6x9x130-3x3", 2, 1, 6, 9, 130, 3, 3);
  add("2x2+5x8x33-3x3", 2, 2, 5, 8, 33, 3, 3);
  add("1x1+12x13x6-9x11", 1, 1, 12, 13, 6, 9, 11);
  add("2x1+14x14x192-3x3", 2, 1, 14, 14, 192, 3, 3);
  add("kernel-wider-than-grid", 2, 1, 2, 2, 4, 7, 7).same_as(composite(2, 2));
  add("no-images", 0, 1, 3, 3, 4, 3, 3);
  add("no-patches", 2, 1, 0, 3, 4, 3, 3);
  add("no-channels", 2, 1, 2, 2, 0, 3, 3);
  auto call = [](Shape x, Shape w, int64_t gh, int64_t gw) {
    return [=] {
      occam::dwconv(occam::zeros(x), occam::zeros(w), occam::zeros({2, w[2]}), occam::zeros({w[2]}), gh, gw);
    };
  };
  spec.bad("even", call({1, 5, 3}, {2, 3, 3}, 2, 2), "dwconv: the kernel 2 x 3 has no middle");
  spec.bad("grid", call({1, 5, 3}, {3, 3, 3}, 2, 3), "dwconv: 5 tokens hold no grid of 2 x 3 patches");
  spec.bad("channels", call({1, 5, 3}, {3, 3, 4}, 2, 2),
           "dwconv: axis `c` is 3 in x [1,5,3] but 4 in w [3,3,4]");
}
