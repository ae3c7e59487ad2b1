#include "ops/reduce/add_rows.h"

#include "core/vmath.h"

namespace occam {

template <class T>
OCCAM_VECTORIZED void add_rows_of(const T* x, int64_t rows, int64_t stride, int64_t count, double* total) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < count; ++i) total[i] += x[r * stride + i];
}

template <class T>
void add_rows(const T* x, int64_t rows, int64_t stride, int64_t count, double* total) {
  add_rows_of(x, rows, stride, count, total);
}

template void add_rows(const float*, int64_t, int64_t, int64_t, double*);
template void add_rows(const double*, int64_t, int64_t, int64_t, double*);

}  // namespace occam
