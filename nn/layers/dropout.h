#pragma once
#include "nn/module.h"
#include "ops/dropout/op.h"

namespace occam {

/// Zeroes elements with probability p and scales the rest by 1/(1-p) while training; else the input itself.
class Dropout : public Module {
 public:
  /// Throws Error{usage} unless 0 <= p < 1.
  explicit Dropout(double p);
  const char* kind() const override { return "Dropout"; }
  Shape plan(const Shape& x, Plan&) const override { return x; }
  double p() const { return p_; }

 protected:
  Tensor forward(const Tensor& x) override;

 private:
  double p_;
};

/// The same for whole samples (axis 0): stochastic depth of a residual branch. Huang et al., "Deep Networks
/// with Stochastic Depth", ECCV 2016.
class DropPath : public Module {
 public:
  explicit DropPath(double p);
  const char* kind() const override { return "DropPath"; }
  Shape plan(const Shape& x, Plan&) const override { return x; }
  double p() const { return p_; }
  /// What this step does to the branch: for an op that drops it together with other work.
  BranchDrop draw();

 protected:
  Tensor forward(const Tensor& x) override;

 private:
  double p_;
};

}  // namespace occam
