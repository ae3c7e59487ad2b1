#include "nn/vit/model.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "autograd/node.h"
#include "core/check.h"
#include "core/config_visit.h"
#include "nn/state.h"
#include "nn/vit/pos_embed.h"

namespace occam {

namespace {

/// Calls fn(setting, size) for every size that a setting can override.
template <class Config, class VShape, class Fn>
void for_each_size(Config& c, VShape& s, Fn fn) {
  fn(c.image_size, s.image_size);
  fn(c.patch, s.patch);
  fn(c.channels, s.channels);
  fn(c.dim, s.dim);
  fn(c.depth, s.depth);
  fn(c.heads, s.heads);
  fn(c.mlp_ratio, s.mlp_ratio);
  fn(c.classes, s.classes);
  fn(c.distilled, s.distilled);
}

VitShape with_overrides(VitShape shape, const ModelConfig& config) {
  for_each_size(config, shape, [](const auto& setting, auto& size) {
    if (setting) size = *setting;
  });
  return shape;
}

void apply_replacements(VisionTransformer& model, const std::vector<Replacement>& replacements,
                        std::optional<uint64_t> seed) {
  std::vector<bool> seen(size_t(model.shape().depth), false);
  for (const Replacement& r : replacements) {
    OCCAM_CHECK(!r.blocks.empty(), ErrorKind::usage, "model.replace.blocks: no block given for \"{}\"",
                r.with);
    for (int64_t i : r.blocks) {
      model.block(i);
      OCCAM_CHECK(!seen[size_t(i)], ErrorKind::usage, "model.replace.blocks: block {} is named twice", i);
      seen[size_t(i)] = true;
      model.replace_mixer(i, {r.with, r.options}, seed);
    }
  }
}

/// Runs `body`; what it throws becomes Error{input} that begins with `where`, a file.
template <class Body>
auto blame(const std::string& where, Body body) {
  try {
    return body();
  } catch (const Error& e) {
    fail(ErrorKind::input, where + ": " + e.what());
  }
}

std::string metadata_of(const Safetensors& file) {
  return fmt::format("{}: metadata {}", file.path().string(), kModelMetadataKey);
}

/// What a checkpoint says of its own structure; no name when it says nothing.
ModelConfig stored_structure(const Safetensors& file) {
  auto it = file.metadata().find(kModelMetadataKey);
  if (it == file.metadata().end()) return {};
  return blame(metadata_of(file), [&] {
    ModelConfig stored;
    read_config(config_from_json(parse_json(it->second, "the text"), "the text"), stored);
    OCCAM_CHECK(!stored.name.empty() && stored.checkpoint.empty(), ErrorKind::input,
                "this is no model section that Occam wrote");
    with_overrides(vit_shape(stored.name), stored).check();
    return stored;
  });
}

const Tensor* find_tensor(const NamedTensors& dict, std::string_view name) {
  for (const auto& [key, tensor] : dict)
    if (key == name) return &tensor;
  return nullptr;
}

bool is_head(std::string_view name) { return name.starts_with("head.") || name.starts_with("head_dist."); }

VitOptions vit_options(const ModelConfig& config) {
  const Recompute recompute = config.recompute == "mlps"     ? Recompute::mlps
                              : config.recompute == "blocks" ? Recompute::blocks
                                                             : Recompute::none;
  return {config.drop_path, config.dropout, recompute};
}

std::unique_ptr<VisionTransformer> open_checkpoint(const ModelConfig& config, uint64_t seed) {
  Safetensors file(config.checkpoint);
  const std::string& path = config.checkpoint;
  const ModelConfig stored = stored_structure(file);
  OCCAM_CHECK(!stored.name.empty() || !config.name.empty(), ErrorKind::usage,
              "model.name: {} does not say which model it holds; give its name", path);
  OCCAM_CHECK(stored.name.empty() || config.name.empty() || stored.name == config.name, ErrorKind::usage,
              "model.name: {} holds a {}, not a {}; leave the name out", path, stored.name, config.name);

  NamedTensors dict = tensors_of(file);
  if (looks_like_huggingface_vit(dict)) dict = blame(path, [&] { return remap_huggingface_vit(dict); });
  VitShape shape = with_overrides(vit_shape(stored.name.empty() ? config.name : stored.name), stored);
  if (const Tensor* head = find_tensor(dict, "head.weight"); head && head->rank() == 2)
    shape.classes = head->size(0);
  const int64_t file_classes = shape.classes;
  shape = with_overrides(shape, config);
  OCCAM_CHECK(shape.classes == file_classes || config.new_head, ErrorKind::usage,
              "model.classes: the head of {} has {} classes, not {}; model.new_head=true starts a new one",
              path, file_classes, shape.classes);

  auto model = std::make_unique<VisionTransformer>(shape, vit_options(config));
  model->set_model_name(stored.name.empty() ? config.name : stored.name);
  blame(metadata_of(file), [&] { apply_replacements(*model, stored.replace, {}); });
  if (config.new_head) {
    std::erase_if(dict, [](const auto& entry) { return is_head(entry.first); });
    for (const auto& [name, p] : model->named_parameters())
      if (is_head(name)) {
        p->initialize(hash_name(seed, name));
        dict.emplace_back(name, detach(p->master()));
      }
  }
  for (auto& [name, tensor] : dict)
    if (name == "pos_embed" && tensor.rank() == 3 && tensor.size(2) == shape.dim)
      tensor = blame(path,
                     [&, &t = tensor] { return resample_pos_embed(t, shape.prefix_tokens(), shape.grid()); });
  load_state_dict(*model, dict, {.source = path});
  return model;
}

}  // namespace

std::unique_ptr<VisionTransformer> make_model(const ModelConfig& config, uint64_t seed) {
  std::unique_ptr<VisionTransformer> model;
  if (!config.checkpoint.empty()) {
    model = open_checkpoint(config, seed);
  } else {
    OCCAM_CHECK(!config.name.empty(), ErrorKind::usage,
                "model.name: give a model's name, or a file that knows its own with model.checkpoint");
    model = std::make_unique<VisionTransformer>(with_overrides(vit_shape(config.name), config),
                                                vit_options(config));
    model->set_model_name(config.name);
    initialize(*model, seed);
  }
  apply_replacements(*model, config.replace, seed);
  return model;
}

ModelConfig structure_of(const VisionTransformer& model) {
  ModelConfig config;
  config.name = model.model_name();
  const VitShape shape = model.shape();
  for_each_size(config, shape, [](auto& setting, const auto& size) { setting = size; });
  for (int64_t i = 0; i < shape.depth; ++i) {
    const MixerChoice& choice = model.mixer_choice(i);
    if (choice == MixerChoice{}) continue;
    auto same = [&](const Replacement& r) { return r.with == choice.with && r.options == choice.options; };
    auto it = std::find_if(config.replace.begin(), config.replace.end(), same);
    if (it == config.replace.end())
      it = config.replace.insert(it, Replacement{{}, choice.with, choice.options});
    it->blocks.push_back(i);
  }
  return config;
}

std::string model_metadata(const VisionTransformer& model) {
  return dump_json_line(config_to_json(describe_config(structure_of(model))));
}

void save_model(const std::filesystem::path& path, const VisionTransformer& model,
                std::map<std::string, std::string> metadata) {
  metadata[kModelMetadataKey] = model_metadata(model);
  write_safetensors(path, state_dict(model), metadata);
}

}  // namespace occam
