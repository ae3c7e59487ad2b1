#pragma once
// The running sums of a channel, of what stands on one side of a token, with the maximum of their exponents.
#include "core/cuda/gelu_fast.h"
#include "core/cuda/math.cuh"

namespace occam::kernels {

namespace {

using namespace cuda;

constexpr float kLargest = 126;     // exponent of a factor; what needs more was lost beside a larger sum
constexpr float kNothing = -1e30f;  // maximum of no terms: finite, so that differences are numbers

/// Two sums with maxima a and b under one maximum: one of the factors is 1.
struct Factors {
  float a, b, max;
  __device__ Factors(float max_a, float max_b) {
    const float e = exp2_of(-fabsf(max_a - max_b));
    const bool first = max_a >= max_b;
    a = first ? 1 : e, b = first ? e : 1, max = first ? max_a : max_b;
  }
};

// kSteepest: a sum may be smaller than its maximum says by a segment's decay, and another one before it is
// merged and its maximum made exact again. What f32 loses below 2^-126 then stays below 2^-24 of the sum.
constexpr float kSteepest = 96;
__device__ bool is_steep(float w, float u, int segment) {
  return !(2 * float(segment) * fabsf(w) + fabsf(u) <= kSteepest);
}

/// Tokens of a segment: x are the exponents of their terms, kNothing for none.
struct Keys {
  static constexpr int kSize = 8;
  float x[kSize], v[kSize];
};
struct Slopes {
  static constexpr int kSize = 4;
  float x[kSize], g[kSize], y[kSize];
};
template <class Segment>
__device__ __forceinline__ float peak(const Segment& of, float max) {
#pragma unroll
  for (int i = 0; i < Segment::kSize; ++i) max = fmaxf(max, of.x[i]);
  return max;
}
template <class Segment>
__device__ __forceinline__ void weights(const Segment& of, float max, float (&to)[Segment::kSize]) {
#pragma unroll
  for (int i = 0; i < Segment::kSize; ++i) to[i] = exp2_of(of.x[i] - max);
}

/// sum of 2^(k - w distance) (v, 1), divided by 2^max.
struct Average {
  using Segment = Keys;
  static constexpr int kFloats = 3, kSegment = Keys::kSize;
  float num = 0, den = 0, max = kNothing;

  /// One token further away, and a token at distance 0 joins.
  __device__ void join(float w, const Keys& of, int i) {
    const Factors f(max - w, of.x[i]);
    step(f.a, f.b, of, i);
    max = f.max;
  }
  /// The same of a weight 2^(x - max), decay = 2^-w.
  __device__ void step(float decay, float weight, const Keys& of, int i) {
    num = decay * num + weight * of.v[i], den = decay * den + weight;
  }
  /// Over another maximum.
  __device__ void over(float new_max) {
    const float f = exp2_of(fminf(max - new_max, kLargest));
    num *= f, den *= f, max = new_max;
  }
  /// Of the same maximum.
  __device__ void add(const Average& other) { num += other.num, den += other.den; }
  /// The terms of `far`, all of them `distance` further away.
  __device__ void join_all(const Average& far, float w, float distance) {
    const Factors f(max, far.max - w * distance);
    num = f.a * num + f.b * far.num, den = f.a * den + f.b * far.den, max = f.max;
  }
  __device__ void put(float* at, int64_t stride) const {
    at[0] = num, at[stride] = den, at[2 * stride] = max;
  }
  __device__ void get(const float* at, int64_t stride) {
    num = at[0], den = at[stride], max = at[2 * stride];
  }
};

/// The same for backward: sum of 2^(-log_sum - w distance) (g, -g y) and of these times the distance.
struct Pull {
  using Segment = Slopes;
  static constexpr int kFloats = 5, kSegment = Slopes::kSize;
  float num = 0, den = 0, moment_num = 0, moment_den = 0, max = kNothing;

  __device__ void join(float w, const Slopes& of, int i) {
    const Factors f(max - w, of.x[i]);
    step(f.a, f.b, of, i);
    max = f.max;
  }
  __device__ void step(float decay, float weight, const Slopes& of, int i) {
    moment_num = decay * (moment_num + num), moment_den = decay * (moment_den + den);
    const float g = weight * of.g[i];
    num = decay * num + g, den = decay * den - g * of.y[i];
  }
  __device__ void over(float new_max) {
    const float f = exp2_of(fminf(max - new_max, kLargest));
    num *= f, den *= f, moment_num *= f, moment_den *= f, max = new_max;
  }
  __device__ void add(const Pull& other) {
    num += other.num, den += other.den;
    moment_num += other.moment_num, moment_den += other.moment_den;
  }
  __device__ void join_all(const Pull& far, float w, float distance) {
    const Factors f(max, far.max - w * distance);
    moment_num = f.a * moment_num + f.b * (far.moment_num + distance * far.num);
    moment_den = f.a * moment_den + f.b * (far.moment_den + distance * far.den);
    num = f.a * num + f.b * far.num, den = f.a * den + f.b * far.den, max = f.max;
  }
  __device__ void put(float* at, int64_t stride) const {
    at[0] = num, at[stride] = den, at[2 * stride] = moment_num, at[3 * stride] = moment_den;
    at[4 * stride] = max;
  }
  __device__ void get(const float* at, int64_t stride) {
    num = at[0], den = at[stride], moment_num = at[2 * stride], moment_den = at[3 * stride];
    max = at[4 * stride];
  }
};

}  // namespace

}  // namespace occam::kernels
