#pragma once
// Sizes of a vision transformer and timm's names for them.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/shape.h"
#include "nn/mixers/mixer.h"

namespace occam {

struct VitShape {
  int64_t image_size = 224;
  int64_t patch = 16;
  int64_t channels = 3;
  int64_t dim = 192;
  int64_t depth = 12;
  int64_t heads = 3;
  double mlp_ratio = 4;
  int64_t classes = 1000;
  bool distilled = false;  // a distillation token and a second head (DeiT)

  int64_t grid() const { return image_size / patch; }
  int64_t prefix_tokens() const { return distilled ? 2 : 1; }
  int64_t tokens() const { return grid() * grid() + prefix_tokens(); }
  int64_t mlp_hidden() const { return int64_t(double(dim) * mlp_ratio); }
  MixerShape mixer() const { return {dim, heads, grid(), grid(), prefix_tokens()}; }
  /// One image: [1, channels, image_size, image_size].
  Shape image() const { return {1, channels, image_size, image_size}; }
  /// Throws Error{usage} for sizes that make no model.
  void check() const;
  bool operator==(const VitShape&) const = default;
};

/// The free form's name.
inline constexpr std::string_view kFreeFormName = "vit";
/// timm's names that are known, "vit" left out.
const std::vector<std::string>& vit_names();
/// Sizes of a named model (1000 classes), of "vit" the defaults above. Throws Error{usage} listing near
/// names.
VitShape vit_shape(std::string_view name);

}  // namespace occam
