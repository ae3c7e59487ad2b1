#pragma once
// Ragged forms of ops whose contract says [b, t, ...]: the rows [n, ...] of all sequences go in as one image
// of n tokens, the offsets as one more input `offsets?: s`.
#include "core/ragged.h"
#include "ops/view/op.h"

namespace occam {

/// x [n, ...] -> [1, n, ...] where there are sequences; else x itself.
inline Tensor as_image(const Tensor& x, const Sequences& rows) {
  if (!rows || !x) return x;
  Shape shape{1};
  for (int64_t size : x.shape()) shape.push_back(size);
  return reshape(x, shape);
}
/// And back.
inline Tensor as_rows(const Tensor& y, const Sequences& rows) {
  return rows ? reshape(y, y.shape().without(0)) : y;
}

/// For kernels, from a token input [b, t, ...] as the op sees it.
inline SequenceRows rows_of(const Shape& x, const Tensor& offsets, int64_t longest) {
  return offsets ? sequence_rows(offsets, longest, x[0] * x[1]) : SequenceRows{x[0], x[1]};
}

}  // namespace occam
