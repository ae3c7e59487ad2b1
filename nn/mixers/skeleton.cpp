#include "nn/mixers/skeleton.h"

#include "core/grad_mode.h"
#include "nn/plan.h"
#include "ops/grouped_linear/op.h"
#include "ops/view/op.h"

namespace occam {

GroupedLinear::GroupedLinear(int64_t heads, int64_t in, int64_t out, bool bias)
    : weight_(param("weight", {heads, out, in}, init::fan_in_uniform(in))),
      bias_(bias ? &param("bias", {heads, out}, init::fan_in_uniform(in)) : nullptr) {}

Shape GroupedLinear::plan(const Shape& x, Plan& plan) const {
  plan.add_macs(x[0] * x[1] * weight_.numel());
  return x.with(-1, weight_.shape()[1]);
}

Tensor GroupedLinear::forward(const Tensor& x) { return grouped_linear(x, weight(), bias()); }

LinearOptions new_linear(int64_t fan_in) {
  return {.weight = init::fan_in_uniform(fan_in), .bias_init = init::fan_in_uniform(fan_in)};
}

SkeletonMixer::SkeletonMixer(const char* kind, const MixerShape& s, MixerCore core, const ScanOptions& scan,
                             const SkeletonParts& parts)
    : TokenMixer(s),
      kind_(kind),
      pre_(parts.pre ? std::make_unique<Linear>(s.dim, s.dim, new_linear(s.dim)) : nullptr),
      core_(std::move(core)),
      ragged_core_(dynamic_cast<RaggedCore*>(core_.module.get())),
      head_proj_(s.heads, core_.width, s.head_dim(), parts.head_bias),
      proj_(s.dim, s.dim),
      order_(s, scan) {
  if (pre_) sub("pre", *pre_);
  sub(core_.name, *core_.module);
  sub("head_proj", head_proj_);
  sub("proj", proj_);
}

Shape SkeletonMixer::plan(const Shape& x, Plan& plan) const {
  const MixerShape& s = mixer_shape();
  if (pre_) plan.run(*pre_, x);
  plan.run(head_proj_, plan.run(*core_.module, {x[0], x[1], s.heads, s.head_dim()}));
  return plan.run(proj_, x);
}

std::string SkeletonMixer::why_not_ragged() const {
  if (ragged_core_ == nullptr) return TokenMixer::why_not_ragged();
  if (!order_.is_default()) return "an order other than the model's is one of whole images";
  return ragged_core_->why_not_ragged();
}

Tensor SkeletonMixer::mix(const Tensor& x, const Sequences& rows) {
  return from_pre(pre_ ? (*pre_)(x) : x, rows);
}

Tensor SkeletonMixer::mix_normalised(const Tensor& x, LayerNorm& norm) {
  return from_pre(pre_ ? pre_->fused(x, &norm) : norm(x), {});
}

Tensor SkeletonMixer::from_pre(const Tensor& x, const Sequences& rows) {
  const int64_t b = x.size(0), t = x.size(1);
  const MixerShape& s = mixer_shape();
  Tensor u = order_.arrange(x);
  u = reshape(u, {b, t, s.heads, s.head_dim()});
  Tensor heads = core_.projected && !grad_enabled()
                     ? core_.projected(u, head_proj_.weight(), head_proj_.bias(), rows)
                     : head_proj_(ragged_core_ ? (*ragged_core_)(u, rows) : (*core_.module)(u));
  return order_.restore(reshape(heads, {b, t, s.dim}));
}

MixerLedger skeleton_ledger(const MixerShape& s, int64_t t, const MixerLedger& core, int64_t width,
                            const SkeletonParts& parts) {
  const int64_t d = s.dim, linears = (parts.pre ? 2 : 1) * d, out = d * width;
  return {core.params + linears * (d + 1) + out + (parts.head_bias ? d : 0),
          core.macs + t * (linears * d + out), core.sequential_depth};
}

}  // namespace occam
