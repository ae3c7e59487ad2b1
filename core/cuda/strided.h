#pragma once
// Walks N strided operands of one shape element by element, with as few axes as their strides allow.
#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "core/half.h"
#include "core/shape.h"

namespace occam::cuda {

/// Axes of size 1 are gone and neighbours that every operand walks as one are merged. Passed to kernels by
/// value.
template <int N>
struct Strided {
  int rank = 0;
  int64_t count = 0;  // elements
  int64_t sizes[kMaxDims] = {};
  int64_t strides[N][kMaxDims] = {};  // in elements

  bool contiguous(int operand) const { return rank == 0 || (rank == 1 && strides[operand][0] == 1); }

  /// Element offset of each operand at place `i` of the walk. Index is uint32_t (count below 2^31; the
  /// divisions are several times faster) or int64_t; offsets are always 64-bit.
  template <class Index>
  OCCAM_HD void offsets(Index i, int64_t (&offset)[N]) const {
    for (int n = 0; n < N; ++n) offset[n] = 0;
    for (int axis = rank - 1; axis >= 0; --axis) {
      Index rest = axis == 0 ? Index(0) : Index(i / Index(sizes[axis]));
      int64_t place = int64_t(i - rest * Index(sizes[axis]));
      for (int n = 0; n < N; ++n) offset[n] += place * strides[n][axis];
      i = rest;
    }
  }
};

inline bool fits_uint32(int64_t count) { return count < (int64_t(1) << 31); }

/// Orders the axes so that operand 0, the one written, is walked along its smallest strides innermost.
template <int N>
Strided<N> make_strided(const Shape& shape, const Shape* const (&operands)[N]) {
  Strided<N> walk;
  walk.count = shape.numel();
  if (walk.count == 0) return walk;
  int axes[kMaxDims];
  int kept = 0;
  for (int axis = 0; axis < shape.rank(); ++axis)
    if (shape[axis] != 1) axes[kept++] = axis;
  const Shape& written = *operands[0];
  std::stable_sort(axes, axes + kept,
                   [&](int a, int b) { return std::llabs(written[a]) > std::llabs(written[b]); });
  for (int k = 0; k < kept; ++k) {
    const int64_t size = shape[axes[k]];
    const int last = walk.rank - 1;
    bool merges = walk.rank > 0;
    for (int n = 0; merges && n < N; ++n) merges = walk.strides[n][last] == (*operands[n])[axes[k]] * size;
    const int axis = merges ? last : walk.rank++;
    walk.sizes[axis] = merges ? walk.sizes[axis] * size : size;
    for (int n = 0; n < N; ++n) walk.strides[n][axis] = (*operands[n])[axes[k]];
  }
  return walk;
}

}  // namespace occam::cuda
