#pragma once
// The vision transformer. Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; with a distillation
// token Touvron et al., "Training data-efficient image transformers", ICML 2021. Names of parameters are
// timm's.
#include <optional>

#include "nn/layers/patch_embed.h"
#include "nn/vit/block.h"
#include "nn/vit/shape.h"

namespace occam {

/// What stands in a block in place of attention.
struct MixerChoice {
  std::string with = "attention";
  MixerOptions options;
  bool operator==(const MixerChoice&) const = default;
};

struct VitOptions {
  double drop_path = 0;  // of the last block; rises linearly from 0 at the first
  double dropout = 0;    // of embedded tokens and inside the MLPs
  Recompute recompute = Recompute::none;
};

class VisionTransformer : public Module {
 public:
  /// Attention in every block; no values yet (initialize() or load_state_dict()).
  explicit VisionTransformer(const VitShape& shape, const VitOptions& options = {});
  const char* kind() const override { return "VisionTransformer"; }
  Shape plan(const Shape& x, Plan& plan) const override;

  const VitShape& shape() const { return shape_; }
  /// timm's name or "vit": what preprocessing defaults and saved files go by.
  const std::string& model_name() const { return model_name_; }
  void set_model_name(std::string name) { model_name_ = std::move(name); }
  Block& block(int64_t i);
  /// The mixer in block i.
  const MixerChoice& mixer_choice(int64_t i) const;

  /// f32 class scores [b, classes] of images [b, channels, H, W]. One tensor; a distilled model in training
  /// mode gives two, of the class and of the distillation token. operator() gives their mean.
  std::vector<Tensor> logits(const Tensor& images);

  /// Puts another mixer into block i: the output projection keeps its values, everything else in the mixer
  /// (and norm1, when there was none) is new and gets values only if `seed` is given. Throws Error{usage} for
  /// an unknown mixer, option or block.
  void replace_mixer(int64_t i, const MixerChoice& choice, std::optional<uint64_t> seed = {});

 protected:
  Tensor forward(const Tensor& x) override;

 private:
  Tensor embed(const Tensor& images);

  VitShape shape_;
  std::string model_name_{kFreeFormName};
  Parameter& cls_token_;
  Parameter* dist_token_;
  Parameter& pos_embed_;
  PatchEmbed patch_embed_;
  Dropout pos_drop_;
  std::vector<std::unique_ptr<Block>> blocks_;
  std::vector<MixerChoice> choices_;
  LayerNorm norm_;
  Linear head_;
  std::unique_ptr<Linear> head_dist_;
};

}  // namespace occam
