#include "ops/layer_norm/op.h"

#include <cmath>

#include "core/philox.h"
#include "ops/dropout/op.h"
#include "ops/elementwise/op.h"
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

constexpr uint64_t kKey = 1234;
constexpr int64_t kStep = 7;

/// in: x, branch, weight, bias; samples (axis 0) of the branch dropped with probability p.
Arrays naive_add(const Arrays& in, double eps, double p) {
  Array sum = in[0];
  const size_t each = sum.v.size() / size_t(std::max<int64_t>(sum.size(0), 1));
  for (size_t i = 0; i < sum.v.size(); ++i) {
    bool kept = p == 0 || occam::philox_uniform(kKey, uint64_t(kStep), uint64_t(i / each)) >= float(p);
    sum.v[i] += kept ? in[1].v[i] / (1 - p) : 0;
  }
  return {sum, naive({sum, in[2], in[3]}, eps)[0]};
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
  // Rows of one pack a lane, of up to three, and of more than a warp takes.
  add("70x256", randn({70, 256}), 1e-6);
  add("9x768", outliers({9, 768}), 1e-6);
  add("3x1024", randn({3, 1024}), 1e-6);
  add("2x2048", randn({2, 2048}), 1e-6);

  auto add_residual = [&](const char* name, Input x, double p) -> Sample& {
    int64_t c = x.shape[-1];
    Input branch = randn(x.shape);
    return spec
        .sample(
            name, {x, branch, randn({c}, 0.5, 1), randn({c})},
            [p](const std::vector<Tensor>& in) {
              occam::BranchDrop drop;
              if (p > 0) {
                drop = {p, kKey, occam::full({1}, double(kStep), {occam::DType::i64, in[0].device()})};
              }
              auto [sum, y] = occam::add_layer_norm(in[0], in[1], in[2], in[3], 1e-6, drop);
              return std::vector{sum, y};
            },
            [p](const Arrays& in) { return naive_add(in, 1e-6, p); })
        .sum_length(double(c))
        .cancelling_terms(1, 3);
  };
  auto plain = [](const std::vector<Tensor>& in) {
    Tensor sum = occam::add(in[0], in[1]);
    return std::vector{sum, occam::layer_norm(sum, in[2], in[3], 1e-6)};
  };
  add_residual("add-3x7", randn({3, 7}), 0).same_as(plain).small();
  add_residual("add-2x3x16", randn({2, 3, 16}), 0).same_as(plain).small();
  add_residual("add-70x256", randn({70, 256}), 0).same_as(plain);
  add_residual("add-9x768", outliers({9, 768}), 0);
  add_residual("add-2x1025", randn({2, 1025}), 0);
  add_residual("add-drop-6x3x16", randn({6, 3, 16}), 0.4).small();
  add_residual("add-drop-6x3x5", randn({6, 3, 5}), 0.4).small();
  add_residual("add-empty", randn({0, 3, 8}), 0.4);
  spec.bad(
      "drop",
      [] {
        occam::Tensor x = occam::zeros({2, 3}), w = occam::zeros({3});
        occam::add_layer_norm(x, x, w, w, 1e-6, {1.5});
      },
      "drop.p is 1.5");
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
