#pragma once
#include <vector>

#include "core/tensor.h"

namespace occam {

/// Elements start, start + step, ... (length of them) along `axis`: a view. A negative start counts from the
/// end.
Tensor slice(const Tensor& x, int axis, int64_t start, int64_t length, int64_t step = 1);
/// x in two or three parts along `axis`, views whose gradients are put together again: unlike slices, which
/// add tensors of x's size. Throws Error{shape} when `sizes` do not sum to the axis.
std::vector<Tensor> split(const Tensor& x, int axis, const std::vector<int64_t>& sizes);
/// The slice at `index` without the axis.
Tensor select(const Tensor& x, int axis, int64_t index);

}  // namespace occam
