#pragma once
#include "nn/module.h"

namespace occam {

/// Images [b, channels, H, W] to patch tokens [b, (H/p)(W/p), dim], row by row: a convolution with kernel and
/// stride p; proj.weight [dim, channels, p, p], proj.bias [dim].
class PatchEmbed : public Module {
 public:
  PatchEmbed(int64_t channels, int64_t patch, int64_t dim);
  const char* kind() const override { return "PatchEmbed"; }
  Shape plan(const Shape& x, Plan& plan) const override;

 protected:
  /// Takes images of any floating dtype; the tokens have the compute dtype.
  Tensor forward(const Tensor& x) override;

 private:
  Parameter& weight_;
  Parameter& bias_;
};

}  // namespace occam
