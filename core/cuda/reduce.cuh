#pragma once
// Warp and block reductions by shuffles. The order of additions is fixed by the launch configuration, so
// results are the same in every run. Every thread gets the result. Operators must be commutative.
#include <cstdint>

#include "core/cuda/math.cuh"

namespace occam::cuda {

inline constexpr int kWarp = 32;

struct SumOp {
  template <class A>
  __device__ __forceinline__ A operator()(A a, A b) const {
    return a + b;
  }
};
/// NaN wins.
struct MaxOp {
  template <class A>
  __device__ __forceinline__ A operator()(A a, A b) const {
    return max_(a, b);
  }
};
struct MinOp {
  template <class A>
  __device__ __forceinline__ A operator()(A a, A b) const {
    return min_(a, b);
  }
};

/// Two values reduced together: half the synchronisations of two reductions.
template <class A>
struct Pair {
  A first, second;
};
struct PairSumOp {
  template <class A>
  __device__ __forceinline__ Pair<A> operator()(Pair<A> a, Pair<A> b) const {
    return {a.first + b.first, a.second + b.second};
  }
};
__device__ __forceinline__ float mul_rn(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double mul_rn(double a, double b) { return __dmul_rn(a, b); }

/// first = running maximum m, second = sum of exp(x - m): the online softmax merge (Milakov & Gimelshein,
/// arXiv 1805.02867). The identity is {-infinity, 0}.
struct OnlineSoftmaxOp {
  template <class A>
  __device__ __forceinline__ Pair<A> operator()(Pair<A> a, Pair<A> b) const {
    A m = max_(a.first, b.first);
    // Nothing but -infinity on both sides: exp(-inf - -inf) would be a NaN that no input asked for.
    if (m == -infinity_<A>()) return {m, a.second + b.second};
    // No fused multiply-add: it rounds only one product, and the two lanes of a shuffle would then disagree.
    return {m, mul_rn(a.second, exp_(a.first - m)) + mul_rn(b.second, exp_(b.first - m))};
  }
};

template <class A>
__device__ __forceinline__ A shuffle_xor(A value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
template <class A>
__device__ __forceinline__ Pair<A> shuffle_xor(Pair<A> value, int mask) {
  return {shuffle_xor(value.first, mask), shuffle_xor(value.second, mask)};
}

/// Over groups of `Width` neighbouring lanes (a power of two up to 32). All 32 lanes of the warp must call
/// it.
template <int Width = kWarp, class V, class Op>
__device__ __forceinline__ V warp_reduce(V value, Op op) {
  static_assert(Width > 0 && Width <= kWarp && (Width & (Width - 1)) == 0);
#pragma unroll
  for (int mask = Width / 2; mask > 0; mask /= 2) value = op(value, shuffle_xor(value, mask));
  return value;
}
template <int Width = kWarp, class A>
__device__ __forceinline__ A warp_sum(A value) {
  return warp_reduce<Width>(value, SumOp{});
}
template <int Width = kWarp, class A>
__device__ __forceinline__ A warp_max(A value) {
  return warp_reduce<Width>(value, MaxOp{});
}
template <int Width = kWarp, class A>
__device__ __forceinline__ Pair<A> warp_sum2(A first, A second) {
  return warp_reduce<Width>(Pair<A>{first, second}, PairSumOp{});
}

/// Over a one-dimensional block whose size is a multiple of 32. `identity` leaves the operator's other side
/// unchanged. All threads must call it; it may be called again at once (it synchronises before it reuses its
/// shared memory).
template <class V, class Op>
__device__ __forceinline__ V block_reduce(V value, V identity, Op op) {
  __shared__ V partial[kWarp];
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int warps = blockDim.x / kWarp;
  value = warp_reduce(value, op);
  if (warps == 1) return value;
  __syncthreads();  // the previous call's readers are done with `partial`
  if (lane == 0) partial[warp] = value;
  __syncthreads();
  // Every warp reduces the same partials in the same order, which spares a broadcast.
  value = lane < warps ? partial[lane] : identity;
  return warp_reduce(value, op);
}
template <class A>
__device__ __forceinline__ A block_sum(A value) {
  return block_reduce(value, A(0), SumOp{});
}
template <class A>
__device__ __forceinline__ A block_max(A value) {
  return block_reduce(value, -infinity_<A>(), MaxOp{});
}
template <class A>
__device__ __forceinline__ Pair<A> block_sum2(A first, A second) {
  return block_reduce(Pair<A>{first, second}, Pair<A>{A(0), A(0)}, PairSumOp{});
}
/// Softmax statistics of a block: pass each thread's own {maximum, sum of exp(x - maximum)}.
template <class A>
__device__ __forceinline__ Pair<A> block_online_softmax(Pair<A> value) {
  return block_reduce(value, Pair<A>{-infinity_<A>(), A(0)}, OnlineSoftmaxOp{});
}

}  // namespace occam::cuda
