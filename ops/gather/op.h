#pragma once
#include "core/tensor.h"

namespace occam {

/// Rows of x by number: y[..., i, ...] = x[..., indices[i], ...] on `axis`. x floating, indices i64 [n]; y
/// has x's shape with n in place of the axis. An index may occur any number of times. On the CPU an index
/// outside [0, size of the axis) is Error{shape}; on a GPU what it selects is NaN.
Tensor index_select(const Tensor& x, int axis, const Tensor& indices);

/// One index for each element: for axis 1 of three, y[i, j, k] = x[i, indices[i, j, k], k]. indices i64 has
/// x's rank and sizes, but for `axis`; y has the shape of indices. Errors as above.
Tensor gather(const Tensor& x, int axis, const Tensor& indices);

namespace raw {
/// Either of the two outside the graph: the first when indices have one axis.
Tensor gather(const Tensor& x, int axis, const Tensor& indices);
}  // namespace raw

}  // namespace occam
