#pragma once
#include <cstdint>

#include "ops/gather/kernel.h"

namespace occam::kernels {

/// y[o, index, i] += src[o, k, i], in the order of k at each place. y is f32 whatever src is.
template <class T>
void scatter_add(const T* src, const int64_t* indices, float* y, const IndexPlan& plan, void* stream);

}  // namespace occam::kernels
