#pragma once
#include <cstdint>

namespace occam {

/// total[i] += the sum over `rows` rows, `stride` apart, of x[i], for i < count.
template <class T>
void add_rows(const T* x, int64_t rows, int64_t stride, int64_t count, double* total);

}  // namespace occam
