#pragma once
// The exact GELU and its slope in about a dozen instructions, one of them on the special-function unit: for
// epilogues of products, where erff and expf would take longer than the product. For |x| = u
//
//     Phi(-u) = 2^L(u),     gelu(x) = max(x, 0) - u Phi(-u),
//     gelu'(-u) = Phi(-u) - u phi(u) = Phi(-u) K(u),     gelu'(x) = 1 - gelu'(-x),
//
// L = log2 Phi(-u) and K = 1 - u phi(u) / Phi(-u) are smooth and nearly quadratic; both are minimax
// polynomials on [0, 5] (L for its absolute, K for its error relative to 1 + u^2) of degree 6. Beyond 5 they
// extrapolate: L stays within 2 of the truth up to 10, where Phi(-u) is below 2^-74. Errors, of the
// polynomials and of f32 together, over all x (tests/core/gelu_fast_test.cpp walks the floats):
//
//     |gelu_fast - gelu| <= 2^-16 |gelu|  for x >= -5,   <= 2^-33 below
//     |gelu_slope_fast - gelu'| <= 2^-16
//
// which is 1/256 of the rounding to bf16 that follows. NaN stays NaN.
#include <cmath>
#include <cstdint>

#include "core/half.h"

namespace occam::cuda {

/// gelu(x), and the parts of it that the slope shares.
struct GeluParts {
  float u, tail;  // |x| clamped, Phi(-u)
};

OCCAM_HD inline float exp2_of(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return std::exp2(x);
#endif
}

/// min(|x|, 12), NaN for NaN: keeps L where it falls, and infinities out of products with 0.
OCCAM_HD inline float gelu_clamp(float x) {
#ifdef __CUDA_ARCH__
  float u;
  asm("min.NaN.f32 %0, %1, 0f41400000;" : "=f"(u) : "f"(fabsf(x)));
  return u;
#else
  const float u = std::fabs(x);
  return u > 12.0f ? 12.0f : u;
#endif
}

OCCAM_HD inline GeluParts gelu_parts(float x) {
  const float u = gelu_clamp(x);
  float l = fmaf(u, 2.945848984e-5f, -7.087873952e-4f);
  l = fmaf(u, l, 7.74603668e-3f);
  l = fmaf(u, l, -5.260634186e-2f);
  l = fmaf(u, l, -4.596254169e-1f);
  l = fmaf(u, l, -1.150867251f);
  l = fmaf(u, l, -1.000017641f);
  return {u, exp2_of(l)};
}
OCCAM_HD inline float gelu_fast(float x, const GeluParts& p) { return fmaf(-p.u, p.tail, fmaxf(x, 0.0f)); }
OCCAM_HD inline float gelu_fast(float x) { return gelu_fast(x, gelu_parts(x)); }

/// gelu'(x)
OCCAM_HD inline float gelu_slope_fast(float x, const GeluParts& p) {
  float k = fmaf(p.u, 1.198605994e-4f, -2.426481417e-3f);
  k = fmaf(p.u, k, 2.134816739e-2f);
  k = fmaf(p.u, k, -1.091179154e-1f);
  k = fmaf(p.u, k, -6.374891006e-1f);
  k = fmaf(p.u, k, -7.975601559e-1f);
  k = fmaf(p.u, k, 9.999842897e-1f);
  const float left = p.tail * k;
  return x < 0 ? left : 1.0f - left;
}

}  // namespace occam::cuda
