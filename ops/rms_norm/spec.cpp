#include "ops/rms_norm/op.h"

#include <cmath>

#include "ops/activation/op.h"
#include "ops/elementwise/op.h"
#include "ops/reduce/op.h"
#include "ops/spec.h"
#include "ops/view/op.h"

namespace {
using namespace occam::spec;
using occam::Tensor;

Arrays naive(const Arrays& in, double eps) {
  Array y = in[0];
  for (int64_t b = 0; b < y.size(0); ++b)
    for (int64_t t = 0; t < y.size(1); ++t)
      for (int64_t r = 0; r < y.size(3); ++r) {
        double squares = 0;
        for (int64_t a = 0; a < y.size(2); ++a)
          for (int64_t c = 0; c < y.size(4); ++c) {
            double& u = y(b, t, a, r, c);
            if (!in[2].absent()) u *= in[2](b, t, r, a, c) / (1 + std::exp(-in[2](b, t, r, a, c)));
            squares += u * u / double(y.size(2) * y.size(4));
          }
        for (int64_t a = 0; a < y.size(2); ++a)
          for (int64_t c = 0; c < y.size(4); ++c)
            y(b, t, a, r, c) *= in[1](r, a, c) / std::sqrt(squares + eps);
      }
  return {y};
}

/// 1 / sqrt by exp and log.
std::vector<Tensor> by_ops(const std::vector<Tensor>& in, double eps) {
  const Tensor& x = in[0];
  Tensor u = in[2] ? x * occam::silu(occam::permute(in[2], {0, 1, 3, 2, 4})) : x;
  Tensor mean = occam::add_scalar(occam::mean(u * u, {2, 4}, true), eps);
  Tensor weight = occam::reshape(occam::permute(in[1], {1, 0, 2}), {1, 1, x.size(2), x.size(3), x.size(4)});
  return {u * occam::exp(occam::log(mean) * -0.5) * weight};
}
}  // namespace

OP_SPEC(rms_norm) {
  auto add = [&](const char* name, Input x, bool gated, double eps) -> Sample& {
    occam::Shape s = x.shape;
    return spec
        .sample(
            name,
            {x, randn({s[3], s[2], s[4]}, 0.5, 1), gated ? randn({s[0], s[1], s[3], s[2], s[4]}) : absent()},
            [eps](const std::vector<Tensor>& in) {
              return std::vector{occam::rms_norm(in[0], in[1], in[2], eps)};
            },
            [eps](const Arrays& in) { return naive(in, eps); })
        .sum_length(double(s[2] * s[4]))
        // A row of gx is gy w less its projection on u, both over the rms: about as large as each other.
        .cancelling_terms(0, 2)
        .half_roundings(1.01)  // what is stored; everything before it is f32
        .same_as([eps](const std::vector<Tensor>& in) { return by_ops(in, eps); });
  };
  add("2x3x2x2x3-gated", randn({2, 3, 2, 2, 3}), true, 1e-5).small();
  add("2x2x1x3x4", randn({2, 2, 1, 3, 4}), false, 1e-6).small();
  add("1x1x1x1x1", randn({1, 1, 1, 1, 1}), true, 1e-2).small();
  add("2x5x3x2x64-gated", outliers({2, 5, 3, 2, 64}), true, 1e-5);
  add("3x90x2x1x20-gated", randn({3, 90, 2, 1, 20}), true, 1e-5);
  add("1x7x1x5x33", outliers({1, 7, 1, 5, 33}), false, 1e-5);
  add("no-tokens", randn({2, 0, 2, 2, 3}), true, 1e-5);
  spec.bad(
      "empty",
      [] {
        occam::rms_norm(occam::zeros({1, 2, 3, 1, 0}), occam::zeros({1, 3, 0}));
      },
      "rms_norm: weight [1,3,0] is empty");
  spec.bad(
      "width",
      [] {
        occam::rms_norm(occam::zeros({1, 2, 3, 1, 4}), occam::zeros({1, 3, 5}));
      },
      "rms_norm: axis `c` is 4");
}
