#pragma once
#include "core/tensor.h"

namespace occam {

/// A linear layer of its own for every group: y[..., g, :] = w[g] x[..., g, :] + b[g]. x [..., h, i],
/// w [h, o, i], b [h, o] or absent -> [..., h, o]. The same as one linear layer on the concatenation with a
/// block-diagonal weight, at 1/h of the work. Xie et al., "Aggregated Residual Transformations", 2017
/// (grouped convolution of width 1).
Tensor grouped_linear(const Tensor& x, const Tensor& w, const Tensor& b = {});

}  // namespace occam
