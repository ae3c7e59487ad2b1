#include "ops/short_conv/op.h"

#include <cmath>

#include "ops/activation/op.h"
#include "ops/concat/op.h"
#include "ops/elementwise/op.h"
#include "ops/ragged_spec.h"
#include "ops/slice/op.h"
#include "ops/view/op.h"

namespace {
using namespace occam::spec;
using occam::Tensor;

Arrays naive(const Arrays& in) {
  const Array &x = in[0], &w = in[1], &bias = in[2];
  Array y(x.shape);
  int64_t t = x.size(1), k = w.size(2), ahead = x.size(2) == 1 ? k / 2 : 0;
  for (int64_t b = 0; b < x.size(0); ++b)
    for (int64_t token = 0; token < t; ++token)
      for (int64_t r = 0; r < x.size(2); ++r)
        for (int64_t c = 0; c < x.size(3); ++c) {
          double sum = bias(r, c);
          for (int64_t i = 0; i < k; ++i) {
            int64_t from = r == 0 ? token - (k - 1) + i + ahead : token + (k - 1) - i;
            if (from >= 0 && from < t) sum += w(r, c, i) * x(b, from, r, c);
          }
          y(b, token, r, c) = sum / (1 + std::exp(-sum));
        }
  return {y};
}

/// Sums of shifted copies.
std::vector<Tensor> by_shifts(const std::vector<Tensor>& in) {
  const Tensor &x = in[0], &w = in[1];
  int64_t b = x.size(0), t = x.size(1), c = x.size(3), k = w.size(2);
  std::vector<Tensor> directions;
  for (int64_t r = 0; r < x.size(2); ++r) {
    Tensor of = occam::slice(x, 2, r, 1), none = occam::zeros({b, k - 1, 1, c}, occam::options_of(x));
    if (x.size(2) == 1) {  // some of the zeros behind instead
      none = occam::zeros({b, k - 1 - k / 2, 1, c}, occam::options_of(x));
      if (k / 2 > 0) of = occam::concat({of, occam::zeros({b, k / 2, 1, c}, occam::options_of(x))}, 1);
    }
    Tensor padded = k == 1 || none.size(1) == 0 ? of
                    : r == 0                    ? occam::concat({none, of}, 1)
                                                : occam::concat({of, none}, 1);
    Tensor sum = occam::reshape(occam::slice(in[2], 0, r, 1), {1, 1, 1, c});
    for (int64_t i = 0; i < k; ++i) {
      Tensor tap = occam::reshape(occam::slice(occam::slice(w, 0, r, 1), 2, i, 1), {1, 1, 1, c});
      sum = sum + tap * occam::slice(padded, 1, r == 0 ? i : k - 1 - i, t);
    }
    directions.push_back(occam::silu(sum));
  }
  return {occam::concat(directions, 2)};
}
}  // namespace

OP_SPEC(short_conv) {
  auto bound = [](Sample& sample, int64_t k, int64_t rows) -> Sample& {
    // A gradient of w sums a product a row; its terms are of size 1 and cancel.
    return sample.sum_length(double(k + rows))
        .cancelling_terms(1, 1)
        .half_roundings(1.01);  // what is stored; everything before it is f32
  };
  auto add = [&](const char* name, int64_t b, int64_t t, int64_t c, int64_t k, int64_t r = 2) -> Sample& {
    Sample& sample = spec.sample(
        name, {randn({b, t, r, c}), randn({r, c, k}, 0.5), randn({r, c})},
        [](const std::vector<Tensor>& in) { return std::vector{occam::short_conv(in[0], in[1], in[2])}; },
        naive);
    return bound(sample, k, b * t).same_as(by_shifts);
  };
  add("2x5x3x4", 2, 5, 3, 4).small();
  add("1x1x1x1", 1, 1, 1, 1).small();
  add("1x2x4x4-shorter-than-the-kernel", 1, 2, 4, 4).small();
  add("2x9x6x7", 2, 9, 6, 7).small();
  // Several stretches with halos between them, an odd number of channels, more channels than a block's.
  add("3x70x5x4", 3, 70, 5, 4);
  add("1x40x300x3", 1, 40, 300, 3);
  add("1x35x2x8", 1, 35, 2, 8);
  // Round the token: shorter than what is ahead, one and two taps, several ranges.
  add("2x5x3x4-round", 2, 5, 3, 4, 1).small();
  add("1x2x4x7-round", 1, 2, 4, 7, 1).small();
  add("2x3x2x1-round", 2, 3, 2, 1, 1).small();
  add("1x4x2x2-round", 1, 4, 2, 2, 1).small();
  add("3x70x6x7-round", 3, 70, 6, 7, 1);
  add("1x35x5x8-round", 1, 35, 5, 8, 1);
  add("1x40x300x3-round", 1, 40, 300, 3, 1);
  // What is behind a column of something else: the cotangent is a view that begins at an odd element.
  spec.sample(
          "2x20x8x4-behind",
          {randn({2, 20, 2, 8}), randn({2, 8, 4}, 0.5), randn({2, 8}), randn({2, 20, 2, 1})},
          [](const std::vector<Tensor>& in) {
            return std::vector{occam::concat({in[3], occam::short_conv(in[0], in[1], in[2])}, 3)};
          },
          [=](const Arrays& in) -> Arrays {
            const Array y = naive({in[0], in[1], in[2]})[0];
            Array all({2, 20, 2, 9});
            for (int64_t i = 0; i < 80; ++i)
              for (int64_t j = 0; j < 9; ++j)
                all.v[size_t(9 * i + j)] = j == 0 ? in[3].v[size_t(i)] : y.v[size_t(8 * i + j - 1)];
            return {all};
          })
      .sum_length(44)
      .cancelling_terms(1, 1)
      .half_roundings(1.01);
  std::vector<std::pair<std::string, Packed>> cases = packed_cases({0});
  // Ranges that begin inside sequences, and end with several of them.
  cases.push_back({"ragged-long", {{40, 1, 0, 3, 2, 70, 0, 17}, 140, 80, {0}}});
  for (const auto& [name, p] : cases)
    for (int64_t c : {4, 5}) {
      Sample& sample = spec.sample(
          name + "-" + std::to_string(c),
          {p.rows(randn({p.n, 2, c})), randn({2, c, c}, 0.5), randn({2, c}), p.offsets()},
          [p = p](const std::vector<Tensor>& in) {
            return std::vector{occam::short_conv(in[0], in[1], in[2], p.sequences(in[3]))};
          },
          p.naive(naive));
      bound(sample, c, p.n);
      if (p.n <= 12) sample.small();
      if (p.used() > 0) sample.same_as(p.alone(by_shifts));
    }
  for (const auto& [name, p] : cases) {
    Sample& sample = spec.sample(
        name + "-round", {p.rows(randn({p.n, 1, 4})), randn({1, 4, 7}, 0.5), randn({1, 4}), p.offsets()},
        [p = p](const std::vector<Tensor>& in) {
          return std::vector{occam::short_conv(in[0], in[1], in[2], p.sequences(in[3]))};
        },
        p.naive(naive));
    bound(sample, 7, p.n);
    if (p.n <= 12) sample.small();
  }
  Sample& none = add("no-tokens", 2, 0, 3, 4);
  none.composite = nullptr;
  spec.bad(
      "taps",
      [] {
        occam::short_conv(occam::zeros({1, 2, 2, 3}), occam::zeros({2, 3, 9}), occam::zeros({2, 3}));
      },
      "short_conv: w [2,3,9] has 9 taps, where 1 to 8 are supported");
  spec.bad(
      "directions",
      [] {
        occam::short_conv(occam::zeros({1, 2, 3, 3}), occam::zeros({3, 3, 4}), occam::zeros({3, 3}));
      },
      "short_conv: x [1,2,3,3] has 3 directions");
  spec.bad(
      "channels",
      [] {
        occam::short_conv(occam::zeros({1, 2, 2, 3}), occam::zeros({2, 4, 3}), occam::zeros({2, 4}));
      },
      "short_conv: axis `c` is 3");
}
