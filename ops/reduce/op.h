#pragma once
#include <vector>

#include "core/tensor.h"

namespace occam {

/// Sum over `axes` (empty: all). keepdim leaves size-1 axes. bf16 and f32 accumulate in f32 or wider.
Tensor sum(const Tensor& x, const std::vector<int>& axes = {}, bool keepdim = false);
Tensor mean(const Tensor& x, const std::vector<int>& axes = {}, bool keepdim = false);
/// Largest value along `axis`; the gradient goes to the first of equal ones.
Tensor max(const Tensor& x, int axis, bool keepdim = false);

namespace raw {
/// Undoes broadcasting: sums `t` down to `shape`, which must broadcast to t's. Outside the graph; `dtype` of
/// the result is `t`'s or f32.
Tensor sum_to_shape(const Tensor& t, const Shape& shape, DType dtype);
inline Tensor sum_to_shape(const Tensor& t, const Shape& shape) { return sum_to_shape(t, shape, t.dtype()); }
}  // namespace raw

}  // namespace occam
