#pragma once
#include "core/tensor.h"

namespace occam {

/// x with the elements of src added at given places of `axis`. indices i64 [n]: whole rows,
/// y[..., indices[k], ...] += src[..., k, ...]; or indices of src's shape: one for each element, for axis 1
/// of three y[i, indices[i, j, k], k] += src[i, j, k]. src has x's sizes, but n on `axis`. An index may occur
/// any number of times; the sum of one place is taken in the order of k, so results repeat bitwise. On the
/// CPU an index outside [0, size of the axis) is Error{shape}; on a GPU it makes the nearest place NaN.
Tensor scatter_add(const Tensor& x, int axis, const Tensor& indices, const Tensor& src);

namespace raw {
/// The same outside the graph; all contiguous, `axis` in [0, rank).
Tensor scatter_add(const Tensor& x, int axis, const Tensor& indices, const Tensor& src);
}  // namespace raw

}  // namespace occam
