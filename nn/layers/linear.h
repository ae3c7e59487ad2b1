#pragma once
#include "nn/init.h"
#include "nn/layers/layer_norm.h"
#include "nn/module.h"
#include "ops/linear/op.h"

namespace occam {

struct LinearOptions {
  bool bias = true;
  LinearActivation activation = LinearActivation::none;  // fused with the product where the device can
  Init weight = init::trunc_normal(0.02);                // timm's for vision transformers
  Init bias_init = init::zeros();
};

/// x [..., in] -> activation(x weight^T + bias) [..., out]; weight [out, in], bias [out].
class Linear : public Module {
 public:
  Linear(int64_t in, int64_t out, const LinearOptions& options = {});
  const char* kind() const override { return "Linear"; }
  Shape plan(const Shape& x, Plan& plan) const override;
  /// residual + forward(norm(x)), without either where null or undefined: one op for few rows
  /// (ops/fused_linear), unless a hook looks between.
  Tensor fused(const Tensor& x, LayerNorm* norm, const Tensor& residual = {});
  int64_t in() const { return weight_.shape()[1]; }
  int64_t out() const { return weight_.shape()[0]; }
  Parameter& weight() { return weight_; }
  /// Null without a bias.
  Parameter* bias() { return bias_; }

 protected:
  Tensor forward(const Tensor& x) override;

 private:
  Parameter& weight_;
  Parameter* bias_;
  LinearActivation activation_;
};

}  // namespace occam
