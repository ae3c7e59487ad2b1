#pragma once
// exp, tanh, erf and sigmoid of floats without branches or calls, so that compilers vectorise loops over them
// (std::exp and friends are calls an element). Polynomials are Chebyshev fits; errors against double on a
// dense sweep, tested in tests/core/vmath_test.cpp: vexp 2 ulp, vsigmoid 4, vtanh and verf 2e-7 absolute. NaN
// stays NaN.
#include <bit>
#include <cmath>
#include <cstdint>

namespace occam {

/// e^(x - n ln 2) for the whole number n next to x / ln 2, so between 2^-1/2 and 2^1/2.
inline float exp_of_rest(float x, float n) {
  float r = x - n * 0.693359375f;
  r += n * 2.12194440e-4f;
  float p = 0.00139485836f;
  p = p * r + 0.00837513059f;
  p = p * r + 0.0416662171f;
  p = p * r + 0.166664153f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  return p * r + 1.0f;
}

/// e^x; 0 below -87.3, infinity above 88.7 (subnormal results are flushed to 0).
inline float vexp(float x) {
  float clamped = x < -87.33654f ? -87.33654f : x > 88.8f ? 88.8f : x;
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
  float shifted = clamped * 1.44269504f + 12582912.0f;
  int32_t n = std::bit_cast<int32_t>(shifted) - 0x4B400000;
  float rounded = shifted - 12582912.0f;
  float p = exp_of_rest(clamped, rounded);
  // 2^n in two halves: n may be 128, which one float exponent does not hold.
  int32_t half = n >> 1;
  float scale_a = std::bit_cast<float>((half + 127) << 23),
        scale_b = std::bit_cast<float>((n - half + 127) << 23);
  float y = p * scale_a * scale_b;
  return x < -87.33654f ? 0.0f : x > 88.72284f ? INFINITY : y;
}

/// e^x for |x| up to 86, with no case apart: half of vexp's work.
inline float vexp_near(float x) {
  // As in vexp, with the exponent's bias in the same sum: the low bits are those of 2^n.
  float shifted = x * 1.44269504f + 12583039.0f, rounded = shifted - 12583039.0f;
  float p = exp_of_rest(x, rounded);
  // All above them leave by the shift. A product, not a sum of bits: NaN times anything is NaN.
  return p * std::bit_cast<float>(std::bit_cast<int32_t>(shifted) << 23);
}

/// Below -86, where it is less than 1e-37, it stays there.
inline float vsigmoid(float x) {
  float clamped = x < -86.0f ? -86.0f : x > 86.0f ? 86.0f : x;
  return 1.0f / (1.0f + vexp_near(-clamped));
}

inline float vtanh(float x) {
  float a = std::fabs(x), t = x * x;
  float p = 0.00204660045f;
  p = p * t - 0.00806767121f;
  p = p * t + 0.0216538459f;
  p = p * t - 0.0539374985f;
  p = p * t + 0.133331224f;
  p = p * t - 0.333333284f;
  p = p * t + 1.0f;
  float large = std::copysign(1.0f - 2.0f / (vexp_near(a > 10.0f ? 20.0f : 2.0f * a) + 1.0f), x);
  return a < 0.65f ? p * x : large;
}

inline float verf(float x) {
  float a = std::fabs(x), t = x * x;
  float p = 7.8824975e-05f;
  p = p * t - 0.0008018855f;
  p = p * t + 0.00518931216f;
  p = p * t - 0.0268543288f;
  p = p * t + 0.112835974f;
  p = p * t - 0.37612626f;
  p = p * t + 1.12837911f;
  // erfc(a) exp(a^2) as a polynomial in 1/(a+2)
  float clamped = a > 4.2f ? 4.2f : a;
  float u = 1.0f / (clamped + 2.0f), q = 15.2651577f;
  q = q * u - 30.1364346f;
  q = q * u + 18.0087395f;
  q = q * u - 1.65076208f;
  q = q * u + 2.7805202f;
  q = q * u + 1.03906322f;
  q = q * u + 0.569796443f;
  q = q * u - 0.000153064786f;
  float large = std::copysign(1.0f - q * vexp(-clamped * clamped), x);
  float y = a < 1.0f ? p * x : large;
  return x != x ? x : y;
}

// One name for both precisions, so that kernels are templates.
inline float exp_of(float x) { return vexp(x); }
inline double exp_of(double x) { return std::exp(x); }
inline float tanh_of(float x) { return vtanh(x); }
inline double tanh_of(double x) { return std::tanh(x); }
inline float erf_of(float x) { return verf(x); }
inline double erf_of(double x) { return std::erf(x); }
template <class T>
inline T sigmoid_of(T x) {
  return T(1) / (T(1) + exp_of(-x));
}

/// x Phi(x) and its derivative Phi(x) + x phi(x).
template <class T>
inline T gelu_of(T x) {
  return T(0.5) * x * (T(1) + erf_of(x * T(0.70710678118654752440)));
}
template <class T>
inline T gelu_slope(T x) {
  return T(0.5) * (T(1) + erf_of(x * T(0.70710678118654752440))) +
         x * T(0.39894228040143267794) * exp_of(T(-0.5) * x * x);
}

/// Before a function with vectorisable loops: compiled for x86-64-v2, v3 and v4 and chosen when the program
/// starts.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define OCCAM_VECTORIZED __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
/// Of a function for processors with wide_vectors(): vectors of 64 bytes, where OCCAM_VECTORIZED takes 32.
#define OCCAM_WIDE __attribute__((target("arch=x86-64-v4,prefer-vector-width=512")))
#else
#define OCCAM_VECTORIZED
#define OCCAM_WIDE
#endif

inline bool wide_vectors() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
  static const bool all = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vl");
  return all;
#else
  return false;
#endif
}

}  // namespace occam
