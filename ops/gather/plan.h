#pragma once
// What gather and scatter share: checks of indices, and the shape folded to three axes.
#include "core/tensor.h"
#include "ops/gather/kernel.h"

namespace occam {

/// For x of `shape`. `axis` is in [0, rank). Throws Error{shape} in the name of `op`: indices that are not
/// i64, do not fit the shape, or (on the CPU) lie outside the axis.
kernels::IndexPlan plan_indices(const char* op, const Shape& shape, int axis, const Tensor& indices);

/// Place of the index of element [o, k, i].
inline int64_t index_at(const kernels::IndexPlan& p, int64_t o, int64_t k, int64_t i) {
  return p.each ? (o * p.n + k) * p.inner + i : k;
}

}  // namespace occam
