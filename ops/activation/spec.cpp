#include "ops/activation/op.h"

#include <cmath>
#include <string>

#include "ops/elementwise/op.h"
#include "ops/spec.h"

namespace {
using namespace occam::spec;
using occam::Tensor;

double logistic(double x) { return 1 / (1 + std::exp(-x)); }
}  // namespace

OP_SPEC(activation) {
  struct Case {
    const char* name;
    Tensor (*op)(const Tensor&);
    double (*f)(double);
  };
  const Case cases[] = {
      {"gelu", occam::gelu, [](double x) { return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))); }},
      {"gelu_tanh", occam::gelu_tanh,
       [](double x) { return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }},
      {"silu", occam::silu, [](double x) { return x * logistic(x); }},
      {"sigmoid", occam::sigmoid, logistic},
      {"tanh", occam::tanh, [](double x) { return std::tanh(x); }},
      {"relu", occam::relu, [](double x) { return x > 0 ? x : 0; }},
      {"exp", occam::exp, [](double x) { return std::exp(x); }},
      {"log", occam::log, [](double x) { return std::log(x); }},
      {"elu_plus_one", occam::elu_plus_one, [](double x) { return x > 0 ? x + 1 : std::exp(x); }}};
  for (const Case& c : cases) {
    auto op = c.op;
    auto f = c.f;
    bool positive = std::string(c.name) == "log";
    auto add = [&](const char* shape, Input input) -> Sample& {
      return spec
          .sample(
              std::string(c.name) + "-" + shape, {input},
              [op](const std::vector<Tensor>& in) { return std::vector{op(in[0])}; },
              [f](const Arrays& in) -> Arrays {
                Array y = in[0];
                for (double& v : y.v) v = f(v);
                return {y};
              })
          .cancelling_terms(1, 1)
          // exp turns the rounding of its argument (up to 10 here) into a relative error.
          .conditioned(4);
    };
    add("3x7", positive ? uniform({3, 7}, 0.2, 4) : randn({3, 7}, 2)).small();
    add("513", positive ? uniform({513}, 0.2, 4) : randn({513}, 3));
    add("empty", randn({0, 4}));
  }
  spec.sample(
          "silu-is-x-sigmoid", {randn({4, 9})},
          [](const std::vector<Tensor>& in) { return std::vector{occam::silu(in[0])}; },
          [](const Arrays& in) -> Arrays {
            Array y = in[0];
            for (double& v : y.v) v *= logistic(v);
            return {y};
          })
      .same_as([](const std::vector<Tensor>& in) { return std::vector{in[0] * occam::sigmoid(in[0])}; })
      .cancelling_terms(1, 1);
}
