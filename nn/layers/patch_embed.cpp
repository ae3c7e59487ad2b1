#include "nn/layers/patch_embed.h"

#include "core/check.h"
#include "nn/init.h"
#include "nn/plan.h"
#include "ops/cast/op.h"
#include "ops/patch_embed/op.h"

namespace occam {

PatchEmbed::PatchEmbed(int64_t channels, int64_t patch, int64_t dim)
    : weight_(param("proj.weight", {dim, channels, patch, patch},
                    init::fan_in_uniform(channels * patch * patch))),
      bias_(param("proj.bias", {dim}, init::fan_in_uniform(channels * patch * patch))) {}

Tensor PatchEmbed::forward(const Tensor& x) {
  return patch_embed(cast(x, compute_dtype()), weight_.value(), bias_.value());
}

Shape PatchEmbed::plan(const Shape& x, Plan& plan) const {
  const Shape& w = weight_.shape();
  OCCAM_CHECK(x.rank() == 4 && x[1] == w[1] && x[2] % w[2] == 0 && x[3] % w[3] == 0, ErrorKind::shape,
              "{}: images {} for patches {}", path(), x.str(), w.str());
  const int64_t tokens = (x[2] / w[2]) * (x[3] / w[3]);
  plan.add_macs(x[0] * tokens * w.numel());
  return {x[0], tokens, w[0]};
}

}  // namespace occam
