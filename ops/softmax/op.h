#pragma once
#include "core/tensor.h"

namespace occam {

/// exp(x - max) / sum(exp(x - max)) along `axis`. Statistics in f32 for bf16 input.
Tensor softmax(const Tensor& x, int axis = -1);

}  // namespace occam
