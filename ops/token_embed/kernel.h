#pragma once
#include <cstdint>

#include "core/half.h"

namespace occam::kernels {

/// y[i, t] = (t < p ? prefix[t] : x[i, t - p]) + places[t]; x [b,n,c], y [b,p+n,c].
template <class T>
void token_embed(const T* x, const T* prefix, const T* places, T* y, int64_t b, int64_t p, int64_t n,
                 int64_t c, void* stream);

}  // namespace occam::kernels
