#include "nn/mixers/matrix_core.h"

#include "ops/ragged.h"
#include "ops/slice/op.h"
#include "ops/view/op.h"

namespace occam {

HeadQkv split_qkv(const Tensor& qkv, int64_t n) {
  const auto parts = split(qkv, 3, {n, n, qkv.size(3) - 2 * n});
  return {parts[0], parts[1], parts[2]};
}

Tensor for_both(const Tensor& x) {
  const Shape& s = x.shape();
  return reshape(x, {s[0], s[1], 1, s[2], s[3]});
}

Tensor scan_of(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_decay,
               MatrixScanOptions options, const Sequences& rows) {
  for (Tensor* t : {&options.scale, &options.floor, &options.diagonal})
    if (*t) *t = as_rows(*t, rows);
  return as_image(matrix_scan(as_rows(q, rows), as_rows(k, rows), as_rows(v, rows), as_rows(log_decay, rows),
                              options, rows),
                  rows);
}

}  // namespace occam
