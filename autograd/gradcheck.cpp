#include "autograd/gradcheck.h"

#include <algorithm>
#include <cmath>

#include "autograd/engine.h"
#include "autograd/node.h"
#include "core/check.h"
#include "core/grad_mode.h"
#include "core/rng.h"

namespace occam {

namespace {

/// sum of cotangent * output, and the sum of magnitudes that bounds its rounding error.
struct Loss {
  double value = 0, magnitude = 0;
};

Loss weigh(const std::vector<Tensor>& outputs, const std::vector<Tensor>& cotangents) {
  Loss loss;
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!cotangents[i]) continue;
    std::vector<double> y = outputs[i].to_vector<double>(), r = cotangents[i].to_vector<double>();
    for (size_t j = 0; j < y.size(); ++j) loss.value += y[j] * r[j], loss.magnitude += std::abs(y[j] * r[j]);
  }
  return loss;
}

}  // namespace

std::string gradcheck(const TensorFn& fn, const std::vector<Tensor>& inputs,
                      const GradcheckOptions& options) {
  Rng rng(options.seed, "gradcheck");
  for (const Tensor& x : inputs) zero_grad(x);
  std::vector<Tensor> outputs = fn(inputs), cotangents, roots, root_cotangents;
  for (const Tensor& y : outputs) {
    Tensor r;
    if (requires_grad(y)) {
      r = raw::to(rand_normal(y.shape(), 0, 1, rng), y.dtype());
      roots.push_back(y);
      root_cotangents.push_back(r);
    }
    cotangents.push_back(r);
  }
  if (roots.empty()) return "no output depends on an input that needs a gradient";
  backward(roots, root_cotangents);

  for (size_t k = 0; k < inputs.size(); ++k) {
    const Tensor& x = inputs[k];
    if (!requires_grad(x) || x.numel() == 0) continue;
    OCCAM_ASSERT(x.dtype() == DType::f64 && x.is_contiguous());
    Tensor gradient = grad_of(x);
    std::vector<double> g =
        gradient ? gradient.to_vector<double>() : std::vector<double>(size_t(x.numel()), 0.0);
    double norm = 0;
    for (double v : g) norm += v * v;
    double rms = std::sqrt(norm / double(g.size()));
    double* data = x.data<double>();
    int64_t n = x.numel();

    // Derivative along `direction` (sparse or dense) by differences at +-h.
    auto check = [&](const std::vector<std::pair<int64_t, double>>& direction) -> std::string {
      double analytic = 0, size = 0, along = 0;
      for (auto [i, d] : direction)
        analytic += g[size_t(i)] * d, size += d * d, along += std::abs(g[size_t(i)] * d);
      double h = 1e-5 / std::sqrt(size / double(direction.size()));
      std::vector<double> kept(data, data + n);
      NoGrad no_grad;
      auto at = [&](double step) {
        for (auto [i, d] : direction) data[i] = kept[size_t(i)] + step * d;
        Loss loss = weigh(fn(inputs), cotangents);
        std::copy(kept.begin(), kept.end(), data);
        return loss;
      };
      Loss plus = at(h), minus = at(-h);
      double numeric = (plus.value - minus.value) / (2 * h);
      double rounding = 16 * 1.1e-16 * std::max(plus.magnitude, minus.magnitude) / h;
      double allowed = options.tolerance * (std::abs(analytic) + along + rms * std::sqrt(size)) + rounding;
      if (std::abs(numeric - analytic) <= allowed) return "";
      return fmt::format(
          "input {} ({} coordinates from {}): backward gives {:.9g}, differences give {:.9g}, allowed {:.2g}",
          k, direction.size(), direction[0].first, analytic, numeric, allowed);
    };

    if (n <= options.full_below) {
      for (int64_t i = 0; i < n; ++i)
        if (std::string e = check({{i, 1.0}}); !e.empty()) return e;
      continue;
    }
    for (int trial = 0; trial < 12; ++trial)
      if (std::string e = check({{rng.below(n), 1.0}}); !e.empty()) return e;
    for (int trial = 0; trial < 3; ++trial) {
      std::vector<std::pair<int64_t, double>> direction;
      for (int64_t i = 0; i < n; ++i) direction.emplace_back(i, rng.normal());
      if (std::string e = check(direction); !e.empty()) return e;
    }
  }
  return "";
}

}  // namespace occam
