#pragma once
// What forward and backward share: a block has 64 channels of one image, direction and segment; 4 lanes share
// a channel and have kStates of its states each. Tokens come in tiles through shared memory, in scan order.
#include "core/cuda/launch.h"
#include "core/cuda/math.cuh"
#include "core/cuda/mma.cuh"
#include "ops/selective_scan/kernel.h"

namespace occam::kernels {

using namespace cuda;

constexpr int kChannels = 64, kLanes = 4, kThreads = kChannels * kLanes;
constexpr int kWarps = kThreads / 32, kWarpChannels = 32 / kLanes;
/// Tokens of a tile: backward keeps their states in registers.
template <int kStates>
inline constexpr int kTile = 64 / kStates;

/// Segments of the tokens, whole tiles long; with one a block walks along all tokens.
struct Cut {
  int64_t segments = 1, length = 0, tiles = 0;  // tiles of a segment
};
inline Cut cut_of(const SelectiveShape& s, int tile) {
  const int64_t tiles = div_up<int64_t>(s.t, tile), blocks = s.b * 2 * div_up<int64_t>(s.c, kChannels);
  const int64_t wanted = 3 * int64_t(device_limits().sm_count);
  int64_t segments = 2 * blocks > wanted ? 1 : std::min(tiles, div_up(wanted, blocks));
  const int64_t each = div_up(tiles, segments);
  return {div_up(tiles, each), each * tile, each};
}

/// What segments leave for each other: sums of dt [segment][b,2,c], end states from 0 [segment][b,2,c,n].
struct Sums {
  float *dt, *state;
};
inline int64_t sums_floats(const SelectiveShape& s, const Cut& cut) {
  return cut.segments > 1 ? cut.segments * s.b * 2 * s.c * (1 + s.n) : 0;
}
inline Sums sums_at(float* room, const SelectiveShape& s, const Cut& cut) {
  return {room, room + cut.segments * s.b * 2 * s.c};
}

/// Where a thread works.
struct Spot {
  int64_t image, direction, segment, first, last;  // positions [first, last) in scan order
  int64_t channel, chain;                          // chain: of [b,2,c]
  int lane, local;                                 // states lane kStates ...; channel within the block
  bool valid;
  __device__ __forceinline__ Spot(const SelectiveShape& s, const Cut& cut, int64_t block) {
    const int64_t blocks = (s.c + kChannels - 1) / kChannels, group = block % blocks;
    direction = block / blocks % 2;
    segment = block / blocks / 2 % cut.segments;
    image = block / blocks / 2 / cut.segments;
    first = segment * cut.length, last = min(s.t, first + cut.length);
    lane = int(threadIdx.x) % kLanes, local = int(threadIdx.x) / kLanes;
    channel = group * kChannels + local;
    valid = channel < s.c;
    chain = (image * 2 + direction) * s.c + channel;
  }
  __device__ __forceinline__ int64_t token(const SelectiveShape& s, int64_t position) const {
    return direction == 0 ? position : s.t - 1 - position;
  }
  __device__ __forceinline__ int64_t row(const SelectiveShape& s, int64_t position) const {
    return (image * s.t + token(s, position)) * 2 + direction;
  }
};

__device__ __forceinline__ float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

/// A in units of 2^x; 0 for states that there are not.
template <int kStates, class T>
__device__ __forceinline__ void load_rates(float (&rate)[kStates], const SelectiveScan<T>& a,
                                           const Spot& at) {
#pragma unroll
  for (int k = 0; k < kStates; ++k) {
    const int64_t state = at.lane * kStates + k;
    const bool there = at.valid && state < a.s.n;
    rate[k] = there ? -1.4426950408889634f *
                          expf(to_acc(a.a_log[(at.direction * a.s.c + at.channel) * a.s.n + state]))
                    : 0.0f;
  }
}

/// B or C of a tile's tokens to shared memory [tile][4 kStates]; 0 outside.
template <int kStates, class T>
__device__ __forceinline__ void load_vectors(float* to, const T* from, const SelectiveShape& s,
                                             const Spot& at, int64_t position) {
  constexpr int kN = kLanes * kStates;
  for (int i = int(threadIdx.x); i < kTile<kStates> * kN; i += kThreads) {
    const int64_t p = position + i / kN, state = i % kN;
    to[i] = p < at.last && state < s.n ? to_acc(from[at.row(s, p) * s.n + state]) : 0.0f;
  }
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
