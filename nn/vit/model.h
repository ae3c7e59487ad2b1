#pragma once
// Models from settings and files, and back.
#include <filesystem>
#include <optional>

#include "core/config.h"
#include "nn/vit/vit.h"

namespace occam {

/// `replace: {blocks: [10, 11], with: bilstm, options: {hidden: 32}}`
struct Replacement {
  std::vector<int64_t> blocks;
  std::string with = "bilstm";
  MixerOptions options;

  template <class V>
  void visit(V& v) {
    v("blocks", blocks, "blocks whose mixer is replaced, from 0", Range::at_least(0));
    v("with", with, "the mixer that takes its place");
    v("options", options, "the mixer's own settings");
  }
};

/// The `model:` section. What is not set comes from the checkpoint or from the name.
struct ModelConfig {
  std::string name, checkpoint;
  std::optional<int64_t> image_size, patch, channels, dim, depth, heads, classes;
  std::optional<double> mlp_ratio;
  std::optional<bool> distilled;
  bool new_head = false;
  double drop_path = 0, dropout = 0;
  std::string recompute = "none";
  std::vector<Replacement> replace;

  template <class V>
  void visit(V& v) {
    v("name", name,
      "timm's name (deit_tiny_patch16_224, ...) or vit with the sizes below; a file that Occam wrote "
      "knows its own",
      Shorthand{});
    v("checkpoint", checkpoint, "safetensors file with timm's or Hugging Face's names; none: random weights");
    v("image_size", image_size, "side of the square image; position embeddings are resampled to it",
      Range::at_least(1));
    v("patch", patch, "side of a patch", Range::at_least(1));
    v("channels", channels, "channels of the image", Range::at_least(1));
    v("dim", dim, "width of the token", Range::at_least(1));
    v("depth", depth, "number of blocks", Range::at_least(1));
    v("heads", heads, "attention heads; they divide dim", Range::at_least(1));
    v("mlp_ratio", mlp_ratio, "hidden width of the MLP over dim", Range::above(0));
    v("classes", classes, "number of classes; by default as many as the checkpoint's head has",
      Range::at_least(1));
    v("distilled", distilled, "a distillation token and a second head");
    v("new_head", new_head, "start the head anew instead of loading it");
    v("drop_path", drop_path, "stochastic depth of the last block, rising linearly from 0 at the first",
      Range{0, 0.99});
    v("dropout", dropout, "dropout of embedded tokens and inside the MLPs", Range{0, 0.99});
    v("recompute", recompute,
      "what training does not keep but makes again in backward, to the same bits; mlps: their hidden layers, "
      "saves 40 % of the memory for a tenth more time; blocks: all but the blocks' inputs, for a third more "
      "time",
      Choices{"none", "mlps", "blocks"});
    v("replace", replace, "mixers put in place of attention, one mapping or a list");
  }
};

/// Builds the model and gives every parameter a value, from the checkpoint or from `seed`. A checkpoint that
/// Occam wrote brings its whole structure (see save_model); `replace` then acts on what was loaded, so that
/// new mixers keep the loaded output projections. Throws Error{usage} for settings that make no model and
/// Error{input} for a file that does not fit.
std::unique_ptr<VisionTransformer> make_model(const ModelConfig& config, uint64_t seed = 0);

/// The structure of a model as settings: sizes and replaced mixers, no checkpoint.
ModelConfig structure_of(const VisionTransformer& model);

/// Key of safetensors metadata that holds structure_of() as JSON.
inline constexpr const char* kModelMetadataKey = "occam.model";
/// structure_of() as the text stored under that key.
std::string model_metadata(const VisionTransformer& model);
/// Writes parameters and structure, atomically: the file opens by `model.checkpoint=FILE` alone.
void save_model(const std::filesystem::path& path, const VisionTransformer& model,
                std::map<std::string, std::string> metadata = {});

}  // namespace occam
