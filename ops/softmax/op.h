#pragma once
#include "core/tensor.h"

namespace occam {

/// exp(x - max) / sum(exp(x - max)) along the last axis, the only one `axis` may name. Statistics in f32 for
/// bf16 input. Throws Error{shape}: another axis, a last axis of size 0.
Tensor softmax(const Tensor& x, int axis = -1);

}  // namespace occam
