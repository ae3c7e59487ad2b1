// Names of Hugging Face's ViT and DeiT classifiers as timm's.
#include <array>
#include <map>

#include "core/check.h"
#include "nn/state.h"

namespace occam {

namespace {

/// "vit." or "deit." removed; empty when the name has neither.
std::string_view without_family(std::string_view name) {
  for (std::string_view family : {"vit.", "deit."})
    if (name.starts_with(family)) return name.substr(family.size());
  return {};
}

/// Names outside the encoder layers, and the parts of a layer after "encoder.layer.<i>.".
const std::map<std::string_view, std::string_view> kOutside{
    {"embeddings.cls_token", "cls_token"},
    {"embeddings.distillation_token", "dist_token"},
    {"embeddings.position_embeddings", "pos_embed"},
    {"embeddings.patch_embeddings.projection.weight", "patch_embed.proj.weight"},
    {"embeddings.patch_embeddings.projection.bias", "patch_embed.proj.bias"},
    {"layernorm.weight", "norm.weight"},
    {"layernorm.bias", "norm.bias"}};
const std::map<std::string_view, std::string_view> kHeads{
    {"classifier.", "head."}, {"cls_classifier.", "head."}, {"distillation_classifier.", "head_dist."}};
const std::map<std::string_view, std::string_view> kInLayer{{"attention.output.dense.", "attn.proj."},
                                                            {"intermediate.dense.", "mlp.fc1."},
                                                            {"output.dense.", "mlp.fc2."},
                                                            {"layernorm_before.", "norm1."},
                                                            {"layernorm_after.", "norm2."}};
constexpr std::array<std::string_view, 3> kSplit{"attention.attention.query.", "attention.attention.key.",
                                                 "attention.attention.value."};

/// Stacks query, key and value along axis 0.
Tensor join(const std::array<Tensor, 3>& parts, const std::string& name) {
  for (const Tensor& part : parts)
    OCCAM_CHECK(part && part.rank() >= 1 && part.shape() == parts[0].shape(), ErrorKind::input,
                "{}: query, key and value must all be there and have one shape", name);
  const int64_t rows = parts[0].size(0);
  Tensor joined = empty(parts[0].shape().with(0, 3 * rows));
  for (int i = 0; i < 3; ++i) raw::slice(joined, 0, i * rows, rows).copy_(parts[size_t(i)]);
  return joined;
}

}  // namespace

bool looks_like_huggingface_vit(const NamedTensors& dict) {
  for (const auto& [name, tensor] : dict)
    if (without_family(name).starts_with("embeddings.")) return true;
  return false;
}

NamedTensors remap_huggingface_vit(const NamedTensors& dict) {
  NamedTensors out;
  std::map<std::string, std::array<Tensor, 3>> split;
  for (const auto& [name, tensor] : dict) {
    std::string renamed = name;
    const std::string_view inner = without_family(name);
    constexpr std::string_view layer = "encoder.layer.";
    if (auto it = kOutside.find(inner); it != kOutside.end()) renamed = it->second;
    for (const auto& [from, to] : kHeads)
      if (name.starts_with(from)) renamed = std::string(to) + name.substr(from.size());
    if (inner.starts_with(layer)) {
      const size_t dot = inner.find('.', layer.size());
      if (dot == std::string_view::npos) continue;
      const std::string block = "blocks." + std::string(inner.substr(layer.size(), dot - layer.size())) + ".";
      const std::string_view part = inner.substr(dot + 1);
      for (const auto& [from, to] : kInLayer)
        if (part.starts_with(from)) renamed = block + std::string(to) + std::string(part.substr(from.size()));
      bool is_split = false;
      for (size_t i = 0; i < kSplit.size(); ++i) {
        if (!part.starts_with(kSplit[i])) continue;
        split[block + "attn.qkv." + std::string(part.substr(kSplit[i].size()))][i] = tensor;
        is_split = true;
      }
      if (is_split) continue;
    }
    out.emplace_back(renamed, tensor);
  }
  for (const auto& [name, parts] : split) out.emplace_back(name, join(parts, name));
  return out;
}

}  // namespace occam
