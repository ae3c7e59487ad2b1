#pragma once
// Packs: neighbouring elements that a thread loads and stores at once, at most 16 bytes, the widest access
// there is. Memory holds T (float, double, bf16, ...), registers hold the accumulator type. Pointers must be
// multiples of the pack's size (launch.h: aligned16).
#include <cstdint>

#include "core/cuda/math.cuh"

namespace occam::cuda {

/// Elements of T in 16 bytes: 4 floats, 2 doubles, 8 bf16.
template <class T>
inline constexpr int kPack = 16 / int(sizeof(T));

/// Raw bytes of kWide elements of T, a power of two.
template <class T, int kWide = kPack<T>>
struct alignas(kWide * sizeof(T)) Pack {
  static_assert(kWide * sizeof(T) <= 16);
  T v[kWide];
};

template <int kWide, class T>
__device__ __forceinline__ Pack<T, kWide> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, kWide>*>(from);
}
template <class T>
__device__ __forceinline__ Pack<T> load_pack(const T* from) {
  return load_pack<kPack<T>>(from);
}
/// Zeros where there is no pack; `from` is then not read.
template <int kWide, class T>
__device__ __forceinline__ Pack<T, kWide> load_pack_if(bool there, const T* from) {
  if (there) return load_pack<kWide>(from);
  Pack<T, kWide> zeros;
#pragma unroll
  for (int i = 0; i < kWide; ++i) zeros.v[i] = from_acc<T>(0);
  return zeros;
}
template <class T, int kWide>
__device__ __forceinline__ void store_pack(T* to, const Pack<T, kWide>& pack) {
  *reinterpret_cast<Pack<T, kWide>*>(to) = pack;
}

template <class T, int kWide>
__device__ __forceinline__ void widen(const Pack<T, kWide>& pack, acc_t<T> (&to)[kWide]) {
#pragma unroll
  for (int i = 0; i < kWide; ++i) to[i] = to_acc(pack.v[i]);
}
/// Loads a pack as accumulators: `float x[kPack<bf16>]; load_acc(p, x);`
template <class T, int kWide>
__device__ __forceinline__ void load_acc(const T* from, acc_t<T> (&to)[kWide]) {
  widen(load_pack<kWide>(from), to);
}
/// Rounds a pack of accumulators to T and stores it.
template <class T, int kWide>
__device__ __forceinline__ void store_acc(T* to, const acc_t<T> (&from)[kWide]) {
  Pack<T, kWide> pack;
#pragma unroll
  for (int i = 0; i < kWide; ++i) pack.v[i] = from_acc<T>(from[i]);
  store_pack(to, pack);
}

}  // namespace occam::cuda
