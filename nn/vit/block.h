#pragma once
#include "nn/layers/layer_norm.h"
#include "nn/layers/mlp.h"
#include "nn/mixers/mixer.h"

namespace occam {

/// What training does not keep for backward but makes again there: nothing, the MLPs' hidden layers, or all
/// of a block but its input.
enum class Recompute { none, mlps, blocks };

struct BlockOptions {
  int64_t mlp_hidden = 0;
  double drop_path = 0;
  double dropout = 0;  // inside the MLP
  Recompute recompute = Recompute::none;
};

/// Pre-norm transformer block: y = x + path(attn(norm1(x))), then y + path(mlp(norm2(y))). A mixer without a
/// branch (identity) takes its half and norm1 away.
class Block : public Module {
 public:
  Block(std::unique_ptr<TokenMixer> mixer, const BlockOptions& options);
  const char* kind() const override { return "Block"; }
  Shape plan(const Shape& x, Plan& plan) const override;

  TokenMixer& mixer() { return *mixer_; }
  const TokenMixer& mixer() const { return *mixer_; }
  /// The norm before the mixer; null when the mixer has no branch.
  LayerNorm* norm1() { return norm1_.get(); }
  /// The block's work on a stream whose last branch is still to be added, and which is left with the MLP's
  /// (or none). With Recompute::blocks it keeps the stream alone and runs again in backward
  /// (autograd/recompute.h), unless a hook is on one of its parts: what a hook takes out could not be run
  /// again.
  void advance(Residual& r);
  /// Puts another mixer in place; it takes this block's mode, compute dtype and device, and the values of the
  /// output projection where both have one. Other parameters keep what they have, new ones have no values
  /// yet.
  void set_mixer(std::unique_ptr<TokenMixer> mixer);

 protected:
  Tensor forward(const Tensor& x) override;

 private:
  void register_parts();
  void pass(Residual& r);
  /// The same for inference of few rows, with norms and sums inside the layers (ops/fused_linear): nothing is
  /// left to add. False, and nothing happens, for others.
  bool infer_few_rows(Residual& r);
  bool has_hooks_inside() const;

  std::unique_ptr<TokenMixer> mixer_;
  std::unique_ptr<LayerNorm> norm1_;
  DropPath drop_path1_, drop_path2_;
  LayerNorm norm2_;
  Mlp mlp_;
  bool recompute_;  // as a whole
};

}  // namespace occam
