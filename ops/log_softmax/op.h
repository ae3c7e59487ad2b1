#pragma once
#include "core/tensor.h"

namespace occam {

/// x - max - log(sum(exp(x - max))) along the last axis, the only one `axis` may name: the logarithm of
/// softmax without its underflow. Statistics in f32 for bf16 input. Throws Error{shape}: another axis, a last
/// axis of size 0.
Tensor log_softmax(const Tensor& x, int axis = -1);

}  // namespace occam
