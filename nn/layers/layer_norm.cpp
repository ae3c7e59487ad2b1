#include "nn/layers/layer_norm.h"

#include "core/check.h"
#include "nn/init.h"
#include "nn/plan.h"
#include "ops/layer_norm/op.h"

namespace occam {

LayerNorm::LayerNorm(int64_t channels, double eps)
    : weight_(param("weight", {channels}, init::ones())),
      bias_(param("bias", {channels}, init::zeros())),
      eps_(eps) {}

Tensor LayerNorm::forward(const Tensor& x) { return layer_norm(x, weight_.value(), bias_.value(), eps_); }

Shape LayerNorm::plan(const Shape& x, Plan&) const {
  OCCAM_CHECK(x.rank() > 0 && x[-1] == weight_.numel(), ErrorKind::shape, "{}: input {} for {} channels",
              path(), x.str(), weight_.numel());
  return x;
}

}  // namespace occam
