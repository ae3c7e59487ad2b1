#pragma once
#include <cstdint>

namespace occam::kernels {

/// y[i] = x[i] * scale where the uniform number of element i / group at *step is at least p, else 0.
template <class T>
void dropout(const T* x, T* y, int64_t count, int64_t group, uint64_t key, const int64_t* step, float p,
             void* stream);

}  // namespace occam::kernels
