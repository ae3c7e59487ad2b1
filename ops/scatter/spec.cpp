#include "ops/scatter/op.h"

#include "ops/concat/op.h"
#include "ops/elementwise/op.h"
#include "ops/slice/op.h"
#include "ops/spec.h"

namespace {
using namespace occam::spec;
using occam::Shape;
using occam::Tensor;

Arrays naive(const Arrays& in, int axis, bool each) {
  const Array &indices = in[1], &src = in[2];
  Array y = in[0];
  int64_t inner = 1, n = src.size(axis), size = y.size(axis);
  for (int i = axis + 1; i < y.shape.rank(); ++i) inner *= y.size(i);
  for (size_t at = 0; at < src.v.size(); ++at) {
    int64_t i = int64_t(at) % inner, k = int64_t(at) / inner % n, o = int64_t(at) / (inner * n);
    auto index = int64_t(indices.v[each ? at : size_t(k)]);
    y.v[size_t((o * size + index) * inner + i)] += src.v[at];
  }
  return {y};
}
}  // namespace

OP_SPEC(scatter) {
  // At most n + 1 terms, which may cancel, at a place.
  auto rows = [&](const char* name, Shape x, int axis, std::vector<double> indices) -> Sample& {
    auto n = int64_t(indices.size());
    return spec
        .sample(
            name, {randn(x), values({n}, indices, occam::DType::i64), outliers(x.with(axis, n))},
            [=](const std::vector<Tensor>& in) {
              return std::vector{occam::scatter_add(in[0], axis, in[1], in[2])};
            },
            [=](const Arrays& in) { return naive(in, axis, false); })
        .sum_length(double(n) + 1)
        .cancelling_terms(2, 0);
  };
  auto each = [&](const char* name, Shape x, int axis, int64_t n) -> Sample& {
    return spec
        .sample(
            name, {randn(x), integers(x.with(axis, n), 0, x[axis]), outliers(x.with(axis, n))},
            [=](const std::vector<Tensor>& in) {
              return std::vector{occam::scatter_add(in[0], axis, in[1], in[2])};
            },
            [=](const Arrays& in) { return naive(in, axis, true); })
        .sum_length(double(n) + 1)
        .cancelling_terms(2, 0);
  };
  rows("rows-3x2", {3, 2}, 0, {2, 0, 2, 2}).small().same_as([](const std::vector<Tensor>& in) {
    auto row = [&](int64_t k) { return occam::slice(in[2], 0, k, 1); };
    auto old = [&](int64_t k) { return occam::slice(in[0], 0, k, 1); };
    return std::vector{occam::concat({old(0) + row(1), old(1), old(2) + row(0) + row(2) + row(3)}, 0)};
  });
  rows("middle-2x5x3", {2, 5, 3}, 1, {4, 4, 0}).small();
  rows("last-3x7", {3, 7}, 1, {6, 1, 0, 1});
  rows("all-one-place", {2, 3}, 0, std::vector<double>(37, 1.0));
  rows("wide-3x5x265", {3, 5, 265}, 1, {4, 4, 1, 0, 3, 4});
  rows("one", {1, 1}, 0, {0});
  rows("no-indices", {3, 2}, 0, {});
  rows("empty-inner", {3, 0}, 0, {2, 1});
  each("each-3x5", {3, 5}, 1, 4).small();
  each("each-2x5x3", {2, 5, 3}, 1, 7).small();
  each("each-17x9", {17, 9}, 0, 33);
  each("each-none", {2, 3}, 1, 0);
  auto indices = [](std::vector<int64_t> v, Shape s) { return occam::from_vector(v, s); };
  spec.bad(
      "above",
      [=] {
        occam::scatter_add(occam::zeros({3, 2}), 0, indices({3}, {1}), occam::zeros({1, 2}));
      },
      "scatter_add: index 3 at place 0 of indices [1] is outside [0, 3), axis 0 of x [3,2]");
  spec.bad(
      "source",
      [=] {
        occam::scatter_add(occam::zeros({3, 2}), 0, indices({2}, {1}), occam::zeros({2, 2}));
      },
      "scatter_add: src is [2,2], expected [1,2] for x [3,2] and indices [1] on axis 0");
  spec.bad(
      "dtypes",
      [=] {
        occam::scatter_add(occam::zeros({3}), 0, indices({2}, {1}), occam::zeros({1}, {occam::DType::f64}));
      },
      "scatter_add: x is f32 but src is f64");
}
