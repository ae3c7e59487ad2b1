#pragma once
#include "core/tensor.h"

namespace occam {

/// What a transformer begins with: the tokens of each image behind `prefix`, which is the same for all, plus
/// the embedding of their places. x [b, n, c], prefix [p, c], places [p + n, c] -> [b, p + n, c].
Tensor token_embed(const Tensor& x, const Tensor& prefix, const Tensor& places);

}  // namespace occam
