#pragma once
#include <vector>

#include "core/tensor.h"

namespace occam {

// Differentiable views: no data moves while strides allow it.

/// One size may be -1.
Tensor reshape(const Tensor& x, const Shape& shape);
Tensor permute(const Tensor& x, const std::vector<int>& axes);
Tensor transpose(const Tensor& x, int a, int b);
/// Broadcasts size-1 axes and adds leading ones.
Tensor expand(const Tensor& x, const Shape& shape);

}  // namespace occam
