#pragma once
// exp, tanh, sigmoid and the normal distribution of floats without branches or calls, so that compilers
// vectorise loops over them (std::exp and friends are calls an element). Polynomials are Chebyshev fits;
// errors against double on a dense sweep, tested in tests/core/vmath_test.cpp: vexp 2 ulp, vsigmoid 4, vtanh
// 2e-7 absolute, vnormal 1.5e-7. NaN stays NaN.
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

/// 2^x for |x| up to 126, relative error 2e-7.
inline float vexp2_near(float x) {
  const float shifted = x + 12583039.0f, rest = x - (shifted - 12583039.0f);
  float p = 0.001326472614891827f;
  p = p * rest + 0.009671512991189957f;
  p = p * rest + 0.05550733581185341f;
  p = p * rest + 0.24022242426872253f;
  p = p * rest + 0.6931470036506653f;
  p = p * rest + 1.0f;
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

/// Phi(x), the normal distribution: 2^-R(|x|) below 0 and 1 less that above, R the fit of -log2 Phi(-a),
/// which is 1 at 0 and grows like a^2. No case apart, no quotient; below 0 the relative error is small too.
inline float vnormal(float x) {
  const float a = std::fabs(x);
  float r = 2.2341518658850443e-06f;
  r = r * a - 3.246714303649195e-05f;
  r = r * a + 0.00015496304284558216f;
  r = r * a + 0.00020760959545287655f;
  r = r * a - 0.007148125629086489f;
  r = r * a + 0.05254817550642459f;
  r = r * a + 0.4591938404723011f;
  r = r * a + 1.1511064656684666f;
  r = r * a + 1.0f;
  const float near = vexp2_near(-r),
              tail = r > 126.0f ? 0.0f : near;  // a product with x may follow: not 2^-126
  return x < 0 ? tail : 1.0f - tail;
}

// One name for both precisions, so that kernels are templates.
inline float exp_of(float x) { return vexp(x); }
inline double exp_of(double x) { return std::exp(x); }
inline float tanh_of(float x) { return vtanh(x); }
inline double tanh_of(double x) { return std::tanh(x); }
inline float normal_of(float x) { return vnormal(x); }
inline double normal_of(double x) { return 0.5 * std::erfc(x * -0.70710678118654752440); }
/// e^(-x^2 / 2)
inline float bell_of(float x) {
  const float a = -0.72134752f * x * x, near = vexp2_near(a);
  return a < -126.0f ? 0.0f : near;
}
inline double bell_of(double x) { return std::exp(-0.5 * x * x); }
template <class T>
inline T sigmoid_of(T x) {
  return T(1) / (T(1) + exp_of(-x));
}

/// x Phi(x) and its derivative Phi(x) + x phi(x).
template <class T>
inline T gelu_of(T x) {
  return x * normal_of(x);
}
template <class T>
inline T gelu_slope(T x) {
  return normal_of(x) + x * T(0.39894228040143267794) * bell_of(x);
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
