#pragma once
#include "nn/layers/dropout.h"
#include "nn/layers/linear.h"

namespace occam {

/// fc2(drop(gelu(fc1(x)))) with exact GELU; hidden width `hidden`. With `recompute` the hidden layer is not
/// kept for backward but made again there (where a hook is on one of the layers, it is kept).
class Mlp : public Module {
 public:
  Mlp(int64_t dim, int64_t hidden, double dropout = 0, bool recompute = false);
  const char* kind() const override { return "Mlp"; }
  /// x + forward(norm(x)) for inference.
  Tensor add_to(const Tensor& x, LayerNorm& norm);
  Shape plan(const Shape& x, Plan& plan) const override;

 protected:
  Tensor forward(const Tensor& x) override;

 private:
  Linear fc1_, fc2_;
  Dropout drop1_, drop2_;
  bool recompute_;
};

}  // namespace occam
