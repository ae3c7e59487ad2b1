#include "ops/selective_scan/kernel.h"
#include "ops/selective_scan/launch.h"
#include "ops/selective_scan/tile.cuh"

namespace occam::kernels {

namespace {

/// Adds eight values over the eight channels of a warp; the lane of channel i keeps the sum of value i.
__device__ __forceinline__ float sum_over_channels(const float (&v)[8]) {
  const int channel = int(threadIdx.x) % 32 / kLanes;
  float four[4], two[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const bool upper = channel & 4;
    four[i] = (upper ? v[i + 4] : v[i]) + __shfl_xor_sync(0xffffffffu, upper ? v[i] : v[i + 4], 4 * kLanes);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const bool upper = channel & 2;
    two[i] = (upper ? four[i + 2] : four[i]) +
             __shfl_xor_sync(0xffffffffu, upper ? four[i] : four[i + 2], 2 * kLanes);
  }
  const bool odd = channel & 1;
  return (odd ? two[1] : two[0]) + __shfl_xor_sync(0xffffffffu, odd ? two[0] : two[1], kLanes);
}

/// From the last tile to the first: states of a tile are computed again from those before it, then
///   dh_t = gy_t C_t + d,   d <- a_t dh_t
/// With sums_only just d at the segment's start, from 0, is computed.
template <class T, int kStates>
__global__ void __launch_bounds__(kThreads, 2)
    selective_scan_bwd_tiles(SelectiveScanBackward<T, float> g, Segments segments, Sums sums,
                             const float* starts, BackwardParts parts, bool sums_only, bool packed) {
  constexpr int kTokens = kTile<kStates>, kN = kLanes * kStates;
  __shared__ __align__(16) float4 steps[kTokens][kChannels];  // dt, dt u, gy
  __shared__ __align__(16) float2 back[kTokens][kChannels];   // gradients of dt u, and of dt A by A
  __shared__ __align__(16) float in[kThreads], out[kThreads], by_warp[kWarps][2 * kThreads];
  const SelectiveScan<T>& a = g.forward;
  const ChannelScanShape s = a.s;
  const Spot at(s, segments);
  if (sums_only && at.segment == 0) return;
  float rate[kStates], d[kStates] = {}, g_a[kStates] = {}, total = 0, g_skip[4] = {};
  load_rates(rate, a, at);
  const int64_t chains = s.chains(), groups = (s.c + kChannels - 1) / kChannels;
  if (!sums_only && at.valid)
    for (int64_t k = segments.count - 1; k > at.segment; --k)
      pass_segment(d, rate, {sums.dt + k * chains, sums.state + k * chains * s.n}, at.chain, at.lane, s.n);
  const int warp = int(threadIdx.x) / 32;
  const Copier copier(s, at, packed);
  const bool copies = copier.token < kTokens;
  const int64_t vectors = vector_start(s, at);
  const Four<T> skip = copier.parameters(a.skip, s, at);
  const int last_tile = at.first < at.last ? (at.last - 1) / kTokens : -1;
  for (int tile = last_tile; tile * kTokens >= at.first; --tile) {
    const int position = tile * kTokens;
    Four<T> u, delta;
    if (copies) {
      u = copier.load(a.u, false, position, at.last);
      delta = copier.load(a.delta, false, position, at.last);
      const Four<T> gy = copier.load(g.gy, true, position, at.last);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float dt = position + copier.token < at.last ? softplus<T>(to_acc(delta.v[i])) : 0.0f;
        steps[copier.token][copier.column + i] = make_float4(dt, dt * to_acc(u.v[i]), to_acc(gy.v[i]), 0);
      }
    }
    in[threadIdx.x] = load_vector<kStates>(a.in, s, at, vectors, position);
    out[threadIdx.x] = load_vector<kStates>(a.out, s, at, vectors, position);
    __syncthreads();
    if (sums_only) {
#pragma unroll
      for (int token = kTokens - 1; token >= 0; --token) {
        const float4 step = steps[token][at.local];
        total += step.x;
#pragma unroll
        for (int k = 0; k < kStates; ++k)
          d[k] = exp2_fast(step.x * rate[k]) * (d[k] + step.z * out[token * kN + at.lane * kStates + k]);
      }
      __syncthreads();
      continue;
    }
    float before[kTokens][kStates], h[kStates];
#pragma unroll
    for (int k = 0; k < kStates; ++k) {
      const int state = at.lane * kStates + k;
      h[k] = at.valid && state < s.n ? starts[(tile * chains + at.chain) * s.n + state] : 0.0f;
    }
#pragma unroll
    for (int token = 0; token < kTokens; ++token) {
      const float4 step = steps[token][at.local];
#pragma unroll
      for (int k = 0; k < kStates; ++k) {
        before[token][k] = h[k];
        h[k] = exp2_fast(step.x * rate[k]) * h[k] + step.y * in[token * kN + at.lane * kStates + k];
      }
    }
#pragma unroll
    for (int token = kTokens - 1; token >= 0; --token) {
      const float4 of_token = steps[token][at.local];
      const float step = of_token.x, du = of_token.y, gradient = of_token.z;
      float to_du = 0, to_dt = 0;
#pragma unroll
      for (int half = 0; half < kStates; half += 4) {  // four states: four gradients of B, four of C
        float to_vectors[8];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int k = half + i, at_k = token * kN + at.lane * kStates + k;
          const float keep = exp2_fast(step * rate[k]), dh = d[k] + gradient * out[at_k];
          const float slope = dh * before[token][k] * keep;
          to_vectors[i] = dh * du;
          to_vectors[4 + i] = gradient * h[k];
          to_du += dh * in[at_k];
          to_dt += slope * rate[k];
          g_a[k] += slope * step;
          d[k] = keep * dh;
          h[k] = before[token][k];  // the state after the step before
        }
        // Value 4 v + i of channel j's lanes: gradient v (B, C) of state lane kStates + half + i.
        by_warp[warp][(token * 2 + at.local % 8 / 4) * kN + at.lane * kStates + half + at.local % 4] =
            sum_over_channels(to_vectors);
      }
      // The first two lanes get the sum of to_du, the others that of to_dt.
      const bool upper = at.lane & 2;
      float mine = (upper ? to_dt : to_du) + __shfl_xor_sync(0xffffffffu, upper ? to_du : to_dt, 2);
      mine += __shfl_xor_sync(0xffffffffu, mine, 1);
      float2& place = back[token][at.local];
      if ((at.lane & 1) == 0) (upper ? place.y : place.x) = mine;
    }
    __syncthreads();
    if (copies) {
      Four<T> gu, g_delta;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float4 step = steps[copier.token][copier.column + i];
        const float2 by = back[copier.token][copier.column + i];
        gu.v[i] = from_acc<T>(by.x * step.x + step.z * to_acc(skip.v[i]));
        // Rates are in units of 2^x, so by.y came log2(e) times too large.
        g_delta.v[i] =
            from_acc<T>((by.y * 0.69314718055994531f + by.x * to_acc(u.v[i])) * sigmoid(to_acc(delta.v[i])));
        g_skip[i] += step.z * to_acc(u.v[i]);
      }
      copier.store(g.gu, gu, false, position, at.last);
      copier.store(g.g_delta, g_delta, false, position, at.last);
    }
    const int64_t group = (at.channel - at.local) / kChannels;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = int(threadIdx.x) + half * kThreads, state = i % kN, which = i / kN % 2;
      const int p = position + i / (2 * kN);
      float sum = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += by_warp[w][i];
      if (p < at.last && state < s.n)
        parts.vectors[(which * groups + group) * s.rows() * 2 * s.n + vectors +
                      (at.direction == 0 ? p : -p) * (2 * s.n) + state] = sum;
    }
    __syncthreads();
  }
  if (sums_only) {
    if (!at.valid) return;
    if (at.lane == 0) sums.dt[at.segment * chains + at.chain] = total;
#pragma unroll
    for (int k = 0; k < kStates; ++k)
      if (at.lane * kStates + k < s.n)
        sums.state[(at.segment * chains + at.chain) * s.n + at.lane * kStates + k] = d[k];
    return;
  }
  if (at.valid)
#pragma unroll
    for (int k = 0; k < kStates; ++k)
      if (at.lane * kStates + k < s.n)  // dA / d a_log = A
        parts.a[(at.part + at.channel) * s.n + at.lane * kStates + k] =
            g_a[k] * rate[k] * 0.69314718055994531f;
  // Threads with the same channels, of different tokens, add up through shared memory.
  if (copies)
#pragma unroll
    for (int i = 0; i < 4; ++i) back[copier.token][copier.column + i].x = g_skip[i];
  __syncthreads();
  const int64_t channel = at.channel - at.local + int(threadIdx.x);
  if (int(threadIdx.x) < kChannels && channel < s.c) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kTokens; ++i) sum += back[i][threadIdx.x].x;
    parts.skip[at.part + channel] = sum;
  }
}

/// to[i] = sum over groups of parts[group][i].
template <class T>
__global__ void selective_scan_bwd_vectors(const float* parts, T* to, int64_t groups, int64_t count) {
  OCCAM_GRID_LOOP(i, count) {
    float sum = 0;
    for (int64_t k = 0; k < groups; ++k) sum += parts[k * count + i];
    to[i] = from_acc<T>(sum);
  }
}

struct Room {
  int64_t sums, starts, vectors;
};
Room room_of(const ChannelScanShape& s, const Segments& segments, int tile) {
  const int64_t chains = s.chains();
  return {std::max(sums_floats(s, segments), selective_scan_fwd_workspace(s)),
          div_up<int64_t>(s.t, tile) * chains * s.n, 2 * channel_groups(s) * s.rows() * 2 * s.n};
}

constexpr int kManyStates = 16;  // of a lane, for more than 16 of a channel

bool by_chains(const ChannelScanShape& s) { return s.n <= 16; }
int tile_of(const ChannelScanShape& s) { return by_chains(s) ? kTile<4> : kTile<kManyStates>; }
Segments back_segments(const ChannelScanShape& s) {
  return by_chains(s) ? selective_scan_chain_segments(s) : segments_of(s, kTile<kManyStates>);
}

}  // namespace

int64_t selective_scan_bwd_workspace(const ChannelScanShape& s) {
  const Room room = room_of(s, back_segments(s), tile_of(s));
  return room.sums + room.starts + room.vectors;
}

int64_t selective_scan_parts(const ChannelScanShape& s) { return s.b * back_segments(s).count; }

template <class T>
void selective_scan_bwd(const SelectiveScanBackward<T, float>& g, float* workspace, void* stream) {
  const ChannelScanShape s = g.forward.s;
  const Segments segments = back_segments(s);
  const Room room = room_of(s, segments, tile_of(s));
  float *starts = workspace + room.sums, *vectors = starts + room.starts;
  selective_scan_states(g.forward, workspace, starts, tile_of(s), stream);
  const Sums sums = sums_at(workspace, s, segments);  // those of the way there are used up by now
  const BackwardParts parts{vectors, g.g_a, g.g_skip};
  for (bool sums_only : {true, false}) {
    if (sums_only && segments.count == 1) continue;
    if (by_chains(s)) {
      selective_scan_bwd_chains_pass(g, segments, sums, starts, parts, sums_only, stream);
    } else {
      const bool packed = copies_packed<T>(s, g.forward.u, g.forward.delta, g.gy, g.gu, g.g_delta);
      selective_scan_bwd_tiles<T, kManyStates><<<blocks_of(s, segments), kThreads, 0, as_stream(stream)>>>(
          g, segments, sums, starts, parts, sums_only, packed);
      check_launch("selective_scan_bwd_tiles", stream);
    }
  }
  const int64_t groups = channel_groups(s), count = s.rows() * 2 * s.n;
  auto add_up = [&](const float* from, T* to) {
    selective_scan_bwd_vectors<<<grid_for(count, 256), 256, 0, as_stream(stream)>>>(from, to, groups, count);
    check_launch("selective_scan_bwd_vectors", stream);
  };
  add_up(vectors, g.g_in);
  add_up(vectors + groups * count, g.g_out);
}

template void selective_scan_bwd(const SelectiveScanBackward<float, float>&, float*, void*);
template void selective_scan_bwd(const SelectiveScanBackward<bf16, float>&, float*, void*);

}  // namespace occam::kernels
