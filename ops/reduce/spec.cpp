#include <algorithm>
#include <cmath>
#include <functional>

#include "ops/elementwise/op.h"
#include "ops/reduce/op.h"
#include "ops/spec.h"

namespace {
using namespace occam::spec;
using occam::Shape;
using occam::Tensor;

/// Folds every element into the output element it belongs to.
Arrays fold(const Array& x, const std::vector<int>& axes, double start,
            const std::function<double(double, double)>& f) {
  Shape kept = x.shape;
  for (int axis : axes) kept[axis] = 1;
  Shape out;
  for (int i = 0; i < kept.rank(); ++i)
    if (std::find(axes.begin(), axes.end(), i) == axes.end()) out.push_back(kept[i]);
  Array y(out, start);
  for (int64_t flat = 0; flat < int64_t(x.v.size()); ++flat) {
    int64_t rest = flat, at = 0, step = 1;
    for (int i = x.shape.rank() - 1; i >= 0; --i) {
      int64_t index = rest % x.shape[i];
      rest /= x.shape[i];
      if (kept[i] == x.shape[i] && std::find(axes.begin(), axes.end(), i) == axes.end())
        at += index * step, step *= kept[i];
    }
    y.v[size_t(at)] = f(y.v[size_t(at)], x.v[size_t(flat)]);
  }
  return {y};
}
}  // namespace

OP_SPEC(reduce) {
  auto add = [&](const char* name, Shape shape, std::vector<int> axes, double length) -> Sample& {
    return spec
        .sample(
            name, {randn(shape)},
            [axes](const std::vector<Tensor>& in) { return std::vector{occam::sum(in[0], axes)}; },
            [axes](const Arrays& in) {
              return fold(in[0], axes, 0, [](double a, double b) { return a + b; });
            })
        .sum_length(length)
        .cancelling_terms(1, 0);
  };
  add("rows", {3, 7}, {1}, 7).small();
  add("columns", {3, 7}, {0}, 3).small();
  add("long-rows", {5, 1000}, {1}, 1000);
  add("long-columns", {3000, 5}, {0}, 3000);
  add("middle", {3, 50, 4}, {1}, 50);
  add("packed-columns", {300, 24}, {0}, 300);
  add("packed-middle", {2, 140, 16}, {1}, 140);
  add("few-rows", {3, 2, 520}, {1}, 2);
  add("apart", {3, 5, 4}, {0, 2}, 12).small();
  add("all", {11, 3, 7}, {0, 1, 2}, 231);
  add("empty-rows", {3, 0}, {1}, 1);
  add("empty-batch", {0, 3}, {1}, 1);
  spec.sample(
          "mean", {randn({4, 6, 3})},
          [](const std::vector<Tensor>& in) {
            return std::vector{occam::mean(in[0], {0, 1})};
          },
          [](const Arrays& in) {
            return fold(in[0], {0, 1}, 0, [](double a, double b) { return a + b / 24; });
          })
      .sum_length(24)
      .cancelling_terms(1, 0);
  auto largest = [&](const char* name, Input input, int axis) -> Sample& {
    return spec.sample(
        name, {input}, [axis](const std::vector<Tensor>& in) { return std::vector{occam::max(in[0], axis)}; },
        [axis](const Arrays& in) {
          return fold(in[0], {axis}, -INFINITY, [](double a, double b) { return std::max(a, b); });
        });
  };
  largest("max-rows", randn({5, 33}), 1).small();
  largest("max-columns", randn({33, 5}), 0);
  // Equal values have no derivative; only the forward is checked.
  largest("max-ties", values({2, 4}, {1, 3, 3, 2, 5, 5, 5, 5}), 1).no_gradient();
  spec.bad(
      "axis",
      [] {
        occam::sum(occam::zeros({2, 3}), {2});
      },
      "axis 2 is out of range for shape [2,3]");
  spec.bad(
      "twice",
      [] {
        occam::sum(occam::zeros({2, 3}), {1, -1});
      },
      "sum: axis -1 of [2,3] is named twice");
  spec.bad(
      "max-empty",
      [] {
        occam::max(occam::zeros({2, 0}), 1);
      },
      "max: axis 1 of [2,0] is empty");
}
