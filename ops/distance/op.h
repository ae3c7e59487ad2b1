#pragma once
#include "core/tensor.h"

namespace occam {

/// Mean of (x - y)^2 over all elements -> scalar, f32 (f64 for f64). x and y of one shape.
Tensor mse(const Tensor& x, const Tensor& y);
/// Mean over rows of 1 - x.y / max(|x| |y|, 1e-8), a row being the last axis (channels) -> scalar.
Tensor cosine_distance(const Tensor& x, const Tensor& y);

}  // namespace occam
