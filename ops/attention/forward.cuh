#pragma once
// Forward of 64 queries by a warpgroup: keys and values lie in shared memory.
#include "ops/attention/head.cuh"

namespace occam::kernels {

#ifdef OCCAM_WARPGROUP

using namespace cuda;

/// s = q k^T: the 64 rows at q with kCount keys.
template <int kCount>
__device__ __forceinline__ void scores(float (&s)[kCount / 2], uint32_t q, uint32_t k) {
  constexpr int kWhole = kCount / 64 * 64;
  static_assert(kCount - kWhole == 0 || kCount - kWhole == 16);
  wgmma_fence();
#pragma unroll
  for (int n = 0; n < kWhole; n += 64)
#pragma unroll
    for (int step = 0; step < 4; ++step)
      wgmma<64, false, false>(s + n / 2, q + step * kStepAlong, k + n / 16 * kStepAcross + step * kStepAlong,
                              step > 0);
  if constexpr (kWhole < kCount)
#pragma unroll
    for (int step = 0; step < 4; ++step)
      wgmma<16, false, false>(s + kWhole / 2, q + step * kStepAlong,
                              k + kWhole / 16 * kStepAcross + step * kStepAlong, step > 0);
  wgmma_commit();
  wgmma_wait<0>();
  pin(s);
}

/// Of a lane's two rows: largest exponent so far, sum of weights, and their sums over values.
struct Rows {
  float maximum[2], sum[2], o[32];
};

/// Scores of one of the rows (e = 0: the upper, 2: the lower) become weights exp2(s factor - maximum), factor
/// above 0. After the first part of the keys, sums are brought to the new maximum.
template <bool kFirst, int kCount>
__device__ __forceinline__ void softmax_row(float (&s)[kCount / 2], int e, float factor, Rows& r) {
  float largest = -infinity_<float>(), sum = 0;
#pragma unroll
  for (int i = 0; i < kCount / 2; i += 4) largest = fmaxf(largest, fmaxf(s[i + e], s[i + e + 1]));
  largest = warp_reduce<4>(largest, MaxOp{}) * factor;
  if constexpr (!kFirst) largest = fmaxf(largest, r.maximum[e / 2]);
  float shift = largest == -infinity_<float>() ? 0 : largest;  // no key yet: all weights are 0
#pragma unroll
  for (int i = 0; i < kCount / 2; i += 4) {
    s[i + e] = exp2_fast(s[i + e] * factor - shift);
    s[i + e + 1] = exp2_fast(s[i + e + 1] * factor - shift);
    sum += s[i + e] + s[i + e + 1];
  }
  if constexpr (!kFirst) {
    float keep = exp2_fast(r.maximum[e / 2] - shift);
    sum += r.sum[e / 2] * keep;
#pragma unroll
    for (int i = 0; i < 32; i += 4) r.o[i + e] *= keep, r.o[i + e + 1] *= keep;
  }
  r.maximum[e / 2] = largest;
  r.sum[e / 2] = sum;
}

/// kCount keys with their values and bias; `left` keys exist. `bias` may be null when all of these are
/// attended to, the others are among the last kCheck, and factor is above 0. A warp without queries (`busy`
/// false) only takes part in the products. `values`: a barrier that values arrive at, unless they are there.
template <int kCount, bool kFirst, int kCheck>
__device__ __forceinline__ void attend(Rows& r, uint32_t q, uint32_t k, uint32_t v, float factor,
                                       const float* bias, int left, bool busy, uint32_t values = 0) {
  float s[kCount / 2] = {};
  scores<kCount>(s, q, k);
  if (busy) {
    const int column = int(threadIdx.x) % 4 * 2;
    if (bias != nullptr) {
#pragma unroll
      for (int i = 0; i < kCount / 2; i += 4) {
        float2 b = *reinterpret_cast<const float2*>(bias + column + i * 2);
        s[i] = s[i] * factor + b.x, s[i + 1] = s[i + 1] * factor + b.y;
        s[i + 2] = s[i + 2] * factor + b.x, s[i + 3] = s[i + 3] * factor + b.y;
      }
    } else {
#pragma unroll
      for (int i = 0; i < kCount / 2; ++i)
        if (i / 4 * 8 >= kCount - kCheck && column + i / 4 * 8 + i % 2 >= left) s[i] = -infinity_<float>();
    }
    const float rest = bias != nullptr ? 1 : factor;
    softmax_row<kFirst, kCount>(s, 0, rest, r);
    softmax_row<kFirst, kCount>(s, 2, rest, r);
  }
  uint32_t p[kCount / 16][4];
#pragma unroll
  for (int n = 0; n < kCount / 16; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) p[n][i] = pack_bf16(s[8 * n + 2 * i], s[8 * n + 2 * i + 1]);
  if (values != 0) barrier_wait(values, 0);
  pin(r.o);
  wgmma_fence();
#pragma unroll
  for (int n = 0; n < kCount / 16; ++n) wgmma_registers(r.o, p[n], v + n * kStepAcross, !kFirst || n > 0);
  wgmma_commit();
  wgmma_wait<0>();
  pin(r.o);
}

/// Writes log sum exp of a warp's 16 rows from `row` on; leaves the factors of their sums over values.
__device__ __forceinline__ void finish_rows(const Rows& r, int row, float* lse, int t, float (&inverse)[2]) {
  const int lane = thread_here() % kWarp;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = warp_reduce<4>(r.sum[half], SumOp{});
    inverse[half] = sum == 0 ? 0 : __fdividef(1, sum);  // sum is at least 1 otherwise
    int mine = row + lane / 4 + half * 8;
    if (lane % 4 == 0 && mine < t)
      lse[mine] = sum == 0 ? infinity_<float>() : (r.maximum[half] + __log2f(sum)) * kLn2;
  }
}

#endif

}  // namespace occam::kernels
