#include "ops/layer_norm/op.h"

#include <cmath>

#include "ops/spec.h"

namespace {
using namespace occam::spec;
using occam::Shape;
using occam::Tensor;

Arrays naive(const Arrays& in, double eps) {
  Array y = in[0];
  int64_t c = y.size(-1);
  for (size_t row = 0; row < y.v.size(); row += size_t(c)) {
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < c; ++i) mean += y.v[row + size_t(i)] / double(c);
    for (int64_t i = 0; i < c; ++i) variance += std::pow(y.v[row + size_t(i)] - mean, 2) / double(c);
    for (int64_t i = 0; i < c; ++i)
      y.v[row + size_t(i)] = (y.v[row + size_t(i)] - mean) / std::sqrt(variance + eps) * in[1](i) + in[2](i);
  }
  return {y};
}
}  // namespace

OP_SPEC(layer_norm) {
  auto add = [&](const char* name, Input x, double eps) -> Sample& {
    int64_t c = x.shape[-1];
    return spec
        .sample(
            name, {x, randn({c}, 0.5, 1), randn({c})},
            [eps](const std::vector<Tensor>& in) {
              return std::vector{occam::layer_norm(in[0], in[1], in[2], eps)};
            },
            [eps](const Arrays& in) { return naive(in, eps); })
        .sum_length(double(c))
        .cancelling_terms(1, 2);
  };
  add("3x7", randn({3, 7}), 1e-6).small();
  add("2x3x16", randn({2, 3, 16}), 1e-5).small();
  add("5x192", outliers({5, 192}), 1e-6);
  add("300x33", randn({300, 33}), 1e-6);
  // The mean is 30 times the spread: subtracting it costs that much precision.
  add("4x65-offset", randn({4, 65}, 1, 30), 1e-6).conditioned(30);
  add("2x1025", randn({2, 1025}), 1e-6);
  // One element: the variance is 0 and only the bias is left.
  add("3x1", randn({3, 1}), 1e-2);
  add("empty-batch", randn({0, 8}), 1e-6);
  spec.bad(
      "sizes",
      [] {
        occam::layer_norm(occam::zeros({2, 3}), occam::zeros({4}), occam::zeros({4}));
      },
      "layer_norm: axis `c` is 3 in x [2,3] but 4 in weight [4]");
  spec.bad(
      "empty",
      [] {
        occam::layer_norm(occam::zeros({2, 0}), occam::zeros({0}), occam::zeros({0}));
      },
      "layer_norm: axis `c` of x [2,0] is empty");
}
