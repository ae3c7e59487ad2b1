#pragma once
// An element of the gates, the same on the host and in kernels.
#include <cmath>

#include "ops/scan_gates/kernel.h"

namespace occam::kernels {

/// log(1 + e^x) without overflow.
template <class A>
OCCAM_HD A softplus_of(A x) {
  return (x > 0 ? x : A(0)) + std::log1p(std::exp(x > 0 ? -x : x));
}
template <class A>
OCCAM_HD A logistic_of(A x) {
  return A(1) / (A(1) + std::exp(-x));
}

template <class T, class A>
OCCAM_HD void softplus_gates_at(const SoftplusGatesArgs<T, A>& a, int64_t n) {
  const int64_t which = n % (2 * a.s.h);
  const A scale = softplus_of(A(a.x[n]) + a.bias[which]);
  a.scale[n] = scale, a.log_decay[n] = -std::exp(a.a_log[which]) * scale;
}
template <class T, class A>
OCCAM_HD void softplus_gates_back_at(const SoftplusGatesArgs<T, A>& a, int64_t n) {
  const int64_t which = n % (2 * a.s.h);
  const A x = A(a.x[n]) + a.bias[which], rate = -std::exp(a.a_log[which]);
  const A gscale = a.gscale != nullptr ? a.gscale[n] : A(0),
          glog = a.glog_decay != nullptr ? a.glog_decay[n] : A(0);
  a.gx[n] = (gscale + glog * rate) * logistic_of(x);
  a.gz[n] = glog * rate * softplus_of(x);
}

/// m before element n in its direction.
template <class T, class A>
OCCAM_HD A maximum_before(const ExponentialGatesArgs<T, A>& a, int64_t n) {
  const int64_t width = 2 * a.s.h, row = n / width;
  if (row >= a.s.used()) return A(0);
  const int64_t sequence = a.s.sequence_of(row), begin = a.s.begin(sequence);
  const bool forward = n / a.s.h % 2 == 0;
  if (row == (forward ? begin : begin + a.s.length(sequence) - 1)) return A(0);
  return a.m[forward ? n - width : n + width];
}
template <class T, class A>
OCCAM_HD void exponential_gates_at(const ExponentialGatesArgs<T, A>& a, int64_t n) {
  const A m = a.m[n];
  a.scale[n] = std::exp(A(a.i[n]) - m), a.floor[n] = std::exp(-m);
  a.log_decay[n] = maximum_before(a, n) - m - softplus_of(-A(a.f[n]));
}
template <class T, class A>
OCCAM_HD void exponential_gates_back_at(const ExponentialGatesArgs<T, A>& a, int64_t n) {
  a.gi[n] = a.gscale != nullptr ? a.gscale[n] * std::exp(A(a.i[n]) - a.m[n]) : A(0);
  a.gf[n] = a.glog_decay != nullptr ? a.glog_decay[n] * logistic_of(-A(a.f[n])) : A(0);
}

}  // namespace occam::kernels
