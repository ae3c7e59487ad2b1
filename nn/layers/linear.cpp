#include "nn/layers/linear.h"

#include "core/check.h"
#include "nn/plan.h"

namespace occam {

Linear::Linear(int64_t in, int64_t out, const LinearOptions& options)
    : weight_(param("weight", {out, in}, options.weight)),
      bias_(options.bias ? &param("bias", {out}, options.bias_init) : nullptr),
      activation_(options.activation) {}

Tensor Linear::forward(const Tensor& x) {
  return linear(x, weight_.value(), bias_ ? bias_->value() : Tensor(), activation_);
}

Shape Linear::plan(const Shape& x, Plan& plan) const {
  const int64_t in = weight_.shape()[1], out = weight_.shape()[0];
  OCCAM_CHECK(x.rank() > 0 && x[-1] == in, ErrorKind::shape, "{}: input {} for a layer of {} inputs", path(),
              x.str(), in);
  plan.add_macs(x.numel() * out);
  return x.with(-1, out);
}

}  // namespace occam
