#pragma once
// 16-byte packs: the widest load a thread can make. Memory holds T (float, double, bf16, ...), registers hold
// the accumulator type. Pointers must be multiples of 16 bytes (launch.h: aligned16).
#include <cstdint>

#include "core/cuda/math.cuh"

namespace occam::cuda {

/// Elements of T in 16 bytes: 4 floats, 2 doubles, 8 bf16.
template <class T>
inline constexpr int kPack = 16 / int(sizeof(T));

/// Raw 16 bytes as elements of T.
template <class T>
struct alignas(16) Pack {
  T v[kPack<T>];
};

template <class T>
__device__ __forceinline__ Pack<T> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T>*>(from);
}
template <class T>
__device__ __forceinline__ void store_pack(T* to, const Pack<T>& pack) {
  *reinterpret_cast<Pack<T>*>(to) = pack;
}

/// Loads one pack as accumulators: `float x[kPack<bf16>]; load_acc(p, x);`
template <class T>
__device__ __forceinline__ void load_acc(const T* from, acc_t<T> (&to)[kPack<T>]) {
  Pack<T> pack = load_pack(from);
#pragma unroll
  for (int i = 0; i < kPack<T>; ++i) to[i] = to_acc(pack.v[i]);
}
/// Rounds one pack of accumulators to T and stores it.
template <class T>
__device__ __forceinline__ void store_acc(T* to, const acc_t<T> (&from)[kPack<T>]) {
  Pack<T> pack;
#pragma unroll
  for (int i = 0; i < kPack<T>; ++i) pack.v[i] = from_acc<T>(from[i]);
  store_pack(to, pack);
}

}  // namespace occam::cuda
