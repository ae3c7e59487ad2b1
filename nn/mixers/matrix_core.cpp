#include "nn/mixers/matrix_core.h"

#include <cmath>

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

Init of_uniform(double (*f)(double)) {
  return [f](const Tensor& t, uint64_t key) {
    init::uniform(0.5)(t, key);
    float* p = t.data<float>();
    for (int64_t i = 0; i < t.numel(); ++i) p[i] = float(f(double(p[i]) + 0.5));
  };
}

Init new_step_bias() {
  return of_uniform([](double u) {
    const double step = 0.001 * std::pow(100, u);
    return step + std::log(-std::expm1(-step));  // the inverse of softplus
  });
}

Init new_rate_log() {
  return of_uniform([](double u) { return std::log(1 + 15 * u); });
}

}  // namespace occam
