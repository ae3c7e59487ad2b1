#pragma once
#include "ops/attention_stats/kernel.h"

namespace occam {

/// CPU counterparts of kernel.h, for float and double.
template <class T>
void attention_stats_cpu(const kernels::MapSource<T>& source, const kernels::MapLayout& layout, T* out);
template <class T>
void attention_moments_cpu(const kernels::MapSource<T>& source, int64_t t, T* out);

}  // namespace occam
