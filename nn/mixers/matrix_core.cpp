#include "nn/mixers/matrix_core.h"

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

}  // namespace occam
