#pragma once
#include "nn/module.h"

namespace occam {

/// Normalises the last axis to mean 0 and variance 1 (biased, plus `eps`), then weight * x + bias; weight and
/// bias [c]. Ba, Kiros, Hinton, "Layer Normalization", 2016.
class LayerNorm : public Module {
 public:
  explicit LayerNorm(int64_t channels, double eps = 1e-6);
  const char* kind() const override { return "LayerNorm"; }
  Shape plan(const Shape& x, Plan& plan) const override;

 protected:
  Tensor forward(const Tensor& x) override;

 private:
  Parameter& weight_;
  Parameter& bias_;
  double eps_;
};

}  // namespace occam
