#include "nn/layers/layer_norm.h"

#include "core/check.h"
#include "nn/init.h"
#include "nn/plan.h"
#include "ops/dropout/op.h"
#include "ops/elementwise/op.h"

namespace occam {

LayerNorm::LayerNorm(int64_t channels, double eps)
    : weight_(param("weight", {channels}, init::ones())),
      bias_(param("bias", {channels}, init::zeros())),
      eps_(eps) {}

Tensor Residual::sum() const { return branch ? add(x, drop_path(branch, drop)) : x; }

Tensor LayerNorm::add_and_normalise(Residual& r) {
  if (!r.branch) return (*this)(r.x);
  Scope scope(name());
  auto [sum, y] = add_layer_norm(r.x, r.branch, weight_.value(), bias_.value(), eps_, r.drop);
  r = {sum, {}, {}};
  return y;
}

Tensor LayerNorm::forward(const Tensor& x) { return layer_norm(x, weight_.value(), bias_.value(), eps_); }

Shape LayerNorm::plan(const Shape& x, Plan&) const {
  OCCAM_CHECK(x.rank() > 0 && x[-1] == weight_.numel(), ErrorKind::shape, "{}: input {} for {} channels",
              path(), x.str(), weight_.numel());
  return x;
}

}  // namespace occam
