#pragma once
// The update of one element, the same text on the CPU and in kernels.
#include <cmath>

#include "core/half.h"

namespace occam::kernels {

/// Factor that clips a gradient of this norm; 1 when clip <= 0.
template <class T>
OCCAM_HD inline T clip_factor(T norm, T clip) {
  if (clip <= 0) return T(1);
  T factor = clip / (norm + T(1e-6));
  return factor < 1 ? factor : T(1);
}

/// Numbers derived from the betas in f64: 1 - 0.999f would be off by 5e-5 of itself.
template <class T>
struct AdamWNumbers {
  T beta1, beta2, rest1, rest2, log1, log2, eps;
  AdamWNumbers(double b1, double b2, double epsilon)
      : beta1(T(b1)),
        beta2(T(b2)),
        rest1(T(1 - b1)),
        rest2(T(1 - b2)),
        log1(T(std::log(b1))),
        log2(T(std::log(b2))),
        eps(T(epsilon)) {}
};

/// 1 - beta^updates
template <class T>
OCCAM_HD inline T bias_correction(T log_beta, T updates) {
  return -expm1(log_beta * updates);
}

template <class T>
OCCAM_HD inline void adamw_element(T& p, T& m, T& v, T g, T lr, T decay, const AdamWNumbers<T>& n,
                                   T correction1, T correction2) {
  p -= lr * decay * p;
  m = n.beta1 * m + n.rest1 * g;
  v = n.beta2 * v + n.rest2 * g * g;
  p -= lr * (m / correction1) / (sqrt(v / correction2) + n.eps);
}

template <class T>
OCCAM_HD inline void sgd_element(T& p, T& buffer, T g, T lr, T decay, T momentum) {
  buffer = momentum * buffer + (g + decay * p);
  p -= lr * buffer;
}

}  // namespace occam::kernels
