#include "ops/gather/op.h"

#include "ops/concat/op.h"
#include "ops/slice/op.h"
#include "ops/spec.h"

namespace {
using namespace occam::spec;
using occam::Shape;
using occam::Tensor;

/// [outer, size, inner] around an axis.
struct Around {
  int64_t outer = 1, size, inner = 1;
  Around(const Shape& s, int axis) : size(s[axis]) {
    for (int i = 0; i < s.rank(); ++i) (i < axis ? outer : i > axis ? inner : size) *= i == axis ? 1 : s[i];
  }
};

Arrays naive(const Arrays& in, int axis, bool each) {
  const Array &x = in[0], &indices = in[1];
  Array y(x.shape.with(axis, each ? indices.size(axis) : indices.size(0)));
  Around a(x.shape, axis), b(y.shape, axis);
  for (size_t at = 0; at < y.v.size(); ++at) {
    int64_t i = int64_t(at) % b.inner, k = int64_t(at) / b.inner % b.size,
            o = int64_t(at) / (b.inner * b.size);
    auto index = int64_t(indices.v[each ? at : size_t(k)]);
    y.v[at] = x.v[size_t((o * a.size + index) * a.inner + i)];
  }
  return {y};
}
}  // namespace

OP_SPEC(gather) {
  // Backward sums the gradients of equal indices: at most as many as there are.
  auto select = [&](const char* name, Shape x, int axis, std::vector<double> indices) -> Sample& {
    auto n = int64_t(indices.size());
    return spec
        .sample(
            name, {randn(x), values({n}, indices, occam::DType::i64)},
            [=](const std::vector<Tensor>& in) {
              return std::vector{occam::index_select(in[0], axis, in[1])};
            },
            [=](const Arrays& in) { return naive(in, axis, false); })
        .sum_length(double(n));
  };
  auto gather = [&](const char* name, Shape x, int axis, int64_t n) -> Sample& {
    return spec
        .sample(
            name, {randn(x), integers(x.with(axis, n), 0, x[axis])},
            [=](const std::vector<Tensor>& in) { return std::vector{occam::gather(in[0], axis, in[1])}; },
            [=](const Arrays& in) { return naive(in, axis, true); })
        .sum_length(double(n));
  };
  select("rows-5x3", {5, 3}, 0, {4, 0, 4, 4, 1}).small().same_as([](const std::vector<Tensor>& in) {
    std::vector<Tensor> rows;
    for (int64_t i : {4, 0, 4, 4, 1}) rows.push_back(occam::slice(in[0], 0, i, 1));
    return std::vector{occam::concat(rows, 0)};
  });
  select("middle-2x5x3", {2, 5, 3}, 1, {2, 2, 0}).small();
  select("last-3x7", {3, 7}, 1, {6, 1, 0, 1});
  select("vector", {4}, 0, {3, 3, 3, 3, 3, 3});
  select("packs-2x7x16", {2, 7, 16}, 1, {0, 6, 3, 3, 6, 6, 1, 2, 5});
  select("more-than-a-block", {3, 5, 264}, 1, {4, 4, 1, 0, 3, 4});
  select("one", {1, 1}, 0, {0});
  select("no-indices", {3, 2}, 0, {});
  select("empty-inner", {3, 0}, 0, {2, 1});
  gather("each-3x5", {3, 5}, 1, 4).small();
  gather("each-2x5x3", {2, 5, 3}, 1, 7).small();
  gather("each-first-6x2", {6, 2}, 0, 6);
  gather("each-17x9", {17, 9}, 0, 33);
  gather("each-none", {2, 3}, 1, 0);
  auto indices = [](std::vector<int64_t> v, Shape s) { return occam::from_vector(v, s); };
  spec.bad(
      "above",
      [=] {
        occam::index_select(occam::zeros({3, 5}), 1, indices({0, 5}, {2}));
      },
      "gather: index 5 at place 1 of indices [2] is outside [0, 5), axis 1 of x [3,5]");
  spec.bad(
      "negative",
      [=] {
        occam::gather(occam::zeros({2, 2}), -1, indices({0, -1}, {2, 1}));
      },
      "gather: index -1 at place 1 of indices [2,1] is outside [0, 2), axis 1 of x [2,2]");
  spec.bad(
      "empty-axis",
      [=] {
        occam::index_select(occam::zeros({0, 5}), 0, indices({0}, {1}));
      },
      "is outside [0, 0), axis 0 of x [0,5]");
  spec.bad(
      "sizes",
      [=] {
        occam::gather(occam::zeros({2, 3}), 1, indices({0, 0, 0}, {3, 1}));
      },
      "gather: indices [3,1] beside x [2,3]; they have one axis, or x's sizes except on axis 1");
  spec.bad(
      "dtype", [] { occam::index_select(occam::zeros({3}), 0, occam::zeros({2})); },
      "gather: indices are f32, expected i64");
  spec.bad(
      "rank",
      [=] {
        occam::index_select(occam::zeros({3, 2}), 0, indices({0, 1}, {2, 1}));
      },
      "index_select: indices are [2,1], expected one axis");
}
