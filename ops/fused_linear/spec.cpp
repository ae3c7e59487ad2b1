#include "ops/fused_linear/op.h"

#include <cmath>

#include "core/grad_mode.h"
#include "ops/activation/op.h"
#include "ops/elementwise/op.h"
#include "ops/layer_norm/op.h"
#include "ops/spec.h"

namespace {
using namespace occam::spec;
using occam::LinearActivation;
using occam::Tensor;

constexpr double kEps = 1e-6;

Array naive(const Arrays& in, bool gelu) {
  const Array &x = in[0], &w = in[1];
  const int64_t k = w.size(1), n = w.size(0), rows = int64_t(x.v.size()) / k;
  Array y(x.shape.with(-1, n));
  for (int64_t r = 0; r < rows; ++r) {
    std::vector<double> row(x.v.begin() + r * k, x.v.begin() + (r + 1) * k);
    if (!in[3].absent()) {
      double mean = 0, variance = 0;
      for (double v : row) mean += v / double(k);
      for (double v : row) variance += (v - mean) * (v - mean) / double(k);
      for (int64_t i = 0; i < k; ++i)
        row[size_t(i)] = (row[size_t(i)] - mean) / std::sqrt(variance + kEps) * in[3](i) + in[4](i);
    }
    for (int64_t o = 0; o < n; ++o) {
      double sum = in[2].absent() ? 0 : in[2](o);
      for (int64_t i = 0; i < k; ++i) sum += row[size_t(i)] * w(o, i);
      if (gelu) sum = 0.5 * sum * (1 + std::erf(sum / std::sqrt(2.0)));
      y.v[size_t(r * n + o)] = sum + (in[5].absent() ? 0 : in[5].v[size_t(r * n + o)]);
    }
  }
  return y;
}

struct Parts {
  bool bias = true, norm = false, residual = false, gelu = false;
};
}  // namespace

OP_SPEC(fused_linear) {
  auto add = [&](const char* name, int64_t rows, int64_t i, int64_t o, Parts parts) -> Sample& {
    const auto activation = parts.gelu ? LinearActivation::gelu : LinearActivation::none;
    auto surroundings = [activation](const std::vector<Tensor>& in) {
      return occam::LinearSurroundings{in[3], in[4], kEps, activation, in[5]};
    };
    Sample& s = spec.sample(
        name,
        {parts.norm ? randn({1, rows, i}, 1, 2) : randn({1, rows, i}),
         randn({o, i}, 1 / std::sqrt(double(i))), parts.bias ? randn({o}) : absent(),
         parts.norm ? randn({i}, 0.3, 1) : absent(), parts.norm ? randn({i}, 0.5) : absent(),
         parts.residual ? randn({1, rows, o}) : absent()},
        [surroundings](const std::vector<Tensor>& in) {
          return std::vector{occam::fused_linear(in[0], in[1], in[2], surroundings(in))};
        },
        [gelu = parts.gelu](const Arrays& in) -> Arrays { return {naive(in, gelu)}; });
    s.same_as([activation](const std::vector<Tensor>& in) {
      Tensor x = in[3] ? occam::layer_norm(in[0], in[3], in[4], kEps) : in[0];
      Tensor y = occam::linear(x, in[1], in[2]);
      if (activation == LinearActivation::gelu) y = occam::gelu(y);
      return std::vector{in[5] ? occam::add(y, in[5]) : y};
    });
    // Sums of i terms of size 1 in all; a norm's mean is twice the deviation. Roundings: normalised rows, z,
    // y. Recorded, the parts round between each other: a gradient of w adds up `rows` products of size 1 of a
    // rounded factor, whose errors grow with the root as the sum does, and reach some deviations in some
    // element.
    const double terms = 2 + 2 * std::sqrt(double(rows));
    return s.sum_length(double(i))
        .cancelling_terms(2, terms)
        .conditioned(parts.norm ? 4 : 1)
        .half_roundings(8);
  };
  add("1x8-8", 1, 8, 8, {.norm = true, .residual = true, .gelu = true}).small();
  add("3x5-7", 3, 5, 7, {.norm = true, .residual = true}).small();
  add("3x8-16-plain", 3, 8, 16, {}).small();
  add("3x8-16-no-bias", 3, 8, 16, {.bias = false, .norm = true});
  add("17x72-136-norm", 17, 72, 136, {.norm = true});
  add("33x64-72-all", 33, 64, 72, {.norm = true, .residual = true, .gelu = true});
  add("33x136-64-gelu", 33, 136, 64, {.bias = false, .gelu = true});
  add("65x200-72-residual", 65, 200, 72, {.residual = true});
  add("5x1040-16-residual", 5, 1040, 16, {.residual = true});
  add("5x1032-16-norm", 5, 1032, 16, {.norm = true});
  add("empty-batch", 0, 8, 16, {.norm = true, .residual = true});
  spec.bad(
      "axes",
      [] {
        occam::NoGrad no_grad;
        occam::fused_linear(occam::zeros({8, 5}), occam::zeros({3, 4}), {}, {});
      },
      "fused_linear: axis `i` is 5 in x [8,5] but 4 in w [3,4]");
  spec.bad(
      "residual",
      [] {
        occam::NoGrad no_grad;
        occam::fused_linear(occam::zeros({8, 5}), occam::zeros({3, 5}), {},
                            {.residual = occam::zeros({8, 4})});
      },
      "fused_linear");
  spec.bad(
      "norm",
      [] {
        occam::fused_linear(occam::zeros({8, 5}), occam::zeros({3, 5}), {},
                            {.norm_weight = occam::zeros({5})});
      },
      "a norm has a weight and a bias");
}
