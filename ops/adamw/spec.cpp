#include <cmath>

#include "ops/adamw/op.h"
#include "ops/spec.h"

namespace {
using namespace occam::spec;
using occam::Tensor;

}  // namespace

OP_SPEC(adamw) {
  spec.uncapturable(
      "these forms make the list of what they work on anew at each call; the update of a captured step, "
      "whose "
      "list stays, is in tests/nn/capture_test.cpp");
  // Rates and decays are exact in f32, which is what the device holds.
  auto adam = [&](const char* name, int64_t n, double decay, int64_t updates) -> Sample& {
    return spec
        .sample(
            name, {randn({n}), randn({n}), randn({n}, 0.1), uniform({n}, 0.01, 1)},
            [=](const std::vector<Tensor>& in) {
              return occam::update_ops::adamw(in, 0.0625, decay, 0, updates);
            },
            [=](const Arrays& in) -> Arrays {
              Array p = in[0], m = in[2], v = in[3];
              double t = double(updates + 1);
              for (size_t i = 0; i < p.v.size(); ++i) {
                double g = in[1].v[i];
                m.v[i] = 0.9 * m.v[i] + 0.1 * g;
                v.v[i] = 0.999 * v.v[i] + 0.001 * g * g;
                p.v[i] =
                    p.v[i] * (1 - 0.0625 * decay) - 0.0625 * (m.v[i] / (1 - std::pow(0.9, t))) /
                                                        (std::sqrt(v.v[i] / (1 - std::pow(0.999, t))) + 1e-8);
              }
              return {p, m, v};
            })
        .no_gradient()
        .no_half()
        .cancelling_terms(1, 0);
  };
  adam("first", 7, 0, 0).small();
  adam("decay", 33, 0.5, 10);
  adam("late", 1000, 0.25, 5000);
  // The norm is kept in f32, so f64 tensors would see its rounding: clipping is compared in f32 alone, in
  // tests/nn/optimizer_test.cpp.
  auto sgd = [&](const char* name, int64_t n, double decay) -> Sample& {
    return spec
        .sample(
            name, {randn({n}), randn({n}), randn({n})},
            [=](const std::vector<Tensor>& in) {
              return occam::update_ops::sgd(in, 0.0625, decay, 0.875, 0);
            },
            [=](const Arrays& in) -> Arrays {
              Array p = in[0], b = in[2];
              for (size_t i = 0; i < p.v.size(); ++i) {
                b.v[i] = 0.875 * b.v[i] + in[1].v[i] + decay * p.v[i];
                p.v[i] -= 0.0625 * b.v[i];
              }
              return {p, b};
            })
        .no_gradient()
        .no_half()
        .cancelling_terms(1, 0);
  };
  sgd("sgd", 9, 0).small();
  sgd("sgd-decay", 20000, 0.25);
  spec.sample(
          "ema", {randn({17}), randn({17})},
          [](const std::vector<Tensor>& in) {
            return std::vector{occam::update_ops::ema(in[0], in[1], 0.96875)};
          },
          [](const Arrays& in) -> Arrays {
            Array y = in[0];
            for (size_t i = 0; i < y.v.size(); ++i) y.v[i] = 0.96875 * y.v[i] + 0.03125 * in[1].v[i];
            return {y};
          })
      .no_gradient()
      .no_half()
      .cancelling_terms(1, 0)
      .small();
  spec.bad(
      "shapes", [] { occam::update_ops::ema(occam::zeros({3}), occam::zeros({4}), 0.5); },
      "ema: axis `n` is 3 in average [3] but 4 in value [4]");
}
