#include "ops/mlp/op.h"

#include <cmath>

#include "ops/linear/op.h"
#include "ops/spec.h"

namespace {
using namespace occam::spec;
using occam::LinearActivation;
using occam::Shape;
using occam::Tensor;

Array layer(const Array& x, const Array& w, const Array& b, bool gelu) {
  int64_t k = w.size(1), n = w.size(0), rows = int64_t(x.v.size()) / k;
  Array y(x.shape.with(-1, n));
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t o = 0; o < n; ++o) {
      double sum = b.absent() ? 0 : b(o);
      for (int64_t i = 0; i < k; ++i) sum += x.v[size_t(r * k + i)] * w(o, i);
      y.v[size_t(r * n + o)] = gelu ? 0.5 * sum * (1 + std::erf(sum / std::sqrt(2.0))) : sum;
    }
  return y;
}
}  // namespace

OP_SPEC(mlp) {
  auto add = [&](const char* name, Shape x, int64_t h, int64_t o, bool biases,
                 bool recompute = false) -> Sample& {
    int64_t i = x[-1];
    return spec
        .sample(
            name,
            {randn(x), randn({h, i}, 1 / std::sqrt(double(i))), biases ? randn({h}) : absent(),
             randn({o, h}, 1 / std::sqrt(double(h))), biases ? randn({o}) : absent()},
            [recompute](const std::vector<Tensor>& in) {
              return std::vector{occam::mlp(in[0], in[1], in[2], in[3], in[4], recompute)};
            },
            [](const Arrays& in) -> Arrays {
              return {layer(layer(in[0], in[1], in[2], true), in[3], in[4], false)};
            })
        .same_as([](const std::vector<Tensor>& in) {
          Tensor hidden = occam::linear(in[0], in[1], in[2], LinearActivation::gelu);
          return std::vector{occam::linear(hidden, in[3], in[4])};
        })
        .sum_length(double(i + h))
        // A hidden value is rounded twice (z, gelu), h of them add up in an output; in backward once more.
        .half_roundings(6)
        .cancelling_terms(1, 2);
  };
  add("1x1", {1, 1}, 1, 1, true).small();
  add("3x5-7-4", {3, 5}, 7, 4, true).small();
  add("3x5-7-4-no-bias", {3, 5}, 7, 4, false).small();
  add("2x3x8-32-8", {2, 3, 8}, 32, 8, true).small();
  add("2x17x24-96-24", {2, 17, 24}, 96, 24, true);
  add("130x64-136-72", {130, 64}, 136, 72, true);
  add("3x5-7-4-recompute", {3, 5}, 7, 4, true, true).small();
  add("2x17x24-96-24-recompute", {2, 17, 24}, 96, 24, true, true);
  add("65x24-96-24-recompute-no-bias", {65, 24}, 96, 24, false, true);
  add("empty-batch", {0, 5}, 7, 3, true);
  spec.bad(
      "hidden",
      [] {
        occam::mlp(occam::zeros({2, 3}), occam::zeros({4, 3}), {}, occam::zeros({3, 5}), {});
      },
      "mlp: axis `h` is 4 in w1 [4,3] but 5 in w2 [3,5]");
}
