#include <cmath>

#include "ops/activation/op.h"
#include "ops/concat/op.h"
#include "ops/elementwise/op.h"
#include "ops/matmul/op.h"
#include "ops/matrix_scan/op.h"
#include "ops/ragged_spec.h"
#include "ops/reduce/op.h"
#include "ops/slice/op.h"
#include "ops/spec.h"
#include "ops/view/op.h"

namespace {
using namespace occam::spec;
using occam::Shape;
using occam::Tensor;

std::vector<Tensor> call(const std::vector<Tensor>& in, bool merge, const occam::Sequences& rows = {}) {
  return {occam::matrix_scan(
      in[0], in[1], in[2], in[3],
      {.scale = in[4], .skip = in[5], .floor = in[6], .merge = merge, .diagonal = in[7]}, rows)};
}

/// The step form. q and k, and v, may have one direction for both.
Arrays naive(const Arrays& in, bool merge) {
  const Array &q = in[0], &k = in[1], &v = in[2], &decay = in[3], &scale = in[4], &skip = in[5],
              &floor = in[6], &diagonal = in[7];
  int64_t b = q.size(0), t = q.size(1), g = q.size(3), n = q.size(4), h = v.size(3), p = v.size(4);
  int64_t e = merge ? 1 : 2, own = q.size(2), own_values = v.size(2);
  Array num({b, t, h, e, p}), den({b, t, e, h}), skipped({b, t, h, e, p});
  for (int64_t i = 0; i < b; ++i)
    for (int64_t r = 0; r < 2; ++r)
      for (int64_t head = 0; head < h; ++head) {
        int64_t group = head / (h / g), out = merge ? 0 : r;
        std::vector<double> s(size_t(n * p), 0.0), z(size_t(n), 0.0);
        for (int64_t step = 0; step < t; ++step) {
          int64_t token = r == 0 ? step : t - 1 - step;
          double u = scale.absent() ? 1 : scale(i, token, r, head);
          double keep = std::exp(decay(i, token, r, head));
          bool reads_before = !diagonal.absent() || (merge && r == 1);
          for (double& x : s) x *= keep;
          for (double& x : z) x *= keep;
          auto read = [&] {
            for (int64_t a = 0; a < n; ++a) {
              den(i, token, out, head) += q(i, token, r % own, group, a) * z[size_t(a)];
              for (int64_t c = 0; c < p; ++c)
                num(i, token, head, out, c) += q(i, token, r % own, group, a) * s[size_t(a * p + c)];
            }
          };
          if (reads_before) read();
          for (int64_t a = 0; a < n; ++a) {
            z[size_t(a)] += u * k(i, token, r % own, group, a);
            for (int64_t c = 0; c < p; ++c)
              s[size_t(a * p + c)] +=
                  u * k(i, token, r % own, group, a) * v(i, token, r % own_values, head, c);
          }
          if (!reads_before) read();
          if (!skip.absent())
            for (int64_t c = 0; c < p; ++c)
              skipped(i, token, head, out, c) += skip(r, head) * v(i, token, r % own_values, head, c);
          if (!diagonal.absent() && r == 0)
            for (int64_t c = 0; c < p; ++c)
              skipped(i, token, head, out, c) += diagonal(i, token, head) * v(i, token, 0, head, c);
        }
      }
  for (size_t i = 0; i < num.v.size(); ++i) num.v[i] += skipped.v[i];
  if (!floor.absent())
    for (int64_t i = 0; i < b; ++i)
      for (int64_t token = 0; token < t; ++token)
        for (int64_t out = 0; out < e; ++out)
          for (int64_t head = 0; head < h; ++head)
            for (int64_t c = 0; c < p; ++c)
              num(i, token, head, out, c) /=
                  std::max(std::abs(den(i, token, out, head)), floor(i, token, out, head));
  return {num};
}

/// The matrix form from plain ops: num = (exp(sums of log_decay) o mask o u o Q K^T) V.
std::vector<Tensor> by_matrix(const std::vector<Tensor>& in, bool merge) {
  int64_t b = in[0].size(0), t = in[0].size(1), g = in[0].size(3), h = in[2].size(3), p = in[2].size(4);
  auto at = [&](const Tensor& x, int64_t r, int64_t head) {  // [b,t,2,h,...] -> [b,t,...]
    Tensor one = occam::slice(occam::slice(x, 2, r % x.size(2), 1), 3, head, 1);
    return x.rank() == 5 ? occam::reshape(one, {b, t, x.size(4)}) : occam::reshape(one, {b, t});
  };
  std::vector<Tensor> by_head;
  for (int64_t head = 0; head < h; ++head) {
    std::vector<Tensor> outputs;
    Tensor num, den;
    for (int64_t r = 0; r < 2; ++r) {
      std::vector<double> within(size_t(t * t * t), 0.0), mask(size_t(t * t), 0.0);
      for (int64_t i = 0; i < t; ++i)
        for (int64_t j = 0; j < t; ++j) {
          bool before = r == 0 ? j < i : j > i;
          mask[size_t(i * t + j)] = before || (i == j && !in[7] && !(merge && r == 1));
          for (int64_t m = 0; m < t && before; ++m)
            within[size_t((m * t + i) * t + j)] = r == 0 ? j < m && m <= i : i <= m && m < j;
        }
      auto constant = [&](const std::vector<double>& v, const Shape& s) {
        return occam::raw::to(occam::from_vector(v, s), in[0].dtype());
      };
      Tensor sums =
          occam::reshape(occam::matmul(at(in[3], r, head), constant(within, {t, t * t})), {b, t, t});
      Tensor weights = occam::exp(sums) * constant(mask, {t, t}) *
                       occam::matmul(at(in[0], r, head / (h / g)), at(in[1], r, head / (h / g)), false, true);
      if (in[4]) weights = weights * occam::reshape(at(in[4], r, head), {b, 1, t});
      Tensor v = at(in[2], r, head), y = occam::matmul(weights, v);
      if (in[5])
        y = y + v * occam::reshape(occam::slice(occam::slice(in[5], 0, r, 1), 1, head, 1), {1, 1, 1});
      if (in[7] && r == 0) y = y + v * occam::reshape(occam::slice(in[7], 2, head, 1), {b, t, 1});
      Tensor sum = occam::sum(weights, {2}, true);
      bool adds = merge && r == 1;
      num = adds ? num + y : y, den = adds ? den + sum : sum;
      if (merge && r == 0) continue;
      if (in[6]) {
        Tensor floor = occam::slice(occam::slice(in[6], 2, merge ? 0 : r, 1), 3, head, 1);
        floor = occam::reshape(floor, {b, t, 1});
        Tensor size = occam::relu(den) + occam::relu(den * -1.0);
        num = num / (floor + occam::relu(size - floor));
      }
      outputs.push_back(occam::reshape(num, {b, t, 1, 1, p}));
    }
    by_head.push_back(occam::concat(outputs, 3));
  }
  return {occam::concat(by_head, 2)};
}
}  // namespace

OP_SPEC(matrix_scan) {
  struct Sizes {
    int64_t b, t, g, h, n, p;
  };
  struct With {
    bool scale = false, skip = false, floor = false, merge = false, both = false;
    double least = -1;  // of log_decay
    bool diagonal = false, both_values = false;
  };
  auto inputs = [](const Shape& tokens, Sizes s, With w) -> std::vector<Input> {
    auto of = [&](std::initializer_list<int64_t> rest) {
      Shape shape = tokens;
      for (int64_t size : rest) shape.push_back(size);
      return shape;
    };
    const int64_t own = w.both ? 1 : 2;
    const Shape keys = of({own, s.g, s.n}), gates = of({2, s.h});
    // A denominator that is a sum of positive weights: its error is relative, and no kink is near.
    return {w.floor ? uniform(keys, 0.2, 1) : randn(keys, 1 / std::sqrt(double(s.n))),
            w.floor ? uniform(keys, 0.2, 1) : randn(keys),
            randn(of({w.both || w.both_values ? 1 : 2, s.h, s.p})),
            uniform(gates, w.least, 0),
            w.scale ? uniform(gates, 0.1, 1) : absent(),
            w.skip ? randn({2, s.h}) : absent(),
            w.floor ? uniform(of({w.merge ? 1 : 2, s.h}), 0.5, 3) : absent(),
            w.diagonal ? randn(of({s.h})) : absent()};
  };
  // A product over n, one over t, and the sum of up to t decays before its exp, whose error is absolute: of
  // size |sum|, where e^-x x <= 0.4 bounds what is left of it. A decay's gradient sums t^2 weights, each of
  // which is a dot product over p; the suite lengthens sums by outputs over inputs itself.
  // bf16: y is rounded; on tensor cores also the scores, the weights and, where heads share scores, values
  // times decays; on the way back scores and weights and the gradients of both (or, between windows, states
  // and what meets them). Those of scores are summed over a group's h / g heads, and rounded each time: after
  // i of m of them when their sum is sqrt(i / m) of all, together sqrt((m + 1) / 2) roundings. The gradients
  // of a normalised row's weights sum to 0, so that in gq only what k differs from its mean is left, 0.23
  // (the spread of uniform numbers in 0.2 .. 1) of terms of size 0.6: 2.6 times as many roundings.
  auto describe = [](Sample& sample, Sizes s, With w) -> Sample& {
    // Merged directions of their own: what one direction gives is rounded before the other is added.
    const double roundings = 3 + (w.merge && !w.both) + std::sqrt((double(s.h / s.g) + 1) / 2);
    return sample.sum_length(double(s.n + s.t + s.p)).half_roundings(w.floor ? roundings * 2.6 : roundings);
  };
  auto add = [&](const std::string& name, Sizes s, With w) -> Sample& {
    const bool merge = w.merge;
    Sample& sample = spec.sample(
        name, inputs({s.b, s.t}, s, w), [merge](const std::vector<Tensor>& in) { return call(in, merge); },
        [merge](const Arrays& in) { return naive(in, merge); });
    return describe(sample, s, w).same_as([merge](const std::vector<Tensor>& in) {
      return by_matrix(in, merge);
    });
  };
  // s.b and s.t are those of the sequences.
  auto add_ragged = [&](const std::string& name, Packed packed, Sizes s, With w) -> Sample& {
    const bool merge = w.merge;
    s.t = packed.longest;
    std::vector<Input> in = inputs({packed.n}, s, w);
    packed.tokens.clear();
    for (size_t i = 0; i < in.size(); ++i) {
      if (in[i].is_absent || i == 5) continue;
      packed.tokens.push_back(i), in[i] = packed.rows(in[i]);
    }
    in.push_back(packed.offsets());
    Sample& sample = spec.sample(
        name, in,
        [merge, packed](const std::vector<Tensor>& in) {
          return call(in, merge, packed.sequences(in.back()));
        },
        packed.naive([merge](const Arrays& in) { return naive(in, merge); }));
    return describe(sample, s, w);
  };
  add("1x1x1x1x1x1", {1, 1, 1, 1, 1, 1}, {}).small();
  add("2x5x1x2x3x4", {2, 5, 1, 2, 3, 4}, {.scale = true, .skip = true}).small();
  add("2x5x2x2x3x4-merged", {2, 5, 2, 2, 3, 4}, {.merge = true}).small();
  add("1x6x1x3x2x3-normed", {1, 6, 1, 3, 2, 3}, {.scale = true, .floor = true}).small();
  add("2x4x2x4x3x2-merged-normed", {2, 4, 2, 4, 3, 2}, {.floor = true, .merge = true}).small();
  // One chunk, just past it, two and a rest; strong decay, where only neighbours are left.
  add("1x16x1x1x16x16", {1, 16, 1, 1, 16, 16}, {.scale = true});
  add("1x65x1x2x8x8", {1, 65, 1, 2, 8, 8}, {.scale = true, .skip = true});
  add("1x70x2x2x16x20-merged", {1, 70, 2, 2, 16, 20}, {.merge = true, .least = -0.1});
  add("1x20x1x1x4x4-strong", {1, 20, 1, 1, 4, 4}, {.scale = true, .least = -40});
  auto large = [&](const char* name, Sizes s, With w) -> Sample& {
    Sample& sample = add(name, s, w);
    sample.composite = nullptr;  // its masks are t^3
    return sample;
  };
  // One direction's q, k and v expanded to two: a direction axis without a stride. Both directions' gradients
  // are rounded before they are added: sums over some 17 tokens of dot products of 64, each about 8.
  Sample& expanded = large("1x17x2x2x64x64-expanded", {1, 17, 2, 2, 64, 64}, {.both = true});
  expanded.cancelling_terms(0, 32);
  expanded.call = [two = expanded.call](const std::vector<Tensor>& in) {
    std::vector<Tensor> given = in;
    for (size_t i = 0; i < 3; ++i) given[i] = occam::expand(in[i], in[i].shape().with(2, 2));
    return two(given);
  };
  // On tensor cores: one window, odd and whole tiles, all of them; directions of their own and shared; two
  // windows.
  large("1x133x1x2x128x64", {1, 133, 1, 2, 128, 64}, {.scale = true, .skip = true});
  large("1x17x1x2x64x64", {1, 17, 1, 2, 64, 64}, {.skip = true});
  large("1x1x1x2x128x64", {1, 1, 1, 2, 128, 64}, {.scale = true, .skip = true});
  large("1x197x1x1x64x64-normed", {1, 197, 1, 1, 64, 64}, {.scale = true, .floor = true, .least = -0.2});
  large("1x33x2x2x64x64-both-normed", {1, 33, 2, 2, 64, 64}, {.scale = true, .floor = true, .both = true});
  large("1x50x1x1x64x64-both-strong", {1, 50, 1, 1, 64, 64}, {.scale = true, .both = true, .least = -40});
  large("1x208x1x1x64x64-both-merged", {1, 208, 1, 1, 64, 64}, {.merge = true, .both = true, .least = -0.05});
  large("1x212x1x1x64x64-both-merged-normed", {1, 212, 1, 1, 64, 64},
        {.floor = true, .merge = true, .both = true, .least = -0.1});
  // By warpgroups: 64 columns at a time and a tile of its own behind them, or not; on the way back, merged,
  // from 129 tokens on.
  large("1x66x1x1x64x64-both", {1, 66, 1, 1, 64, 64}, {.scale = true, .skip = true, .both = true});
  large("1x197x1x1x64x64-both-normed", {1, 197, 1, 1, 64, 64},
        {.scale = true, .floor = true, .both = true, .least = -0.2});
  large("1x197x1x1x64x64-both-merged-normed", {1, 197, 1, 1, 64, 64},
        {.scale = true, .floor = true, .merge = true, .both = true, .least = -0.2});
  large("1x140x2x2x64x64-both-merged", {1, 140, 2, 2, 64, 64},
        {.scale = true, .skip = true, .merge = true, .both = true});
  large("1x150x1x1x64x64-both-diagonal", {1, 150, 1, 1, 64, 64},
        {.scale = true, .merge = true, .both = true, .diagonal = true});
  large("1x212x1x1x128x64", {1, 212, 1, 1, 128, 64}, {.scale = true, .skip = true, .least = -0.02});
  // Two windows, the last short, and three; a group of as many heads as models have.
  large("1x353x2x2x64x64-both", {1, 353, 2, 2, 64, 64}, {.scale = true, .both = true, .least = -0.02});
  large("1x225x1x2x64x64-normed", {1, 225, 1, 2, 64, 64}, {.floor = true, .least = -0.05});
  large("1x40x1x6x128x64", {1, 40, 1, 6, 128, 64}, {.scale = true, .skip = true});
  large("1x18x1x12x128x64", {1, 18, 1, 12, 128, 64}, {.scale = true, .skip = true});
  // Quasiseparable: values for both directions, keys of their own (as a mixer has it) or not; a window of odd
  // and of all tiles, several of them, and sizes that are not on tensor cores.
  const With hydra{.scale = true, .merge = true, .least = -0.2, .diagonal = true, .both_values = true};
  add("1x1x1x2x3x4-diagonal", {1, 1, 1, 2, 3, 4}, hydra).small();
  add("2x5x1x2x3x4-diagonal", {2, 5, 1, 2, 3, 4}, hydra).small();
  add("1x5x2x2x3x4-diagonal-both", {1, 5, 2, 2, 3, 4}, {.merge = true, .both = true, .diagonal = true})
      .small();
  add("1x67x2x2x8x12-diagonal-own", {1, 67, 2, 2, 8, 12}, {.merge = true, .least = -0.1, .diagonal = true});
  large("1x1x1x2x128x64-diagonal", {1, 1, 1, 2, 128, 64}, hydra);
  large("1x197x1x2x128x64-diagonal", {1, 197, 1, 2, 128, 64}, hydra);
  large("2x33x1x3x64x64-diagonal", {2, 33, 1, 3, 64, 64}, hydra);
  large("1x353x1x2x64x64-diagonal", {1, 353, 1, 2, 64, 64}, hydra);
  large("1x40x2x2x64x64-diagonal-own", {1, 40, 2, 2, 64, 64}, {.merge = true, .diagonal = true});
  large("1x50x2x2x64x64-diagonal-both", {1, 50, 2, 2, 64, 64},
        {.scale = true, .merge = true, .both = true, .diagonal = true});
  large("1x40x1x2x128x64-merged", {1, 40, 1, 2, 128, 64}, {.skip = true, .merge = true});
  // The same widths, but merged and normed directions of their own: not on tensor cores.
  large("1x40x1x2x64x64-merged-normed", {1, 40, 1, 2, 64, 64}, {.floor = true, .merge = true, .least = -0.1});
  // Sequences in rows of one tensor.
  for (const auto& [name, packed] : packed_cases({})) {
    add_ragged(name, packed, {0, 0, 1, 2, 3, 2}, {.scale = true, .skip = true}).small();
    add_ragged(name + "-merged-normed", packed, {0, 0, 2, 2, 2, 3}, {.floor = true, .merge = true}).small();
  }
  add_ragged("ragged-chunks", {{70, 0, 64, 1}, 140, 75, {}}, {0, 0, 1, 2, 4, 4}, {.scale = true});
  add_ragged("ragged-128x64", {{20, 0, 1, 33}, 60, 40, {}}, {0, 0, 1, 2, 128, 64},
             {.scale = true, .skip = true});
  add_ragged("ragged-both-merged-normed", {{20, 0, 1, 33}, 60, 40, {}}, {0, 0, 2, 2, 64, 64},
             {.floor = true, .merge = true, .both = true, .least = -0.1});
  add_ragged("ragged-both-merged-long", {{150, 0, 1, 33}, 190, 160, {}}, {0, 0, 1, 1, 64, 64},
             {.scale = true, .floor = true, .merge = true, .both = true, .least = -0.1});
  add_ragged("ragged-windows-128x64", {{3, 230, 0, 120}, 360, 250, {}}, {0, 0, 1, 2, 128, 64},
             {.scale = true, .skip = true, .least = -0.02});
  add_ragged("ragged-windows-both", {{3, 230, 0, 120}, 360, 250, {}}, {0, 0, 1, 1, 64, 64},
             {.scale = true, .floor = true, .both = true, .least = -0.1});
  add_ragged("ragged-diagonal", packed_cases({}).front().second, {0, 0, 1, 2, 2, 3}, hydra).small();
  add_ragged("ragged-diagonal-128x64", {{20, 0, 1, 33}, 60, 40, {}}, {0, 0, 1, 2, 128, 64}, hydra);
  add_ragged("ragged-windows-diagonal", {{3, 230, 0, 120}, 360, 250, {}}, {0, 0, 1, 1, 64, 64}, hydra);
  large("no-images", {0, 4, 1, 2, 3, 2}, {.scale = true, .skip = true});
  large("no-tokens", {2, 0, 1, 2, 3, 2}, {.floor = true});
  auto bad = [](Shape keys, Shape values, bool skip, Shape floor) {
    return [=] {
      Shape gates{values[0], values[1], 2, values[3]};
      occam::MatrixScanOptions options;
      if (skip) options.skip = occam::zeros({2, values[3]});
      if (floor.rank() > 0) options.floor = occam::ones(floor);
      occam::matrix_scan(occam::zeros(keys), occam::zeros(keys), occam::zeros(values), occam::zeros(gates),
                         options);
    };
  };
  spec.bad("groups", bad({1, 2, 2, 2, 4}, {1, 2, 2, 3, 4}, false, {}),
           "matrix_scan: 3 heads of width 4 cannot share 2 groups of width 4");
  spec.bad("directions", bad({1, 2, 3, 1, 4}, {1, 2, 3, 1, 4}, false, {}),
           "matrix_scan: v [1,2,3,1,4] has 3 directions");
  spec.bad("directions-of-q", bad({1, 2, 3, 1, 4}, {1, 2, 2, 1, 4}, false, {}),
           "matrix_scan: q [1,2,3,1,4] has 3 directions");
  spec.bad(
      "diagonal",
      [] {
        const Tensor keys = occam::zeros({1, 2, 2, 1, 4});
        occam::matrix_scan(keys, keys, keys, occam::zeros({1, 2, 2, 1}),
                           {.diagonal = occam::zeros({1, 2, 1})});
      },
      "matrix_scan: a diagonal is one of merged directions, without skip and floor");
  spec.bad("floor", bad({1, 2, 2, 1, 4}, {1, 2, 2, 1, 4}, false, {1, 2, 1, 1}),
           "matrix_scan: floor [1,2,1,1] has 1 outputs where there are 2");
  spec.bad("skip", bad({1, 2, 2, 1, 4}, {1, 2, 2, 1, 4}, true, {1, 2, 2, 1}),
           "matrix_scan: a skip connection goes round no normaliser");
}
