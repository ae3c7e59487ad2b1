#pragma once
#include "core/tensor.h"
#include "ops/linear/op.h"

namespace occam {

/// What stands round a linear layer; undefined tensors: it does not.
struct LinearSurroundings {
  Tensor norm_weight, norm_bias;  // [i]: x is normalised first as by layer_norm with `eps`
  double eps = 1e-5;
  LinearActivation activation = LinearActivation::none;
  Tensor residual;  // [..., o]: added last
};

/// residual + linear(layer_norm(x), w, b, activation), x [..., i], w [o, i], b [o] or undefined -> [..., o].
/// Where no gradients are recorded and x has few rows on a GPU whose kernel takes them, as one kernel; else
/// as these ops.
Tensor fused_linear(const Tensor& x, const Tensor& w, const Tensor& b, const LinearSurroundings& around);

/// Are x's rows as few as pays: for whom else has a form for many? False wherever that kernel is not.
bool has_few_rows(const Tensor& x);

}  // namespace occam
