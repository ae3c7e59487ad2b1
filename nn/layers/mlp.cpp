#include "nn/layers/mlp.h"

#include "autograd/recompute.h"
#include "nn/plan.h"
#include "ops/mlp/op.h"

namespace occam {

Mlp::Mlp(int64_t dim, int64_t hidden, double dropout, bool recompute)
    : fc1_(dim, hidden, {.activation = LinearActivation::gelu}),
      fc2_(hidden, dim),
      drop1_(dropout),
      drop2_(dropout),
      recompute_(recompute) {
  sub("fc1", fc1_);
  sub("drop1", drop1_);
  sub("fc2", fc2_);
  sub("drop2", drop2_);
}

Tensor Mlp::forward(const Tensor& x) {
  // One op, unless something acts or looks between its two layers.
  auto by_layers = [this](const Tensor& in) { return fc2_(drop1_(fc1_(in))); };
  if (fc1_.has_hooks() || drop1_.has_hooks() || fc2_.has_hooks()) return drop2_(by_layers(x));
  if (training() && drop1_.p() > 0) return drop2_(recompute_ ? recompute(by_layers, x) : by_layers(x));
  auto bias = [](Linear& layer) { return layer.bias() ? layer.bias()->value() : Tensor(); };
  return drop2_(mlp(x, fc1_.weight().value(), bias(fc1_), fc2_.weight().value(), bias(fc2_), recompute_));
}

Tensor Mlp::add_to(const Tensor& x, LayerNorm& norm) {
  Scope scope(name());
  return fc2_.fused(fc1_.fused(x, &norm), nullptr, x);
}

Shape Mlp::plan(const Shape& x, Plan& plan) const { return plan.run(fc2_, plan.run(fc1_, x)); }

}  // namespace occam
