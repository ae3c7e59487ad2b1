#include "ops/linear/op.h"

#include <cmath>

#include "ops/activation/op.h"
#include "ops/spec.h"

namespace {
using namespace occam::spec;
using occam::LinearActivation;
using occam::Shape;
using occam::Tensor;

Arrays naive(const Arrays& in, bool gelu) {
  const Array &x = in[0], &w = in[1];
  int64_t k = w.size(1), n = w.size(0), rows = k ? int64_t(x.v.size()) / k : 0;
  Array y(x.shape.with(-1, n));
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t o = 0; o < n; ++o) {
      double sum = in[2].absent() ? 0 : in[2](o);
      for (int64_t i = 0; i < k; ++i) sum += x.v[size_t(r * k + i)] * w(o, i);
      y.v[size_t(r * n + o)] = gelu ? 0.5 * sum * (1 + std::erf(sum / std::sqrt(2.0))) : sum;
    }
  return {y};
}
}  // namespace

OP_SPEC(linear) {
  auto add = [&](const char* name, Shape x, int64_t o, bool bias, bool gelu) -> Sample& {
    int64_t i = x[-1];
    auto activation = gelu ? LinearActivation::gelu : LinearActivation::none;
    Sample& s = spec.sample(
        name, {randn(x), randn({o, i}, 1 / std::sqrt(double(i))), bias ? randn({o}) : absent()},
        [activation](const std::vector<Tensor>& in) {
          return std::vector{occam::linear(in[0], in[1], in[2], activation)};
        },
        [gelu](const Arrays& in) { return naive(in, gelu); });
    s.sum_length(double(i)).cancelling_terms(1, 1);
    if (gelu) {
      s.same_as([](const std::vector<Tensor>& in) {
        return std::vector{occam::gelu(occam::linear(in[0], in[1], in[2]))};
      });
      s.half_roundings(6);  // the sum, the activation, and in backward the product of both
    }
    return s;
  };
  add("1x1", {1, 1}, 1, true, false).small();
  add("3x5-7", {3, 5}, 7, true, false).small();
  add("3x5-7-no-bias", {3, 5}, 7, false, false);
  add("2x3x8-16-gelu", {2, 3, 8}, 16, true, true).small();
  add("3x5-7-gelu-no-bias", {3, 5}, 7, false, true);
  add("65x192-65", {65, 192}, 65, true, false);
  add("2x17x33-9-gelu", {2, 17, 33}, 9, true, true);
  add("empty-batch", {0, 5}, 7, true, false);
  add("vector", {6}, 4, true, false);
  spec.bad(
      "axes",
      [] {
        occam::linear(occam::zeros({8, 197, 192}), occam::zeros({576, 384}));
      },
      "linear: axis `i` is 192 in x [8,197,192] but 384 in w [576,384]\n  contract  x: ... i, w: o i, b?: o "
      "-> ... o\n"
      "  hint      weights are stored (out, in)");
  spec.bad(
      "bias",
      [] {
        occam::linear(occam::zeros({2, 3}), occam::zeros({4, 3}), occam::zeros({3}));
      },
      "axis `o` is 4 in w [4,3] but 3 in b [3]");
}
