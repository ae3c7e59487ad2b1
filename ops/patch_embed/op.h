#pragma once
#include "core/tensor.h"

namespace occam {

/// Non-overlapping patches through one linear map (Dosovitskiy et al., arXiv 2010.11929): the convolution
/// with kernel and stride p. x [b, c, H, W], w [d, c, p, p], b [d] or undefined -> [b, (H/p)(W/p), d],
/// patches row by row. Throws Error{shape} when p does not divide H and W.
Tensor patch_embed(const Tensor& x, const Tensor& w, const Tensor& b = {});

}  // namespace occam
