#pragma once
// Counts of weights below a bound that know when rounding could have decided: README.md, "Counts".
#include "ops/attention_stats/warp_rows.cuh"

namespace occam::kernels::streaming {

/// Counts numbers below a bound, and knows when rounding could have decided: a number counts 1 well below, 0
/// well above and a fraction within a relative error e of the bound, so that the sum of the squares is the
/// sum only when no number is that close. `middle` = 1/2 + 1/2e, slope = 1/2e / bound.
struct Counter {
  float slope, count = 0;
  __device__ __forceinline__ explicit Counter(float slope_) : slope(slope_) {}
  static __device__ __forceinline__ float middle_of(float error) {
    return 0.5f + 0.5f * reciprocal_fast(error);
  }
  __device__ __forceinline__ void add(float x, float middle, float& squares) {
    float below = __saturatef(fmaf(-slope, x, middle));
    count += below;
    squares = fmaf(below, below, squares);
  }
};

/// Counts weights below two bounds, for a warp's 16 rows, and knows when rounding could have decided. A
/// weight becomes 1 well below a bound, 0 well above and a fraction within a relative error e of it, as a
/// bf16; its sums over keys, and those of its square, are products of the tensor cores: with ones, and the
/// diagonal of the fractions times themselves. They differ only when a weight is that close.
struct Below {
  float slope[2][2];                      // [bound][row of the lane]: 1/2e / bound
  float middle;                           // 1/2 + 1/2e
  float sums[4] = {};                     // of row g below the first bound, the second; of row g+8
  float upper[4] = {}, lower[4] = {};     // products of all rows with rows 0..7, with rows 8..15
  static constexpr float kWider = 1.04f;  // what a bf16 rounds to 0 or 1 is out of the band
  __device__ __forceinline__ float step(float x, int bound, int half) const {
    return __saturatef(fmaf(-slope[bound][half], x, middle));
  }
  /// Weights e [4 kN].
  template <int kN>
  __device__ __forceinline__ void add(const float* e) {
    constexpr uint32_t kOnes = 0x3f803f80;
    int lane = int(threadIdx.x);
    asm volatile("" : "+r"(lane));  // not kept in a register from before the loop over rows
    const uint32_t odd = lane / 4 % 2 == 0 ? 0 : kOnes;
#pragma unroll
    for (int n = 0; n < kN; n += 2)
#pragma unroll
      for (int bound = 0; bound < 2; ++bound) {
        uint32_t a[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* two = e + (n + i / 2) * 4 + i % 2 * 2;
          a[i] = n + i / 2 < kN ? pack_bf16(step(two[0], bound, i % 2), step(two[1], bound, i % 2)) : 0;
        }
        const uint32_t here = bound == 1 ? odd : kOnes - odd;
        mma_bf16(sums, a, here, here);
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
          mma_bf16(upper, a[i], a[i + 1], a[i]);
          mma_bf16(lower, a[i], a[i + 1], a[i + 1]);
        }
      }
  }
};

/// Counts of a lane's two rows; their sums over the quad are what counts.
struct Counts {
  float below[2] = {}, below_uniform[2] = {}, squares[2] = {};
  __device__ __forceinline__ Counts() {}
  __device__ __forceinline__ explicit Counts(const Below& c) {
    const int q = int(threadIdx.x) % 4, g = int(threadIdx.x) / 4 % 8;
    if (q == 0) below[0] = c.sums[0], below_uniform[0] = c.sums[1];
    if (q == 0) below[1] = c.sums[2], below_uniform[1] = c.sums[3];
    if (q == g / 2) squares[0] = g % 2 == 0 ? c.upper[0] : c.upper[1];
    if (q == g / 2) squares[1] = g % 2 == 0 ? c.lower[2] : c.lower[3];
  }
};

}  // namespace occam::kernels::streaming
