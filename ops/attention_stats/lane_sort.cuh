#pragma once
// Sorting in registers: 4 or 32 neighbouring lanes hold kN numbers a lane. Networks are unrolled, so every
// index is a constant; only 3 or 15 of the steps cross lanes. And what is asked of a sorted row.
#include "core/cuda/reduce.cuh"

namespace occam::cuda {

__device__ __forceinline__ void in_order(float& low, float& high) {
  float least = fminf(low, high);
  high = fmaxf(low, high);
  low = least;
}

OCCAM_HD constexpr int power_below(int n) {  // the largest power of two below n
  int p = 1;
  while (p * 2 < n) p *= 2;
  return p;
}

/// Batcher's merge exchange for any count (Knuth, TAOCP 3, 5.2.2, algorithm M): ascending.
template <int kN, int kP, int kQ, int kR, int kD>
__device__ __forceinline__ void merge_exchange(float (&v)[kN]) {
#pragma unroll
  for (int i = 0; i < kN - kD; ++i)
    if ((i & kP) == kR) in_order(v[i], v[i + kD]);
  if constexpr (kQ != kP) merge_exchange<kN, kP, kQ / 2, kP, kQ - kP>(v);
}
template <int kN, int kP = power_below(kN)>
__device__ __forceinline__ void sort_registers(float (&v)[kN]) {
  merge_exchange<kN, kP, power_below(kN), 0, kP>(v);
  if constexpr (kP > 1) sort_registers<kN, kP / 2>(v);
}

/// Sorts numbers that fall, then rise: Batcher's bitonic merger for the next power of two with infinities
/// behind the last, whose comparisons change nothing and are left out.
template <int kFirst, int kCount, int kN>
__device__ __forceinline__ void merge_valley(float (&v)[kN]) {
  if constexpr (kCount > 1) {
    constexpr int kHalf = power_below(kCount);
#pragma unroll
    for (int i = kFirst; i < kFirst + kCount - kHalf; ++i) in_order(v[i], v[i + kHalf]);
    merge_valley<kFirst, kHalf>(v);
    merge_valley<kFirst + kHalf, kCount - kHalf>(v);
  }
}

/// Lanes whose `keep` is 1 take the larger halves of two sorted lists, their partners (keep = -1) the smaller
/// ones. Rising numbers opposite falling ones make a valley of maxima and a hill of minima, which -1 turns
/// into a valley. So a lane is left in rising order where keep = 1 and in falling order where it is -1.
/// kOpposed: the two lists come in opposite orders.
template <bool kOpposed, int kN>
__device__ __forceinline__ void exchange_lists(float (&v)[kN], int partner, float keep) {
#pragma unroll
  for (int i = 0; i < (kN + 1) / 2; ++i) {
    const int j = kN - 1 - i;
    float to_i = keep * shuffle_xor(kOpposed ? v[i] : v[j], partner);
    float to_j = keep * shuffle_xor(kOpposed ? v[j] : v[i], partner);
    v[i] = fmaxf(keep * v[i], to_i);
    if (j != i) v[j] = fmaxf(keep * v[j], to_j);
  }
}

/// The largest to the first lane's v[0], falling over its registers and then over the lanes: a bitonic
/// network of lanes, whose comparators merge two lists.
template <int kLanes, int kN>
__device__ __forceinline__ void sort_lanes(float (&v)[kN]) {
  const int lane = int(threadIdx.x) % kLanes;
  sort_registers(v);
#pragma unroll 1
  for (int span = 2; span <= kLanes; span *= 2)
#pragma unroll 1
    for (int apart = span - 1; apart > 0;) {  // opposite the mirrored lane, then half a span on
      const bool mirrored = apart == span - 1;
      const float keep = (lane & (mirrored ? span / 2 : apart)) == 0 ? 1.0f : -1.0f;
      // After a step between neighbours lists rise and fall by turns.
      if (mirrored && span > 2)
        exchange_lists<true>(v, apart, keep);
      else
        exchange_lists<false>(v, apart, keep);
      merge_valley<0, kN>(v);
#pragma unroll
      for (int i = 0; i < kN; ++i) v[i] *= keep;
      apart = mirrored ? span / 4 : apart / 2;
    }
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) {
    const int j = kN - 1 - i;
    const float left = v[i], right = v[j];
    v[i] = lane % 2 == 0 ? right : left;
    v[j] = lane % 2 == 0 ? left : right;
  }
}

}  // namespace occam::cuda
