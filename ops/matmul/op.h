#pragma once
#include "core/tensor.h"

namespace occam {

/// Matrix products of the last two axes: a [..., m, k] times b [..., k, n] -> [..., m, n]. With transpose_a,
/// a is stored [..., k, m]; with transpose_b, b is stored [..., n, k]. The axes before the last two broadcast
/// as in NumPy. Products accumulate in f32 for bf16 input. Throws Error{shape}: fewer than two axes, inner
/// sizes that differ, batch axes that do not broadcast.
Tensor matmul(const Tensor& a, const Tensor& b, bool transpose_a = false, bool transpose_b = false);

}  // namespace occam
