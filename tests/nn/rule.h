#pragma once
// Weights and images by rule, the same bits as tests/tools/timm_logits.py, which states the rule.
#include <cmath>
#include <string>
#include <string_view>

#include "nn/module.h"

namespace occam::rule {

inline uint64_t key(std::string_view text) {
  uint64_t k = 0xCBF29CE484222325u;
  for (char c : text) k = (k ^ uint8_t(c)) * 0x100000001B3u;
  return k;
}

inline Tensor tensor(const std::string& text, const Shape& shape, double offset, double a) {
  const uint64_t k = key(text);
  Tensor t = empty(shape);
  float* p = t.data<float>();
  for (int64_t i = 0, n = t.numel(); i < n; ++i) {
    uint64_t z = k + uint64_t(i + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    p[i] = float(offset + a * (double(z >> 40) / 0x1p23 - 1));
  }
  return t;
}

inline Tensor weight(const std::string& model, const std::string& name, const Shape& shape) {
  const std::string text = model + "/" + name;
  if (name.ends_with("bias")) return tensor(text, shape, 0, 0.1);
  if (name == "cls_token" || name == "dist_token" || name == "pos_embed") return tensor(text, shape, 0, 0.5);
  if (shape.rank() == 1) return tensor(text, shape, 1, 0.25);
  return tensor(text, shape, 0, std::sqrt(3.0 / double(shape.numel() / shape[0])));
}

inline Tensor images(const std::string& model, const Shape& shape) {
  return tensor(model + "/images", shape, 0, std::sqrt(3.0));
}

inline void fill(Module& module, const std::string& model) {
  for (auto& [name, p] : module.named_parameters()) p->set_values(weight(model, name, p->shape()));
}

}  // namespace occam::rule
