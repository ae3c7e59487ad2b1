#pragma once
#include <cstdint>

namespace occam::kernels {

/// y = log softmax of each of `rows` contiguous rows of `n` elements.
template <class T>
void log_softmax_fwd(const T* x, T* y, int64_t rows, int64_t n, void* stream);
/// gx = gy - exp(y) sum(gy) by row.
template <class T>
void log_softmax_bwd(const T* y, const T* gy, T* gx, int64_t rows, int64_t n, void* stream);

}  // namespace occam::kernels
