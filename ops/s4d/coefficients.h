#pragma once
// From parameters to coefficients and back, one state at a time: the same code on both devices.
#include <cmath>

#include "core/half.h"

namespace occam::kernels {

template <class A>
struct Complex {
  A re = 0, im = 0;
};
template <class A>
OCCAM_HD Complex<A> operator*(const Complex<A>& a, const Complex<A>& b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
template <class A>
OCCAM_HD Complex<A> operator+(const Complex<A>& a, const Complex<A>& b) {
  return {a.re + b.re, a.im + b.im};
}
template <class A>
OCCAM_HD Complex<A> operator*(A a, const Complex<A>& b) {
  return {a * b.re, a * b.im};
}
template <class A>
OCCAM_HD Complex<A> conj(const Complex<A>& a) {
  return {a.re, -a.im};
}
template <class A>
OCCAM_HD Complex<A> reciprocal(const Complex<A>& a) {
  const A square = a.re * a.re + a.im * a.im;
  return {a.re / square, -a.im / square};
}

/// A state's rate A, its factor exp(dt A) and hold = (exp(dt A) - 1) / A.
template <class A>
struct S4dState {
  A dt;
  Complex<A> rate, factor, hold;
  OCCAM_HD S4dState(A log_dt, A a_log, A a_im) : dt(std::exp(log_dt)), rate{-std::exp(a_log), a_im} {
    const A re = dt * rate.re, im = dt * rate.im, size = std::exp(re);
    factor = {size * std::cos(im), size * std::sin(im)};
    // exp(z) - 1 without cancellation: expm1(re) cos(im) - 2 sin^2(im / 2) is its real part.
    const A half = std::sin(im / 2);
    hold = Complex<A>{std::expm1(re) * std::cos(im) - 2 * half * half, factor.im} * reciprocal(rate);
  }
};

/// Gradients, of a complex number z as dL/d re z + i dL/d im z: then z = a b gives conj(b) dz to a.
template <class A>
struct S4dStateGrads {
  A log_dt, a_log, a_im;
  Complex<A> out;
  /// `by_x` = sum gy x and `by_slope` = sum gy dx / d factor, where y = Re(2 out hold x).
  OCCAM_HD S4dStateGrads(const S4dState<A>& s, const Complex<A>& out_value, const Complex<A>& by_x,
                         const Complex<A>& by_slope) {
    const Complex<A> g_weight = A(2) * conj(by_x);  // of out hold
    out = g_weight * conj(s.hold);
    const Complex<A> g_hold = g_weight * conj(out_value);
    const Complex<A> inverse = conj(reciprocal(s.rate));
    const Complex<A> g_factor = A(2) * conj(out_value * s.hold * by_slope) + g_hold * inverse;
    const Complex<A> g_exponent = g_factor * conj(s.factor);
    const Complex<A> g_rate = A(-1) * (g_hold * conj(s.hold) * inverse) + s.dt * g_exponent;
    log_dt = s.dt * (g_exponent.re * s.rate.re + g_exponent.im * s.rate.im);
    a_log = g_rate.re * s.rate.re;
    a_im = g_rate.im;
  }
};

}  // namespace occam::kernels
