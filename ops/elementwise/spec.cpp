#include "ops/elementwise/op.h"

#include <algorithm>
#include <string>

#include "ops/spec.h"

namespace {
using namespace occam::spec;
using occam::Shape;
using occam::Tensor;

/// Element of `x` that broadcasts to the flat index of `out`.
double at(const Array& x, const Shape& out, int64_t flat) {
  int64_t offset = 0, step = 1;
  for (int i = out.rank() - 1, j = x.shape.rank() - 1; j >= 0; --i, --j) {
    int64_t index = flat % out[i];
    flat /= out[i];
    if (x.shape[j] != 1) offset += index * step;
    step *= x.shape[j];
  }
  return x.v[size_t(offset)];
}

template <class F>
Naive by_element(F f) {
  return [f](const Arrays& in) -> Arrays {
    Array y(occam::broadcast_shapes(in[0].shape, in[1].shape));
    for (int64_t i = 0; i < int64_t(y.v.size()); ++i)
      y.v[size_t(i)] = f(at(in[0], y.shape, i), at(in[1], y.shape, i));
    return {y};
  };
}
}  // namespace

OP_SPEC(elementwise) {
  struct Case {
    const char* name;
    Tensor (*op)(const Tensor&, const Tensor&);
    double (*f)(double, double);
  };
  const Case cases[] = {{"add", occam::add, [](double a, double b) { return a + b; }},
                        {"sub", occam::sub, [](double a, double b) { return a - b; }},
                        {"mul", occam::mul, [](double a, double b) { return a * b; }},
                        {"div", occam::div, [](double a, double b) { return a / b; }}};
  struct Form {
    const char* name;
    Shape a, b;
  };
  const Form forms[] = {{"same", {3, 5}, {3, 5}},
                        {"packs", {16, 32}, {16, 32}},
                        {"row", {4, 7}, {7}},
                        {"column", {4, 7}, {4, 1}},
                        {"both", {4, 1, 3}, {5, 1}},
                        {"scalar", {2, 3}, {}},
                        {"middle", {2, 5, 3}, {2, 1, 3}},
                        {"empty", {0, 3}, {3}},
                        {"packs-leading", {3, 5, 16}, {5, 16}},
                        {"packs-column", {5, 16}, {5, 1}},
                        {"packs-middle", {2, 5, 8}, {2, 1, 8}},
                        {"packs-both", {3, 1, 8}, {5, 1}},
                        {"odd-leading", {3, 5, 7}, {5, 7}}};
  for (const Case& c : cases)
    for (const Form& form : forms) {
      auto op = c.op;
      // Divisors stay away from 0.
      Input b = c.name == std::string("div") ? uniform(form.b, 0.5, 2) : randn(form.b);
      double length = std::max(1.0, double(form.a.numel()));
      Sample& s = spec.sample(
                          std::string(c.name) + "-" + form.name, {randn(form.a), b},
                          [op](const std::vector<Tensor>& in) { return std::vector{op(in[0], in[1])}; },
                          by_element(c.f))
                      .cancelling_terms(1, 4)
                      .sum_length(length);
      if (form.name == std::string("same") || form.name == std::string("both")) s.small();
    }
  spec.sample(
          "add-long-axis", {randn({2, 65601}), randn({65601})},
          [](const std::vector<Tensor>& in) { return std::vector{in[0] + in[1]}; },
          by_element([](double a, double b) { return a + b; }))
      .sum_length(2)
      .cancelling_terms(1, 4);
  spec.sample(
          "scalars", {randn({5, 3})},
          [](const std::vector<Tensor>& in) {
            return std::vector{occam::add_scalar(in[0], 2), in[0] * -3.0};
          },
          [](const Arrays& in) -> Arrays {
            Arrays y{in[0], in[0]};
            for (double& v : y[0].v) v += 2;
            for (double& v : y[1].v) v *= -3;
            return y;
          })
      .small();
  spec.bad(
      "shapes",
      [] {
        occam::add(occam::zeros({2, 3}), occam::zeros({2}));
      },
      "[2,3] and [2] do not broadcast");
  spec.bad(
      "dtypes",
      [] {
        occam::add(occam::zeros({2}), occam::zeros({2}, {occam::DType::f64, occam::kCPU}));
      },
      "add: a is f32 but b is f64");
}
