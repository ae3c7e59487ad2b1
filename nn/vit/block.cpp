#include "nn/vit/block.h"

#include "autograd/recompute.h"
#include "core/check.h"
#include "core/grad_mode.h"
#include "nn/plan.h"
#include "nn/state.h"
#include "ops/fused_linear/op.h"

namespace occam {

Block::Block(std::unique_ptr<TokenMixer> mixer, const BlockOptions& options)
    : mixer_(std::move(mixer)),
      drop_path1_(options.drop_path),
      drop_path2_(options.drop_path),
      norm2_(mixer_->mixer_shape().dim),
      mlp_(mixer_->mixer_shape().dim, options.mlp_hidden, options.dropout,
           options.recompute == Recompute::mlps),
      recompute_(options.recompute == Recompute::blocks) {
  register_parts();
}

void Block::register_parts() {
  clear_subs();
  if (mixer_->has_branch()) {
    if (!norm1_) norm1_ = std::make_unique<LayerNorm>(mixer_->mixer_shape().dim);
    sub("norm1", *norm1_);
    sub("attn", *mixer_);
    sub("drop_path1", drop_path1_);
  } else {
    norm1_.reset();
    sub("attn", *mixer_);
  }
  sub("norm2", norm2_);
  sub("mlp", mlp_);
  sub("drop_path2", drop_path2_);
}

void Block::set_mixer(std::unique_ptr<TokenMixer> mixer) {
  std::swap(mixer_, mixer);
  register_parts();
  train(training());
  set_compute_dtype(compute_dtype());
  to(device());
  Linear *to_proj = mixer_->proj(), *from_proj = mixer->proj();
  if (to_proj && from_proj && from_proj->weight().has_values())
    load_state_dict(*to_proj, state_dict(*from_proj));
}

Tensor Block::forward(const Tensor& x) {
  Residual r{x, {}, {}};
  if (!infer_few_rows(r)) pass(r);
  return r.sum();
}

void Block::advance(Residual& r) {
  Scope scope(name());
  if (infer_few_rows(r)) return;
  if (!recompute_ || has_hooks_inside()) return pass(r);
  auto left = std::make_shared<BranchDrop>();  // of the branch that comes out
  auto again = [this, drop = r.drop, left](const std::vector<Tensor>& in) {
    Residual inner{in[0], in[1], drop};
    pass(inner);
    *left = inner.drop;
    return std::vector{inner.x, inner.branch};
  };
  std::vector<Tensor> out = recompute(again, {r.x, r.branch});
  r = {out[0], out[1], *left};
}

bool Block::has_hooks_inside() const {
  bool any = false;
  visit([&](const Module& m) { any |= m.has_hooks(); });
  return any;
}

bool Block::infer_few_rows(Residual& r) {
  if (grad_enabled() || training() || !has_few_rows(r.x) || has_hooks_inside()) return false;
  const Tensor x = r.sum(), y = norm1_ ? mixer_->add_to(x, *norm1_) : x;
  r = {mlp_.add_to(y, norm2_), {}, {}};
  return true;
}

void Block::pass(Residual& r) {
  if (norm1_) {
    r.branch = (*mixer_)(norm1_->add_and_normalise(r));
    r.drop = drop_path1_.draw();
  }
  Tensor y = norm2_.add_and_normalise(r);
  r.branch = mlp_(y);
  r.drop = drop_path2_.draw();
}

Shape Block::plan(const Shape& x, Plan& plan) const {
  Shape y = norm1_ ? plan.run(*norm1_, x) : x;
  y = plan.run(*mixer_, y);
  return plan.run(mlp_, plan.run(norm2_, y));
}

}  // namespace occam
