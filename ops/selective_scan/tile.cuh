#pragma once
// What forward and backward share: lanes of ops/scan.cuh with kStates states each.
#include "core/cuda/math.cuh"
#include "core/cuda/mma.cuh"
#include "ops/scan.cuh"
#include "ops/selective_scan/launch.h"

namespace occam::kernels {

constexpr int kWarps = kThreads / 32, kWarpChannels = 32 / kLanes;
/// Tokens of a tile: backward keeps their states in registers.
template <int kStates>
inline constexpr int kTile = 64 / kStates;

inline int64_t sums_floats(const ChannelScanShape& s, const Segments& segments) {
  return segments.count > 1 ? segments.count * s.chains() * (1 + s.n) : 0;
}
inline Sums sums_at(float* room, const ChannelScanShape& s, const Segments& segments) {
  return {room, room + segments.count * s.chains()};
}

template <class T>
struct alignas(4 * sizeof(T)) Four {
  T v[4];
};

/// Offset in an array [b,t,2,n] of position 0; positions are 2 n apart, on or back.
__device__ __forceinline__ int64_t vector_start(const ChannelScanShape& s, const Spot& at) {
  return (at.edge(at.direction == 1) * 2 + at.direction) * s.n;
}

/// Copies go by four channels: thread i has token i / 16 of a tile and channels 4 (i % 16) ... of the block.
struct Copier {
  static constexpr int kRow = kChannels / 4;
  int token, column;            // first of the four within the block
  int64_t own, gathered, step;  // offsets of position 0 in u and in y; elements between positions
  int count;                    // channels there are, 0 to 4
  bool packed;
  __device__ __forceinline__ Copier(const ChannelScanShape& s, const Spot& at, bool all_packed) {
    token = int(threadIdx.x) / kRow, column = int(threadIdx.x) % kRow * 4;
    const int64_t channel = at.channel - at.local + column, edge = at.edge(at.direction == 1);
    count = int(max(int64_t(0), min(int64_t(4), s.c - channel)));
    packed = all_packed;
    own = (edge * 2 + at.direction) * s.c + channel;
    gathered = count > 0 ? s.y_at(edge, at.direction, channel) : 0;
    step = at.direction == 0 ? 2 * s.c : -2 * s.c;
    gap = int(s.w);
    within = count > 0 ? int(channel % s.w) : 0;
  }
  /// Where channel i of the four lies beside the first: in y a head's channels end after w.
  __device__ __forceinline__ int64_t beside(int i, bool in_y) const {
    return in_y ? i + (within + i) / gap * gap : i;
  }
  template <class T>
  __device__ __forceinline__ Four<T> load(const T* from, bool in_y, int position, int last) const {
    Four<T> four;
#pragma unroll
    for (int i = 0; i < 4; ++i) four.v[i] = from_acc<T>(0.0f);
    if (position + token >= last) return four;
    from += (in_y ? gathered : own) + (position + token) * step;
    if (packed && count == 4) return *reinterpret_cast<const Four<T>*>(from);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i < count) four.v[i] = from[beside(i, in_y)];
    return four;
  }
  template <class T>
  __device__ __forceinline__ void store(T* to, const Four<T>& four, bool in_y, int position, int last) const {
    if (position + token >= last) return;
    to += (in_y ? gathered : own) + (position + token) * step;
    if (packed && count == 4) {
      *reinterpret_cast<Four<T>*>(to) = four;
      return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i < count) to[beside(i, in_y)] = four.v[i];
  }
  /// Four of an array [2,c] for the direction.
  template <class T>
  __device__ __forceinline__ Four<T> parameters(const T* from, const ChannelScanShape& s,
                                                const Spot& at) const {
    Four<T> four;
    from += at.direction * s.c + at.channel - at.local + column;
#pragma unroll
    for (int i = 0; i < 4; ++i) four.v[i] = i < count ? from[i] : from_acc<T>(0.0f);
    return four;
  }

 private:
  int gap, within;
};

/// May four channels be copied at once?
template <class T, class... Pointers>
bool copies_packed(const ChannelScanShape& s, const Pointers*... pointers) {
  return s.w % 4 == 0 && ((reinterpret_cast<uintptr_t>(pointers) % (4 * sizeof(T)) == 0) && ...);
}

/// log(1 + e^x); beside bf16 to 1e-5 of itself.
template <class T>
__device__ __forceinline__ float softplus(float x) {
  if constexpr (sizeof(T) != 2) return x > 20.0f ? x : log1pf(expf(x));
  const float e = exp2_fast(x * 1.4426950408889634f);
  const float small = e * (1.0f + e * (-0.5f + e * (0.333333333f - 0.25f * e)));
  return x > 20.0f ? x : e < 0.04f ? small : __logf(1.0f + e);
}

/// A in units of 2^x.
template <class T>
__device__ __forceinline__ float rate_of(T a_log) {
  return -1.4426950408889634f * expf(to_acc(a_log));
}
/// Of a lane's states; 0 for those that there are not.
template <int kStates, class T>
__device__ __forceinline__ void load_rates(float (&rate)[kStates], const SelectiveScan<T>& a,
                                           const Spot& at) {
#pragma unroll
  for (int k = 0; k < kStates; ++k) {
    const int64_t state = at.lane * kStates + k;
    rate[k] = at.valid && state < a.s.n
                  ? rate_of(a.a_log[(at.direction * a.s.c + at.channel) * a.s.n + state])
                  : 0.0f;
  }
}

/// B or C of a tile's tokens [tile][4 kStates], one element a thread; 0 outside.
template <int kStates, class T>
__device__ __forceinline__ float load_vector(const T* from, const ChannelScanShape& s, const Spot& at,
                                             int64_t start, int position) {
  constexpr int kN = kLanes * kStates;
  static_assert(kTile<kStates> * kN == kThreads);
  const int p = position + int(threadIdx.x) / kN;
  const int state = int(threadIdx.x) % kN;
  return p < at.last && state < s.n ? to_acc(from[start + (at.direction == 0 ? p : -p) * (2 * s.n) + state])
                                    : 0.0f;
}

/// states *= what a segment with this sum of dt leaves of them, += what it adds.
template <int kStates>
__device__ __forceinline__ void pass_segment(float (&h)[kStates], const float (&rate)[kStates],
                                             const Sums& sums, int64_t chain, int lane, int64_t n) {
  const float dt = sums.dt[chain];
#pragma unroll
  for (int k = 0; k < kStates; ++k)
    if (lane * kStates + k < n)
      h[k] = exp2_fast(dt * rate[k]) * h[k] + sums.state[chain * n + lane * kStates + k];
}

}  // namespace occam::kernels
