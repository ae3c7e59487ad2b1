#pragma once
#include <cstdint>

#include "core/half.h"

namespace occam::kernels {

struct PatchGrid {
  int64_t b, c, rows, columns, p;  // grid of rows x columns patches of p x p pixels
  OCCAM_HD int64_t count() const { return b * rows * columns * c * p * p; }
  /// Pixel of the image tensor behind element `i` of the patch matrix [b rows columns, c p p].
  OCCAM_HD int64_t pixel(int64_t i) const {
    int64_t x = i % p, y = i / p % p, channel = i / (p * p) % c, patch = i / (p * p * c);
    int64_t column = patch % columns, row = patch / columns % rows, image = patch / (columns * rows);
    return ((image * c + channel) * rows * p + row * p + y) * columns * p + column * p + x;
  }
};

/// patches[i] = image[grid.pixel(i)], or the reverse.
template <class T>
void patches_from_image(const T* image, T* patches, PatchGrid grid, void* stream);
template <class T>
void image_from_patches(const T* patches, T* image, PatchGrid grid, void* stream);

}  // namespace occam::kernels
