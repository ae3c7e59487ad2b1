#pragma once
#include "core/tensor.h"

namespace occam {

/// (x - mean) / sqrt(variance + eps) * weight + bias over the last axis (Ba et al., arXiv 1607.06450); the
/// variance is the biased one. x [..., c], weight and bias [c]. Statistics in f32 for bf16 input.
Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps = 1e-5);

}  // namespace occam
