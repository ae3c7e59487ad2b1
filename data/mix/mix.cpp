#include "data/mix/mix.h"

#include <algorithm>
#include <cmath>

namespace occam {

namespace {

double draw_gamma(double shape, Rng& rng) {
  // Shapes below 1 by the boost Gamma(a) = Gamma(a + 1) U^(1/a).
  double boost = shape < 1 ? std::pow(rng.uniform(0.0, 1.0), 1 / shape) : 1;
  double d = (shape < 1 ? shape + 1 : shape) - 1.0 / 3, c = 1 / std::sqrt(9 * d);
  while (true) {
    double x = rng.normal(), v = 1 + c * x;
    if (v <= 0) continue;
    v = v * v * v;
    double u = 1 - rng.uniform(0.0, 1.0);  // (0, 1]
    if (std::log(u) < 0.5 * x * x + d - d * v + d * std::log(v)) return d * v * boost;
  }
}

}  // namespace

double draw_beta(double a, double b, Rng& rng) {
  double x = draw_gamma(a, rng), y = draw_gamma(b, rng);
  return x + y > 0 ? x / (x + y) : 0.5;  // both underflow only for alphas near 0
}

MixPlan draw_mix(const MixOptions& options, int64_t height, int64_t width, Rng& rng) {
  MixPlan plan;
  if (!options.active() || !rng.bernoulli(options.probability)) return plan;
  plan.cutmix = options.cutmix > 0 && (options.mixup <= 0 || rng.bernoulli(options.switch_prob));
  double alpha = plan.cutmix ? options.cutmix : options.mixup;
  plan.lambda = draw_beta(alpha, alpha, rng);
  if (!plan.cutmix) return plan;
  double side = std::sqrt(1 - plan.lambda);
  auto h = int64_t(double(height) * side), w = int64_t(double(width) * side);
  int64_t y = rng.below(height), x = rng.below(width);
  plan.top = std::clamp<int64_t>(y - h / 2, 0, height);
  plan.bottom = std::clamp<int64_t>(y + (h + 1) / 2, 0, height);
  plan.left = std::clamp<int64_t>(x - w / 2, 0, width);
  plan.right = std::clamp<int64_t>(x + (w + 1) / 2, 0, width);
  int64_t covered = (plan.bottom - plan.top) * (plan.right - plan.left);
  plan.lambda = 1 - double(covered) / double(height * width);
  return plan;
}

void mix_images(float* images, int64_t b, int64_t c, int64_t h, int64_t w, const MixPlan& plan) {
  if (plan.lambda == 1) return;
  int64_t numel = c * h * w;
  auto keep = float(plan.lambda), give = float(1 - plan.lambda);
  // Pairs (i, b-1-i); the middle image of an odd batch is its own partner.
  for (int64_t i = 0; i < b / 2; ++i) {
    float *p = images + i * numel, *q = images + (b - 1 - i) * numel;
    if (!plan.cutmix) {
      for (int64_t k = 0; k < numel; ++k) {
        float u = p[k], v = q[k];
        p[k] = u * keep + v * give;
        q[k] = v * keep + u * give;
      }
      continue;
    }
    for (int64_t row = 0; row < c * h; ++row) {
      int64_t y = row % h;
      if (y < plan.top || y >= plan.bottom) continue;
      std::swap_ranges(p + row * w + plan.left, p + row * w + plan.right, q + row * w + plan.left);
    }
  }
}

void mix_targets(const int64_t* labels, int64_t b, int64_t classes, const MixPlan& plan, float* targets) {
  std::fill_n(targets, b * classes, 0.0f);
  for (int64_t i = 0; i < b; ++i) {
    targets[i * classes + labels[i]] += float(plan.lambda);
    targets[i * classes + labels[b - 1 - i]] += float(1 - plan.lambda);
  }
}

}  // namespace occam
