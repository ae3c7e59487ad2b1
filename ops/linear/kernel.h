#pragma once
#include <cstdint>

namespace occam::kernels {

/// y[r, c] = y[r, c] + bias[c]; with `gelu`, out = gelu of that (out may be y) while y keeps the sum when
/// `keep`.
template <class T>
void bias_gelu(T* y, const T* bias, T* out, int64_t rows, int64_t columns, bool gelu, bool keep,
               void* stream);

}  // namespace occam::kernels
