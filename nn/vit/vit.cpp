#include "nn/vit/vit.h"

#include "core/check.h"
#include "nn/plan.h"
#include "ops/cast/op.h"
#include "ops/concat/op.h"
#include "ops/elementwise/op.h"
#include "ops/slice/op.h"
#include "ops/token_embed/op.h"
#include "ops/view/op.h"

namespace occam {

VisionTransformer::VisionTransformer(const VitShape& s, const VitOptions& options)
    : shape_((s.check(), s)),
      cls_token_(param("cls_token", {1, 1, s.dim}, init::normal(1e-6))),
      dist_token_(s.distilled ? &param("dist_token", {1, 1, s.dim}, init::trunc_normal(0.02)) : nullptr),
      pos_embed_(param("pos_embed", {1, s.tokens(), s.dim}, init::trunc_normal(0.02))),
      patch_embed_(s.channels, s.patch, s.dim),
      pos_drop_(options.dropout),
      choices_(size_t(s.depth)),
      norm_(s.dim),
      head_(s.dim, s.classes) {
  sub("patch_embed", patch_embed_);
  sub("pos_drop", pos_drop_);
  for (int64_t i = 0; i < s.depth; ++i) {
    const double share = s.depth > 1 ? double(i) / double(s.depth - 1) : 0;
    blocks_.push_back(std::make_unique<Block>(
        make_mixer("attention", s.mixer()),
        BlockOptions{s.mlp_hidden(), options.drop_path * share, options.dropout, options.recompute}));
    sub(fmt::format("blocks.{}", i), *blocks_.back());
  }
  sub("norm", norm_);
  sub("head", head_);
  if (s.distilled) {
    head_dist_ = std::make_unique<Linear>(s.dim, s.classes);
    sub("head_dist", *head_dist_);
  }
}

Block& VisionTransformer::block(int64_t i) {
  OCCAM_CHECK(i >= 0 && i < shape_.depth, ErrorKind::usage, "block {} of a model with blocks 0 to {}", i,
              shape_.depth - 1);
  return *blocks_[size_t(i)];
}

const MixerChoice& VisionTransformer::mixer_choice(int64_t i) const { return choices_.at(size_t(i)); }

void VisionTransformer::replace_mixer(int64_t i, const MixerChoice& choice, std::optional<uint64_t> seed) {
  Block& b = block(i);
  const MixerChoice sized{choice.with, sized_options(choice.with, shape_.mixer(), choice.options)};
  b.set_mixer(make_mixer(sized.with, shape_.mixer(), sized.options));
  choices_[size_t(i)] = sized;
  if (!seed) return;
  const std::string prefix = b.path() + ".";
  for (auto& [name, p] : b.named_parameters())
    if (!p->has_values()) p->initialize(hash_name(*seed, prefix + name), p->device());
}

Tensor VisionTransformer::embed(const Tensor& images) {
  Tensor prefix = cls_token_.value();
  if (dist_token_) prefix = concat({prefix, dist_token_->value()}, 1);
  return pos_drop_(token_embed(patch_embed_(images), reshape(prefix, {shape_.prefix_tokens(), shape_.dim}),
                               reshape(pos_embed_.value(), {shape_.tokens(), shape_.dim})));
}

std::vector<Tensor> VisionTransformer::logits(const Tensor& images) {
  OCCAM_CHECK(images.rank() == 4 && images.shape() == shape_.image().with(0, images.size(0)),
              ErrorKind::shape, "images {} for a model of [b,{},{},{}]", images.shape().str(),
              shape_.channels, shape_.image_size, shape_.image_size);
  Residual r{embed(images), {}, {}};
  for (auto& block : blocks_) block->advance(r);
  // Only the prefix tokens are read, and the norm works token by token.
  r.x = slice(r.x, 1, 0, shape_.prefix_tokens());
  if (r.branch) r.branch = slice(r.branch, 1, 0, shape_.prefix_tokens());
  // A stream without a branch comes from blocks that compute few rows: then the head does the norm.
  LayerNorm* norm = r.branch || norm_.has_hooks() ? nullptr : &norm_;
  const Tensor x = r.branch ? norm_.add_and_normalise(r) : norm != nullptr ? r.x : norm_(r.x);
  auto classify = [&](Linear& head, int64_t token) {
    return cast(head.fused(select(x, 1, token), norm), DType::f32);
  };
  std::vector<Tensor> y{classify(head_, 0)};
  if (!head_dist_) return y;
  y.push_back(classify(*head_dist_, 1));
  if (training()) return y;
  return {mul_scalar(add(y[0], y[1]), 0.5)};
}

Tensor VisionTransformer::forward(const Tensor& images) {
  std::vector<Tensor> y = logits(images);
  return y.size() == 1 ? y[0] : mul_scalar(add(y[0], y[1]), 0.5);
}

Shape VisionTransformer::plan(const Shape& images, Plan& plan) const {
  Shape x = plan.run(patch_embed_, images);
  OCCAM_CHECK(x[1] + shape_.prefix_tokens() == shape_.tokens(), ErrorKind::shape,
              "images {} for a model of {} tokens", images.str(), shape_.tokens());
  x = x.with(1, shape_.tokens());
  for (const auto& block : blocks_) x = plan.run(*block, x);
  x = plan.run(norm_, {x[0], shape_.prefix_tokens(), shape_.dim});
  Shape y = plan.run(head_, {x[0], shape_.dim});
  if (head_dist_) plan.run(*head_dist_, {x[0], shape_.dim});
  return y;
}

}  // namespace occam
