#pragma once
// What a cell makes of its parts p in a step: step() moves the state on and returns a, backward() gives a and
// the gradients g of the parts. kFast: the device's approximations, beside bf16 storage.
#include "core/cuda/math.cuh"
#include "core/cuda/mma.cuh"
#include "ops/scan.h"

namespace occam::kernels {

using namespace cuda;

template <bool kFast>
__device__ __forceinline__ float exp_of(float x) {
  return kFast ? exp2_fast(x * 1.4426950408889634f) : expf(x);
}
template <bool kFast>
__device__ __forceinline__ float reciprocal_of(float x) {
  return kFast ? reciprocal_fast(x) : 1.0f / x;
}

/// Of two numbers that are not 0, with a finite product: 1/x and 1/y by one division.
template <bool kFast>
__device__ __forceinline__ void reciprocals(float x, float y, float& rx, float& ry) {
  const float r = reciprocal_of<kFast>(x * y);
  rx = r * y, ry = r * x;
}

/// e^-v up to e^80, so that products of two stay finite.
template <bool kFast>
__device__ __forceinline__ float exp_minus(float v) {
  return exp_of<kFast>(fminf(-v, 80.0f));
}
/// g = max(v + 1/2, s(v)), and s from the device's tanh: within 2.5e-4, an eighth of bf16's rounding of 1.
__device__ __forceinline__ float value_fast(float v) {
  return fmaxf(v + 0.5f, 0.5f * tanh_fast(0.5f * v) + 0.5f);
}
/// g from `small` = e^-|v| and `r` = 1 / (1 + small).
__device__ __forceinline__ float value_of(float v, float small, float r) {
  return v >= 0 ? v + 0.5f : small * r;
}

struct PlainCell {
  static constexpr int kParts = 2;
  template <bool kFast>
  static __device__ __forceinline__ float step(const float (&p)[3], float& h) {
    h = p[0] * h + p[1];
    return p[0];
  }
  template <bool kFast>
  static __device__ __forceinline__ void backward(const float (&p)[3], float before, float dh, float& a,
                                                  float (&g)[3]) {
    a = p[0], g[0] = dh * before, g[1] = dh;
  }
};

struct MinGruCell {
  static constexpr int kParts = 2;
  template <bool kFast>
  static __device__ __forceinline__ void gates(const float (&p)[3], float& fresh, float& value,
                                               float& slope) {
    const float small = exp_of<kFast>(-fabsf(p[1]));
    float r;
    reciprocals<kFast>(1 + exp_minus<kFast>(p[0]), 1 + small, fresh, r);
    value = value_of(p[1], small, r);
    slope = p[1] >= 0 ? 1.0f : value * r;  // s (1 - s), and 1 - s(v) = 1 / (1 + e^v)
  }
  template <bool kFast>
  static __device__ __forceinline__ float step(const float (&p)[3], float& h) {
    float fresh, value, slope;
    if constexpr (kFast)  // an infinite exponential is as good as any
      fresh = reciprocal_fast(1 + exp_of<true>(-p[0])), value = value_fast(p[1]);
    else
      gates<false>(p, fresh, value, slope);
    h += fresh * (value - h);
    return 1 - fresh;
  }
  template <bool kFast>
  static __device__ __forceinline__ void backward(const float (&p)[3], float before, float dh, float& a,
                                                  float (&g)[3]) {
    float fresh, value, slope;
    gates<kFast>(p, fresh, value, slope);
    a = 1 - fresh;
    g[0] = dh * (value - before) * fresh * a;
    g[1] = dh * fresh * slope;
  }
};

struct MinLstmCell {
  static constexpr int kParts = 3;
  /// With F = 1 + e^-f = 1 / s(f) and I likewise: a = I / (F + I), 1 - a = F / (F + I).
  template <bool kFast>
  static __device__ __forceinline__ void gates(const float (&p)[3], float& big_f, float& big_i, float& sum,
                                               float& value, float& slope) {
    big_f = 1 + exp_minus<kFast>(p[0]), big_i = 1 + exp_minus<kFast>(p[1]);
    const float small = exp_of<kFast>(-fabsf(p[2]));
    float r;
    reciprocals<kFast>(big_f + big_i, 1 + small, sum, r);
    value = value_of(p[2], small, r);
    slope = p[2] >= 0 ? 1.0f : value * r;
  }
  template <bool kFast>
  static __device__ __forceinline__ float step(const float (&p)[3], float& h) {
    float f, i, sum, value, slope;
    if constexpr (kFast) {
      f = 1 + exp_minus<true>(p[0]), i = 1 + exp_minus<true>(p[1]);
      sum = reciprocal_fast(f + i), value = value_fast(p[2]);
    } else {
      gates<false>(p, f, i, sum, value, slope);
    }
    h += f * sum * (value - h);
    return i * sum;
  }
  /// da/df = a (1 - a) (1 - s(f)) = a (F - 1) / (F + I), da/di = -(1 - a) (I - 1) / (F + I).
  template <bool kFast>
  static __device__ __forceinline__ void backward(const float (&p)[3], float before, float dh, float& a,
                                                  float (&g)[3]) {
    float f, i, sum, value, slope;
    gates<kFast>(p, f, i, sum, value, slope);
    a = i * sum;
    const float fresh = f * sum, ga = dh * (before - value);
    g[0] = ga * a * ((f - 1) * sum);
    g[1] = -ga * fresh * ((i - 1) * sum);
    g[2] = dh * fresh * slope;
  }
};

/// What segments leave for each other, [segment][chain], products then states.
struct SegmentSums {
  float *product, *state;
};

}  // namespace occam::kernels
