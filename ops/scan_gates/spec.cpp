#include <algorithm>
#include <cmath>

#include "ops/activation/op.h"
#include "ops/elementwise/op.h"
#include "ops/ragged_spec.h"
#include "ops/scan_gates/op.h"

namespace {
using namespace occam::spec;
using occam::Tensor;

double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }

Arrays naive_softplus(const Arrays& in) {
  Arrays y{in[0], in[0]};
  const size_t width = in[1].v.size();
  for (size_t n = 0; n < in[0].v.size(); ++n) {
    y[0].v[n] = softplus(in[0].v[n] + in[1].v[n % width]);
    y[1].v[n] = -std::exp(in[2].v[n % width]) * y[0].v[n];
  }
  return y;
}

/// fn(at, before or -1) along every direction.
template <class Fn>
void along(const occam::Shape& s, const Fn& fn) {
  for (int64_t n = 0; n < s[0]; ++n)
    for (int64_t r = 0; r < 2; ++r)
      for (int64_t h = 0; h < s[3]; ++h) {
        int64_t before = -1;
        for (int64_t step = 0; step < s[1]; ++step) {
          int64_t token = r == 0 ? step : s[1] - 1 - step, at = ((n * s[1] + token) * 2 + r) * s[3] + h;
          fn(at, before);
          before = at;
        }
      }
}

Arrays naive_maximum(const Arrays& in) {
  Array m = in[0];
  along(m.shape, [&](int64_t at, int64_t before) {
    double last = before < 0 ? 0 : m.v[size_t(before)];
    m.v[size_t(at)] = std::max({last - softplus(-in[1].v[size_t(at)]), in[0].v[size_t(at)], 0.0});
  });
  return {m};
}

Arrays naive_exponential(const Arrays& in) {
  Array scale = in[0], decay = in[0], floor = in[0];
  along(scale.shape, [&](int64_t at, int64_t before) {
    double m = in[2].v[size_t(at)], last = before < 0 ? 0 : in[2].v[size_t(before)];
    scale.v[size_t(at)] = std::exp(in[0].v[size_t(at)] - m);
    decay.v[size_t(at)] = last - m - softplus(-in[1].v[size_t(at)]);
    floor.v[size_t(at)] = std::exp(-m);
  });
  return {scale, decay, floor};
}
}  // namespace

OP_SPEC(scan_gates) {
  auto add = [&](const std::string& name, int64_t b, int64_t t, int64_t h, double spread) {
    occam::Shape gates{b, t, 2, h};
    auto softplus_call = [](const std::vector<Tensor>& in) {
      occam::SoftplusGates y = occam::softplus_gates(in[0], in[1], in[2]);
      return std::vector{y.scale, y.log_decay};
    };
    auto by_ops = [](const std::vector<Tensor>& in) {
      Tensor scale = occam::log(occam::add_scalar(occam::exp(in[0] + in[1]), 1));
      return std::vector{scale, occam::exp(in[2]) * scale * -1.0};
    };
    // The sum of x and bias loses |x| roundings before exp; a gradient of bias sums b t elements. Results are
    // f32 beside bf16: only the gradients of bf16 inputs are rounded, once, and gradients count twice.
    spec.sample(name + "-softplus", {randn(gates, spread), randn({2, h}), uniform({2, h}, 0, 2.7)},
                softplus_call, naive_softplus)
        .sum_length(double(b * t))
        .conditioned(1 + spread)
        .half_roundings(0.51)
        .same_as(spread > 10 ? Call() : Call(by_ops))
        .small();
    // A maximum is a sum of up to t decays, in f32 whatever the gates are.
    spec.sample(
            name + "-maximum", {randn(gates, spread), randn(gates, spread, 2)},
            [](const std::vector<Tensor>& in) { return std::vector{occam::gate_maximum(in[0], in[1])}; },
            naive_maximum)
        .sum_length(double(t))
        .half_roundings(0)
        .no_gradient()
        .small();
    // exp(i - m) grows an error by |i - m|: i is normal, m up to 3.
    spec.sample(
            name + "-exponential", {randn(gates), randn(gates, spread), uniform(gates, 0, 3).no_grad()},
            [](const std::vector<Tensor>& in) {
              occam::ExponentialGates y = occam::exponential_gates(in[0], in[1], in[2]);
              return std::vector{y.scale, y.log_decay, y.floor};
            },
            naive_exponential)
        .conditioned(7)
        .half_roundings(0.51)
        .small();
  };
  add("1x1x1", 1, 1, 1, 1);
  add("2x5x3", 2, 5, 3, 1);
  add("1x33x2-wide", 1, 33, 2, 12);
  add("3x70x2", 3, 70, 2, 2);
  add("no-tokens", 2, 0, 2, 1);
  std::vector<std::pair<std::string, Packed>> cases = packed_cases({0, 1});
  cases.push_back({"ragged-long", {{40, 0, 70, 1}, 115, 75, {0, 1}}});
  for (const auto& [name, p] : cases) {
    auto rows = [&p = p](double spread, double mean = 0) { return p.rows(randn({p.n, 2, 3}, spread, mean)); };
    spec.sample(
            name + "-maximum", {rows(2), rows(2, 2), p.offsets()},
            [p = p](const std::vector<Tensor>& in) {
              return std::vector{occam::gate_maximum(in[0], in[1], p.sequences(in[2]))};
            },
            p.naive(naive_maximum))
        .sum_length(double(p.longest))
        .half_roundings(0)
        .no_gradient()
        .small();
    Packed with_m = p;
    with_m.tokens = {0, 1, 2};
    spec.sample(
            name + "-exponential",
            {rows(1), rows(1), p.rows(uniform({p.n, 2, 3}, 0, 3)).no_grad(), p.offsets()},
            [p = p](const std::vector<Tensor>& in) {
              occam::ExponentialGates y = occam::exponential_gates(in[0], in[1], in[2], p.sequences(in[3]));
              return std::vector{y.scale, y.log_decay, y.floor};
            },
            with_m.naive(naive_exponential))
        .conditioned(7)
        .half_roundings(0.51)
        .small();
  }
  spec.bad(
      "directions",
      [] {
        occam::gate_maximum(occam::zeros({1, 2, 1, 3}), occam::zeros({1, 2, 1, 3}));
      },
      "gate_maximum");
}
