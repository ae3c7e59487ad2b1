#include "ops/attention/op.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "ops/elementwise/op.h"
#include "ops/reduce/op.h"
#include "ops/slice/op.h"
#include "ops/softmax/op.h"
#include "ops/spec.h"
#include "ops/view/op.h"

namespace {
using namespace occam::spec;
using occam::Shape;
using occam::Tensor;

Arrays naive(const Arrays& in, double scale) {
  const Array &qkv = in[0], &mask = in[1];
  int64_t b = qkv.size(0), t = qkv.size(1), h = qkv.size(3), d = qkv.size(4);
  Array y({b, t, h, d});
  auto row = [&](int64_t n, int64_t token, int64_t part, int64_t head) {
    return qkv.v.data() + (((n * t + token) * 3 + part) * h + head) * d;
  };
  for (int64_t n = 0; n < b; ++n)
    for (int64_t head = 0; head < h; ++head)
      for (int64_t i = 0; i < t; ++i) {
        std::vector<double> p(size_t(t), -INFINITY);
        const double* q = row(n, i, 0, head);
        double* out = y.v.data() + ((n * t + i) * h + head) * d;
        double largest = -INFINITY, sum = 0;
        for (int64_t j = 0; j < t; ++j) {
          if (!mask.absent() && mask(n, j) == 0) continue;
          double score = 0;
          for (int64_t c = 0; c < d; ++c) score += q[c] * row(n, j, 1, head)[c];
          p[size_t(j)] = scale * score;
          largest = std::max(largest, p[size_t(j)]);
        }
        if (largest == -INFINITY) continue;
        for (double& x : p) sum += x = std::exp(x - largest);
        for (int64_t j = 0; j < t; ++j)
          for (int64_t c = 0; c < d; ++c) out[c] += p[size_t(j)] / sum * row(n, j, 2, head)[c];
      }
  return {y};
}

/// softmax(scale q k^T) v of plain ops; without a mask.
Tensor composite(const Tensor& qkv, double scale) {
  int64_t b = qkv.size(0), t = qkv.size(1), h = qkv.size(3), d = qkv.size(4);
  auto part = [&](int64_t which, bool as_keys) {
    Tensor x = occam::reshape(occam::slice(qkv, 2, which, 1), {b, t, h, d});
    x = occam::transpose(x, 1, 2);
    return occam::reshape(x, as_keys ? Shape{b, h, 1, t, d} : Shape{b, h, t, 1, d});
  };
  Tensor a = occam::softmax(occam::mul_scalar(occam::sum(part(0, false) * part(1, true), {4}), scale), -1);
  Tensor y = occam::sum(occam::reshape(a, {b, h, t, t, 1}) * part(2, true), {3});
  return occam::transpose(y, 1, 2);
}

/// Keys are attended to with probability 2/3; the last image of the batch attends to none.
Input random_mask(int64_t b, int64_t t) {
  Input mask = bools({b, t}, 0);
  mask.dtype = occam::DType::u8;
  mask.value = [=](int64_t index, occam::Rng& rng) {
    bool attend = rng.bernoulli(2.0 / 3);
    return index / t == b - 1 ? 0.0 : double(attend);
  };
  return mask;
}
}  // namespace

OP_SPEC(attention) {
  auto add = [&](const char* name, Input qkv, Input mask = absent(), double scale = 0) -> Sample& {
    int64_t t = qkv.shape[1], d = qkv.shape[4];
    double s = scale != 0 ? scale : 1 / std::sqrt(double(d));
    std::optional<double> given = scale != 0 ? std::optional(scale) : std::nullopt;
    // A score sums d products, an output t; scores reach 4, which exp turns into as many relative errors.
    // Outputs are averages of values of size 1. In a gradient p (dp - delta) cancels, each of size 1 after
    // the scale. In bf16 the probabilities (and in backward their gradients) and the result are rounded.
    return spec
        .sample(
            name, {qkv, mask},
            [given](const std::vector<Tensor>& in) {
              return std::vector{occam::attention(in[0], in[1], given)};
            },
            [s](const Arrays& in) { return naive(in, s); })
        .sum_length(double(t + d))
        .conditioned(4)
        .cancelling_terms(1, 2)
        .half_roundings(2);
  };
  auto plain = [](double scale) {
    return [scale](const std::vector<Tensor>& in) { return std::vector{composite(in[0], scale)}; };
  };
  auto qkv = [](int64_t b, int64_t t, int64_t h, int64_t d) { return randn({b, t, 3, h, d}); };

  add("1x1x1x1", qkv(1, 1, 1, 1)).small();
  add("2x5x2x3", qkv(2, 5, 2, 3), absent(), 0.4).small().same_as(plain(0.4));
  add("2x6x2x4-masked", qkv(2, 6, 2, 4), random_mask(2, 6)).small();
  add("2x17x3x8", qkv(2, 17, 3, 8)).small().same_as(plain(1 / std::sqrt(8.0)));
  // Every kernel (32, 64, 128 and the general one), lengths below, at and just past its tiles. d = 64 has its
  // own on Hopper: rows of at most 64, 80, 144 and 208 tokens, and longer ones; blocks for parts of a head
  // when there are few, and several heads for a block when there are many.
  add("1x33x2x32", qkv(1, 33, 2, 32)).small().same_as(plain(1 / std::sqrt(32.0)));
  add("2x65x1x64-masked", qkv(2, 65, 1, 64), random_mask(2, 65)).small();
  add("1x64x1x64", qkv(1, 64, 1, 64));
  add("3x50x1x64", qkv(3, 50, 1, 64));
  add("2x129x1x128", qkv(2, 129, 1, 128), random_mask(2, 129));
  add("1x128x1x32", qkv(1, 128, 1, 32));
  add("1x80x3x64-masked", qkv(1, 80, 3, 64), random_mask(1, 80));
  add("1x81x1x64", qkv(1, 81, 1, 64));
  add("2x130x2x64-masked", qkv(2, 130, 2, 64), random_mask(2, 130));
  add("1x145x1x64", qkv(1, 145, 1, 64));
  add("40x145x1x64", qkv(40, 145, 1, 64));
  add("1x197x2x64", qkv(1, 197, 2, 64));
  add("2x197x1x64-masked", qkv(2, 197, 1, 64), random_mask(2, 197));
  add("1x208x1x64", qkv(1, 208, 1, 64));
  add("1x209x1x64", qkv(1, 209, 1, 64));
  add("2x300x1x64-masked", qkv(2, 300, 1, 64), random_mask(2, 300));
  add("300x3x2x64", qkv(300, 3, 2, 64));
  add("1x70x2x20", qkv(1, 70, 2, 20));
  add("1x66x1x80", qkv(1, 66, 1, 80));
  add("2x130x1x7-masked", qkv(2, 130, 1, 7), random_mask(2, 130));
  add("1x401x1x16", qkv(1, 401, 1, 16));
  // Scores reach 50: rows with nearly all their weight on one key.
  add("1x40x2x32-outliers", outliers({1, 40, 3, 2, 32}, 4)).conditioned(64).cancelling_terms(4, 64);
  add("1x150x1x64-outliers", outliers({1, 150, 3, 1, 64}, 4)).conditioned(64).cancelling_terms(4, 64);
  add("no-images", qkv(0, 5, 2, 8));
  add("no-tokens", qkv(2, 0, 2, 8));
  spec.bad(
      "axes",
      [] {
        occam::attention(occam::zeros({2, 5, 6, 8}));
      },
      "attention: qkv [2,5,6,8]");
  spec.bad(
      "parts",
      [] {
        occam::attention(occam::zeros({2, 5, 2, 1, 8}));
      },
      "qkv [2,5,2,1,8]");
  spec.bad(
      "head-size",
      [] {
        occam::attention(occam::zeros({2, 5, 3, 1, 0}));
      },
      "attention: axis `d` of qkv [2,5,3,1,0] is empty");
  spec.bad(
      "mask-length",
      [] {
        occam::attention(occam::zeros({2, 5, 3, 1, 8}), occam::zeros({2, 4}, {occam::DType::u8}));
      },
      "attention: axis `t` is 5 in qkv [2,5,3,1,8] but 4 in key_mask [2,4]");
  spec.bad(
      "mask-dtype",
      [] {
        occam::attention(occam::zeros({2, 5, 3, 1, 8}), occam::zeros({2, 5}));
      },
      "attention: key_mask is f32, where u8 or bool is needed");
}
