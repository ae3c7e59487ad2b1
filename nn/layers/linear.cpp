#include "nn/layers/linear.h"

#include "core/check.h"
#include "nn/plan.h"
#include "ops/elementwise/op.h"
#include "ops/fused_linear/op.h"

namespace occam {

Linear::Linear(int64_t in, int64_t out, const LinearOptions& options)
    : weight_(param("weight", {out, in}, options.weight)),
      bias_(options.bias ? &param("bias", {out}, options.bias_init) : nullptr),
      activation_(options.activation) {}

Tensor Linear::forward(const Tensor& x) {
  return linear(x, weight_.value(), bias_ ? bias_->value() : Tensor(), activation_);
}

Tensor Linear::fused(const Tensor& x, LayerNorm* norm, const Tensor& residual) {
  if (has_hooks() || (norm != nullptr && norm->has_hooks())) {
    Tensor y = (*this)(norm != nullptr ? (*norm)(x) : x);
    return residual ? add(residual, y) : y;
  }
  if (norm == nullptr && !residual) return (*this)(x);
  Scope scope(name());
  LinearSurroundings around{.activation = activation_, .residual = residual};
  if (norm != nullptr)
    around.norm_weight = norm->weight().value(), around.norm_bias = norm->bias().value(),
    around.eps = norm->eps();
  return fused_linear(x, weight_.value(), bias_ ? bias_->value() : Tensor(), around);
}

Shape Linear::plan(const Shape& x, Plan& plan) const {
  const int64_t in = weight_.shape()[1], out = weight_.shape()[0];
  OCCAM_CHECK(x.rank() > 0 && x[-1] == in, ErrorKind::shape, "{}: input {} for a layer of {} inputs", path(),
              x.str(), in);
  plan.add_macs(x.numel() * out);
  return x.with(-1, out);
}

}  // namespace occam
