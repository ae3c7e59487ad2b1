#pragma once
// The running sums of a channel, of what stands on one side of a token. All terms of a sum are over one
// exponent, which the sum does not know, or, in the Joined form, over the largest of theirs.
#include "core/cuda/math.cuh"

namespace occam::kernels {

namespace {

using namespace cuda;

constexpr float kNothing = -1e30f;  // exponent of no term: finite, so that differences are numbers

/// What a token adds to a numerator and a denominator, times 2^-(some exponent).
struct Term {
  float num, den;
};
/// The same over its own exponent x.
struct Token {
  float x, num, den;
  __device__ Term over(float exponent) const {
    const float weight = exp2_fast(x - exponent);
    return {weight * num, weight * den};
  }
};

/// sum of 2^(k - w distance) (v, 1).
struct Average {
  static constexpr int kFloats = 2;
  float num = 0, den = 0;

  /// One token further away, and a token at distance 0 joins.
  __device__ void step(float decay, const Term& t) { num = decay * num + t.num, den = decay * den + t.den; }
  /// The terms of `far`, all of them `distance` further away; decay = 2^(-w distance).
  __device__ void add(const Average& far, float decay, float) {
    num += decay * far.num, den += decay * far.den;
  }
  __device__ void scale(float factor) { num *= factor, den *= factor; }
  __device__ void put(float* at, int64_t stride) const { at[0] = num, at[stride] = den; }
  __device__ void get(const float* at, int64_t stride) { num = at[0], den = at[stride]; }
};

/// The same for backward: sum of 2^(-log_sum - w distance) (g, -g y), and of these times distance + 1: a
/// token takes one multiply-add more to move away than without.
struct Pull {
  static constexpr int kFloats = 4;
  float num = 0, den = 0, far_num = 0, far_den = 0;

  __device__ void step(float decay, const Term& t) {
    num = decay * num + t.num, den = decay * den + t.den;
    far_num = decay * far_num + num, far_den = decay * far_den + den;
  }
  __device__ void add(const Pull& far, float decay, float distance) {
    num += decay * far.num, den += decay * far.den;
    far_num += decay * (far.far_num + distance * far.num);
    far_den += decay * (far.far_den + distance * far.den);
  }
  __device__ void scale(float factor) { num *= factor, den *= factor, far_num *= factor, far_den *= factor; }
  __device__ void put(float* at, int64_t stride) const {
    at[0] = num, at[stride] = den, at[2 * stride] = far_num, at[3 * stride] = far_den;
  }
  __device__ void get(const float* at, int64_t stride) {
    num = at[0], den = at[stride], far_num = at[2 * stride], far_den = at[3 * stride];
  }
};

/// A sum over 2^max, the largest exponent of its terms, as softmax statistics are kept (Milakov and
/// Gimelshein, arXiv 1805.02867): for any decays and keys, at two exponentials a term.
template <class Sum>
struct Joined {
  static constexpr int kFloats = Sum::kFloats + 1;
  Sum sum;
  float max = kNothing;

  __device__ void over(float new_max) { sum.scale(exp2_fast(max - new_max)), max = new_max; }
  __device__ void join(float w, const Token& t) {
    const float old = max - w;
    max = fmaxf(old, t.x);
    sum.step(exp2_fast(old - max), t.over(max));
  }
  __device__ void add(const Joined& far, float w, float distance) {
    const float other = far.max - w * distance;
    over(fmaxf(max, other));
    sum.add(far.sum, exp2_fast(other - max), distance);
  }
  __device__ void put(float* at, int64_t stride) const {
    sum.put(at, stride), at[Sum::kFloats * stride] = max;
  }
  __device__ void get(const float* at, int64_t stride) {
    sum.get(at, stride), max = at[Sum::kFloats * stride];
  }
};

}  // namespace

}  // namespace occam::kernels
