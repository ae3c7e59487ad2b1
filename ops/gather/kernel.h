#pragma once
#include <cstdint>

namespace occam::kernels {

/// Sizes of a gather or a scatter along the middle one of three axes. x is [outer, size, inner]; y (of a
/// scatter the source) is [outer, n, inner]. There are n indices for all, or with `each` one for every
/// element of y.
struct IndexPlan {
  int64_t outer = 1, size = 1, n = 1, inner = 1;
  bool each = false;
};

/// y[o, k, i] = x[o, index, i]; NaN where the index is outside [0, size).
template <class T>
void gather(const T* x, const int64_t* indices, T* y, const IndexPlan& plan, void* stream);

}  // namespace occam::kernels
