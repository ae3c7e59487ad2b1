#pragma once
#include "core/tensor.h"

namespace occam {

/// Elements start, start + step, ... (length of them) along `axis`: a view. A negative start counts from the
/// end.
Tensor slice(const Tensor& x, int axis, int64_t start, int64_t length, int64_t step = 1);
/// The slice at `index` without the axis.
Tensor select(const Tensor& x, int axis, int64_t index);

}  // namespace occam
