#pragma once
#include "core/tensor.h"

namespace occam {

enum class LinearActivation : uint8_t { none, gelu };

/// y = activation(x w^T + b); x [..., i], w [o, i] (out, in), b [o] or undefined -> [..., o]. gelu is the
/// exact one.
Tensor linear(const Tensor& x, const Tensor& w, const Tensor& b = {},
              LinearActivation activation = LinearActivation::none);

}  // namespace occam
