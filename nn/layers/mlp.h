#pragma once
#include "nn/layers/dropout.h"
#include "nn/layers/linear.h"

namespace occam {

/// fc2(drop(gelu(fc1(x)))) with exact GELU; hidden width `hidden`.
class Mlp : public Module {
 public:
  Mlp(int64_t dim, int64_t hidden, double dropout = 0);
  const char* kind() const override { return "Mlp"; }
  Shape plan(const Shape& x, Plan& plan) const override;

 protected:
  Tensor forward(const Tensor& x) override;

 private:
  Linear fc1_, fc2_;
  Dropout drop1_, drop2_;
};

}  // namespace occam
