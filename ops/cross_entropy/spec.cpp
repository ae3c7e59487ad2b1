#include "ops/cross_entropy/op.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "ops/spec.h"

namespace {
using namespace occam::spec;
using occam::DType;
using occam::Tensor;

Array softmax_of(const Array& x, double temperature) {
  Array p = x;
  for (int64_t b = 0; b < x.size(0); ++b) {
    double sum = 0, largest = -INFINITY;
    for (int64_t k = 0; k < x.size(1); ++k) largest = std::max(largest, x(b, k));
    for (int64_t k = 0; k < x.size(1); ++k) sum += std::exp((x(b, k) - largest) / temperature);
    for (int64_t k = 0; k < x.size(1); ++k) p(b, k) = std::exp((x(b, k) - largest) / temperature) / sum;
  }
  return p;
}

/// Mean over rows of -sum q log p.
double cross(const Array& q, const Array& p) {
  double sum = 0;
  for (size_t i = 0; i < q.v.size(); ++i)
    if (q.v[i] != 0) sum -= q.v[i] * std::log(p.v[i]);
  return sum / double(q.size(0));
}

Array scalar(double value) { return Array({}, value); }
}  // namespace

OP_SPEC(cross_entropy) {
  auto hard = [&](const char* name, int64_t b, int64_t k, double smoothing) -> Sample& {
    return spec
        .sample(
            name, {randn({b, k}, 3), integers({b}, 0, k)},
            [=](const std::vector<Tensor>& in) {
              return std::vector{occam::cross_entropy(in[0], in[1], smoothing)};
            },
            [=](const Arrays& in) -> Arrays {
              Array q(in[0].shape, smoothing / double(k));
              for (int64_t i = 0; i < b; ++i) q(i, int64_t(in[1](i))) += 1 - smoothing;
              return {scalar(cross(q, softmax_of(in[0], 1)))};
            })
        .sum_length(double(b * k))
        .cancelling_terms(3, 1 / double(b));
  };
  hard("3x7", 3, 7, 0).small();
  hard("3x7-smooth", 3, 7, 0.1).small();
  hard("1x1", 1, 1, 0);
  hard("5x1000-smooth", 5, 1000, 0.1);
  hard("65x10", 65, 10, 0);
  spec.sample(
          "soft", {randn({4, 9}, 2), uniform({4, 9}, 0, 0.3).no_grad()},
          [](const std::vector<Tensor>& in) {
            // Targets are f32 whatever the logits are.
            auto dtype = in[0].dtype() == DType::f64 ? DType::f64 : DType::f32;
            return std::vector{occam::soft_cross_entropy(in[0], occam::raw::to(in[1], dtype))};
          },
          [](const Arrays& in) -> Arrays { return {scalar(cross(in[1], softmax_of(in[0], 1)))}; })
      .small()
      .sum_length(36)
      .cancelling_terms(3, 0.5);
  auto kl = [&](const char* name, double temperature) -> Sample& {
    return spec
        .sample(
            name, {randn({3, 11}, 2), randn({3, 11}, 2).no_grad()},
            [=](const std::vector<Tensor>& in) {
              return std::vector{occam::kl_div(in[0], in[1], temperature)};
            },
            [=](const Arrays& in) -> Arrays {
              Array p = softmax_of(in[0], temperature), q = softmax_of(in[1], temperature);
              return {scalar(temperature * temperature * (cross(q, p) - cross(q, q)))};
            })
        .sum_length(33)
        .cancelling_terms(8 * temperature * temperature, temperature);
  };
  kl("kl", 1).small();
  kl("kl-hot", 4);
  spec.bad(
      "label",
      [] {
        occam::cross_entropy(occam::zeros({1, 3}), occam::full({1}, 3, {DType::i64, occam::kCPU}));
      },
      "cross_entropy: label 3 of row 0 is outside [0, 3)");
  spec.bad(
      "dtype",
      [] {
        occam::cross_entropy(occam::zeros({1, 3}), occam::zeros({1}));
      },
      "labels are f32, expected i64");
  spec.bad(
      "temperature",
      [] {
        occam::kl_div(occam::zeros({1, 3}), occam::zeros({1, 3}), 0);
      },
      "must be above 0");
}
