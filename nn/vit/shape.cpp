#include "nn/vit/shape.h"

#include "core/check.h"
#include "core/config.h"

namespace occam {

namespace {

struct Named {
  std::string name;
  VitShape shape;
};

const std::vector<Named>& table() {
  static const std::vector<Named> models = [] {
    struct Size {
      const char* name;
      int64_t dim, heads;
    };
    std::vector<Named> t;
    for (const char* family : {"vit", "deit"})
      for (Size s : {Size{"tiny", 192, 3}, Size{"small", 384, 6}, Size{"base", 768, 12}}) {
        VitShape shape{.dim = s.dim, .heads = s.heads};
        t.push_back({fmt::format("{}_{}_patch16_224", family, s.name), shape});
        shape.distilled = true;
        if (t.back().name.starts_with("deit"))
          t.push_back({fmt::format("deit_{}_distilled_patch16_224", s.name), shape});
      }
    t.push_back({"deit_base_patch16_384", {.image_size = 384, .dim = 768, .heads = 12}});
    return t;
  }();
  return models;
}

}  // namespace

const std::vector<std::string>& vit_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> n;
    for (const Named& m : table()) n.push_back(m.name);
    return n;
  }();
  return names;
}

VitShape vit_shape(std::string_view name) {
  if (name == kFreeFormName) return {};
  for (const Named& m : table())
    if (m.name == name) return m.shape;
  std::vector<std::string> known = vit_names();
  known.emplace_back(kFreeFormName);
  fail(ErrorKind::usage, fmt::format("no model is named \"{}\"; {}", name, name_hint(name, known)));
}

void VitShape::check() const {
  // Far above any model, and low enough that products of two sizes stay far from overflow.
  constexpr int64_t most = int64_t{1} << 20;
  for (int64_t size : {image_size, patch, channels, dim, depth, heads, classes})
    OCCAM_CHECK(size >= 1 && size <= most, ErrorKind::usage, "model: a size of {} is not from 1 to {}", size,
                most);
  OCCAM_CHECK(mlp_ratio > 0 && mlp_ratio <= 1024 && mlp_hidden() >= 1, ErrorKind::usage,
              "model.mlp_ratio: {} gives no hidden layer, or one above 1024 times dim", mlp_ratio);
  OCCAM_CHECK(image_size % patch == 0, ErrorKind::usage,
              "model.image_size: {} is no multiple of model.patch {}", image_size, patch);
  OCCAM_CHECK(dim % heads == 0, ErrorKind::usage, "model.dim: {} channels cannot be split into {} heads", dim,
              heads);
}

}  // namespace occam
