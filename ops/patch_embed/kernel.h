#pragma once
#include <cstdint>

#include "core/half.h"

namespace occam::kernels {

struct PatchGrid {
  int64_t b, c, rows, columns, p;  // grid of rows x columns patches of p x p pixels
  OCCAM_HD int64_t count() const { return b * rows * columns * c * p * p; }
  /// Pixel of the image tensor behind element `i` of the patch matrix [b rows columns, c p p].
  /// Index: int64_t, or uint32_t where count() fits, whose divisions are several times faster.
  template <class Index = int64_t>
  OCCAM_HD int64_t pixel(Index i) const {
    const auto side = Index(p), wide = Index(columns), high = Index(rows), channels = Index(c);
    Index line = i / side, x = i - line * side, block = line / side, y = line - block * side;
    Index patch = block / channels, channel = block - patch * channels;
    Index strip = patch / wide, column = patch - strip * wide, image = strip / high,
          row = strip - image * high;
    return ((int64_t(image) * c + channel) * rows * p + row * p + y) * columns * p + column * p + x;
  }
};

/// patches[i] = image[grid.pixel(i)], or the reverse.
template <class T>
void patches_from_image(const T* image, T* patches, PatchGrid grid, void* stream);
template <class T>
void image_from_patches(const T* patches, T* image, PatchGrid grid, void* stream);

}  // namespace occam::kernels
