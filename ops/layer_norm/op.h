#pragma once
#include <utility>

#include "core/tensor.h"
#include "ops/dropout/op.h"

namespace occam {

/// (x - mean) / sqrt(variance + eps) * weight + bias over the last axis (Ba et al., arXiv 1607.06450); the
/// variance is the biased one. x [..., c], weight and bias [c]. Statistics in f32 for bf16 input.
Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps = 1e-5);

/// The residual sum and its norm in one pass: s = x + drop(branch) and layer_norm(s, weight, bias). x and
/// branch [..., c] -> {s, normalised}, both [..., c]. s is rounded to x's dtype before it is normalised.
std::pair<Tensor, Tensor> add_layer_norm(const Tensor& x, const Tensor& branch, const Tensor& weight,
                                         const Tensor& bias, double eps = 1e-5, const BranchDrop& drop = {});

}  // namespace occam
