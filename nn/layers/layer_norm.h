#pragma once
#include "nn/module.h"
#include "ops/layer_norm/op.h"

namespace occam {

/// The residual stream between the parts of a network: x plus a branch that has not been added yet. The next
/// norm adds it in the same pass.
struct Residual {
  Tensor x;
  Tensor branch;    // undefined: nothing to add
  BranchDrop drop;  // drop path of the branch
  /// x + drop(branch) by itself, for what comes without a norm.
  Tensor sum() const;
};

/// Normalises the last axis to mean 0 and variance 1 (biased, plus `eps`), then weight * x + bias; weight and
/// bias [c]. Ba, Kiros, Hinton, "Layer Normalization", 2016.
class LayerNorm : public Module {
 public:
  explicit LayerNorm(int64_t channels, double eps = 1e-6);
  const char* kind() const override { return "LayerNorm"; }
  Shape plan(const Shape& x, Plan& plan) const override;

  /// The norm of r's sum, which becomes r.x; nothing is left to add.
  Tensor add_and_normalise(Residual& r);
  Parameter& weight() { return weight_; }
  Parameter& bias() { return bias_; }
  double eps() const { return eps_; }

 protected:
  Tensor forward(const Tensor& x) override;

 private:
  Parameter& weight_;
  Parameter& bias_;
  double eps_;
};

}  // namespace occam
