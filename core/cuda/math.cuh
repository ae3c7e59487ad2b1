#pragma once
// Scalar maths shared by kernels, in float or double (the accumulator of the storage type).
#include <cstdint>

#include "core/half.h"

namespace occam::cuda {

/// The type a kernel computes in: float for f32 and bf16 storage, double for f64.
template <class T>
struct acc_t_ {
  using type = float;
};
template <>
struct acc_t_<double> {
  using type = double;
};
template <class T>
using acc_t = typename acc_t_<T>::type;

/// Storage to accumulator and back. bf16 rounds to nearest even.
template <class T>
__device__ __forceinline__ acc_t<T> to_acc(T value) {
  return acc_t<T>(value);
}
template <class T>
__device__ __forceinline__ T from_acc(acc_t<T> value) {
  return T(value);
}

__device__ __forceinline__ float exp_(float x) { return expf(x); }
__device__ __forceinline__ double exp_(double x) { return exp(x); }
__device__ __forceinline__ float log_(float x) { return logf(x); }
__device__ __forceinline__ double log_(double x) { return log(x); }
__device__ __forceinline__ float erf_(float x) { return erff(x); }
__device__ __forceinline__ double erf_(double x) { return erf(x); }
__device__ __forceinline__ float tanh_(float x) { return tanhf(x); }
__device__ __forceinline__ double tanh_(double x) { return tanh(x); }
__device__ __forceinline__ float sqrt_(float x) { return sqrtf(x); }
__device__ __forceinline__ double sqrt_(double x) { return sqrt(x); }
__device__ __forceinline__ float rsqrt_(float x) { return rsqrtf(x); }
__device__ __forceinline__ double rsqrt_(double x) { return rsqrt(x); }
/// One instruction each; numbers below 2^-126 count as 0. Errors: 2^x and 1 / x relative, 2^-22 and 2^-23;
/// log2 x 2^-22, absolute in [1/2, 2] and relative elsewhere; tanh x relative, 2^-11.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float log2_fast(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float tanh_fast(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
/// Propagate NaN, unlike fmaxf and fminf: a NaN must not disappear in a softmax.
template <class A>
__device__ __forceinline__ A max_(A a, A b) {
  return a > b || a != a ? a : b;
}
template <class A>
__device__ __forceinline__ A min_(A a, A b) {
  return a < b || a != a ? a : b;
}

template <class A>
__device__ __forceinline__ A infinity_();
template <>
__device__ __forceinline__ float infinity_<float>() {
  return __int_as_float(0x7f800000);
}
template <>
__device__ __forceinline__ double infinity_<double>() {
  return __longlong_as_double(0x7ff0000000000000ll);
}

/// 1 / (1 + e^-x); exact limits 0 and 1 without overflow.
template <class A>
__device__ __forceinline__ A sigmoid(A x) {
  return A(1) / (A(1) + exp_(-x));
}
template <class A>
__device__ __forceinline__ A silu(A x) {
  return x * sigmoid(x);
}
/// d silu / dx = s (1 + x (1 - s))
template <class A>
__device__ __forceinline__ A silu_grad(A x) {
  A s = sigmoid(x);
  return s * (A(1) + x * (A(1) - s));
}

/// sigmoid as closely as values stored as T show: by ex2.approx and rcp.approx for 16-bit storage, where the
/// relative error, about |x| 2^-24 + 2^-21, is far below a rounding.
template <class T>
__device__ __forceinline__ float sigmoid_for(float x) {
  if constexpr (sizeof(T) > 2)
    return sigmoid(x);
  else
    return __fdividef(1.0f, 1.0f + __expf(-x));
}

/// GELU, exact: x Phi(x) = x/2 (1 + erf(x / sqrt 2)) (Hendrycks & Gimpel, arXiv 1606.08415); the form of
/// timm's ViT.
template <class A>
__device__ __forceinline__ A gelu(A x) {
  return A(0.5) * x * (A(1) + erf_(x * A(0.70710678118654752440)));
}
/// d gelu / dx = Phi(x) + x phi(x), phi the standard normal density.
template <class A>
__device__ __forceinline__ A gelu_grad(A x) {
  A cdf = A(0.5) * (A(1) + erf_(x * A(0.70710678118654752440)));
  A pdf = A(0.39894228040143267794) * exp_(A(-0.5) * x * x);
  return cdf + x * pdf;
}

/// GELU by tanh: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), the form of cuBLASLt's epilogues.
template <class A>
__device__ __forceinline__ A gelu_tanh(A x) {
  A inner = A(0.79788456080286535588) * (x + A(0.044715) * x * x * x);
  return A(0.5) * x * (A(1) + tanh_(inner));
}
template <class A>
__device__ __forceinline__ A gelu_tanh_grad(A x) {
  A inner = A(0.79788456080286535588) * (x + A(0.044715) * x * x * x);
  A slope = A(0.79788456080286535588) * (A(1) + A(3 * 0.044715) * x * x);
  A t = tanh_(inner);
  return A(0.5) * (A(1) + t) + A(0.5) * x * (A(1) - t * t) * slope;
}

}  // namespace occam::cuda
