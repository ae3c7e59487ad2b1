#pragma once
#include "core/tensor.h"

namespace occam {

/// Position embeddings [1, prefix + old*old, c] for another square grid: [1, prefix + grid*grid, c] in f32.
/// The prefix rows are kept, the others resampled as an image by antialiased bicubic interpolation, as timm's
/// resample_abs_pos_embed does. The input itself when the grid is the same. Throws Error{input} when the rows
/// make no square grid.
Tensor resample_pos_embed(const Tensor& embed, int64_t prefix, int64_t grid);

}  // namespace occam
