#pragma once
#include "core/tensor.h"

namespace occam {

/// gelu(x w1^T + b1) w2^T + b2, the MLP of a transformer block with the exact GELU as one op: x [..., i],
/// w1 [h, i], w2 [o, h], biases b1 [h], b2 [o] or undefined -> [..., o]. The same values as two calls of
/// linear(); backward fuses the GELU's gradient with the product before it. With `recompute` the hidden
/// layer, two tensors of [..., h], is not kept for backward but made again there from x: the same bits for
/// one product more.
Tensor mlp(const Tensor& x, const Tensor& w1, const Tensor& b1, const Tensor& w2, const Tensor& b2,
           bool recompute = false);

}  // namespace occam
