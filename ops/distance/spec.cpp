#include "ops/distance/op.h"

#include <algorithm>
#include <cmath>

#include "ops/elementwise/op.h"
#include "ops/reduce/op.h"
#include "ops/spec.h"

namespace {
using namespace occam::spec;
using occam::Shape;
using occam::Tensor;

Arrays naive_cosine(const Arrays& in) {
  int64_t c = in[0].size(-1), rows = int64_t(in[0].v.size()) / c;
  double total = 0;
  for (int64_t r = 0; r < rows; ++r) {
    double xy = 0, xx = 0, yy = 0;
    for (size_t i = size_t(r * c); i < size_t((r + 1) * c); ++i)
      xy += in[0].v[i] * in[1].v[i], xx += in[0].v[i] * in[0].v[i], yy += in[1].v[i] * in[1].v[i];
    total += 1 - xy / std::max(std::sqrt(xx * yy), 1e-8);
  }
  return {Array({}, total / double(rows))};
}
}  // namespace

OP_SPEC(distance) {
  for (auto [name, shape] : {std::pair{"3x7", Shape{3, 7}}, {"2x5x33", {2, 5, 33}}, {"1", {1}}}) {
    double count = double(shape.numel());
    Sample& s = spec.sample(
                        std::string("mse-") + name, {randn(shape), randn(shape)},
                        [](const std::vector<Tensor>& in) { return std::vector{occam::mse(in[0], in[1])}; },
                        [count](const Arrays& in) -> Arrays {
                          double sum = 0;
                          for (size_t i = 0; i < in[0].v.size(); ++i)
                            sum += std::pow(in[0].v[i] - in[1].v[i], 2);
                          return {Array({}, sum / count)};
                        })
                    .sum_length(count)
                    .cancelling_terms(0, 1 / count);
    // The composite rounds its squares in f64 only: it is compared there.
    s.same_as([](const std::vector<Tensor>& in) {
      Tensor d = in[0] - in[1];
      return std::vector{occam::mean(d * d)};
    });
    if (shape.rank() == 2) s.small();
    Sample& cosine = spec.sample(
                             std::string("cosine-") + name, {randn(shape), randn(shape)},
                             [](const std::vector<Tensor>& in) {
                               return std::vector{occam::cosine_distance(in[0], in[1])};
                             },
                             naive_cosine)
                         .sum_length(count)
                         .cancelling_terms(1, 1 / count);
    if (shape.rank() == 2) cosine.small();
  }
  spec.bad(
      "mse-shape",
      [] {
        occam::mse(occam::zeros({2, 3}), occam::zeros({2, 4}));
      },
      "mse: axis `c` is 3 in x [2,3] but 4");
  spec.bad(
      "mse-empty",
      [] {
        occam::mse(occam::zeros({0, 3}), occam::zeros({0, 3}));
      },
      "mse: x [0,3] is empty");
}
