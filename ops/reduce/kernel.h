#pragma once
#include <cstdint>

namespace occam::kernels {

/// y[o, i] = sum over k of x[o, k, i], x contiguous [outer, n, inner]. `scratch` holds reduce_scratch()
/// floats.
template <class T, class Y>
void reduce_sum(const T* x, Y* y, int64_t outer, int64_t n, int64_t inner, float* scratch, void* stream);
/// Floats of scratch memory; 0 when none is needed.
template <class T>
int64_t reduce_scratch(const T* x, int64_t outer, int64_t n, int64_t inner);

/// y[o, i] = max over k, index[o, i] = first k that has it.
template <class T>
void reduce_max(const T* x, T* y, int64_t* index, int64_t outer, int64_t n, int64_t inner, void* stream);
/// gx zero but for gy at the index.
template <class T>
void reduce_max_bwd(const T* gy, const int64_t* index, T* gx, int64_t outer, int64_t n, int64_t inner,
                    void* stream);

}  // namespace occam::kernels
