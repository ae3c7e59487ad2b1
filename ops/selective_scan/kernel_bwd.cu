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

/// What the kernel writes for later sums: gradients of B and C by block of channels [blocks][b,t,2][2 n],
/// those of the parameters by image and segment.
struct Parts {
  float *vectors, *a, *skip;
};

/// From the last tile to the first: states of a tile are computed again from those before it, then
///   dh_t = gy_t C_t + d,   d <- a_t dh_t
/// With ScanPass::sums only d at the segment's start, from 0, is computed.
template <class T, int kStates>
__global__ void __launch_bounds__(kThreads, 2)
    selective_scan_bwd_tiles(SelectiveScanBackward<T, float> g, Cut cut, Sums sums, const float* starts,
                             Parts parts, ScanPass pass) {
  constexpr int kTokens = kTile<kStates>, kN = kLanes * kStates, kEach = kTokens * kChannels / kThreads;
  __shared__ float u[kTokens][kChannels], dt[kTokens][kChannels], gy[kTokens][kChannels],
      g_du[kTokens][kChannels], g_dt[kTokens][kChannels], in[kTokens * kN], out[kTokens * kN];
  __shared__ float by_warp[kWarps][kTokens * 2 * kN];
  const SelectiveScan<T>& a = g.forward;
  const SelectiveShape s = a.s;
  const Spot at(s, cut, blockIdx.x);
  const bool sums_only = pass == ScanPass::sums;
  if (sums_only && at.segment == 0) return;
  float rate[kStates], d[kStates] = {}, g_a[kStates] = {}, total = 0, g_skip = 0;
  load_rates(rate, a, at);
  const int64_t chains = s.b * 2 * s.c, groups = (s.c + kChannels - 1) / kChannels;
  if (!sums_only && at.valid)
    for (int64_t k = cut.segments - 1; k > at.segment; --k)
      pass_segment(d, rate, {sums.dt + k * chains, sums.state + k * chains * s.n}, at.chain, at.lane, s.n);
  const int column = int(threadIdx.x) % kChannels, warp = int(threadIdx.x) / 32;
  const int64_t copied = at.channel - at.local + column;
  const float skip = copied < s.c ? to_acc(a.skip[at.direction * s.c + copied]) : 0.0f;
  for (int64_t tile = (at.last - 1) / kTokens; tile * kTokens >= at.first; --tile) {
    const int64_t position = tile * kTokens;
    float delta[kEach];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int token = int(threadIdx.x) / kChannels + i * kLanes;
      const bool there = position + token < at.last && copied < s.c;
      const int64_t from = at.row(s, position + token) * s.c + copied;
      delta[i] = there ? to_acc(a.delta[from]) : 0.0f;
      u[token][column] = there ? to_acc(a.u[from]) : 0.0f;
      dt[token][column] = there ? softplus(delta[i]) : 0.0f;
      gy[token][column] =
          there ? to_acc(g.gy[s.y_at(at.image, at.token(s, position + token), at.direction, copied)]) : 0.0f;
    }
    load_vectors<kStates>(in, a.in, s, at, position);
    load_vectors<kStates>(out, a.out, s, at, position);
    __syncthreads();
    if (sums_only) {
#pragma unroll
      for (int token = kTokens - 1; token >= 0; --token) {
        const float step = dt[token][at.local], gradient = gy[token][at.local];
        total += step;
#pragma unroll
        for (int k = 0; k < kStates; ++k)
          d[k] = exp2_fast(step * rate[k]) * (d[k] + gradient * out[token * kN + at.lane * kStates + k]);
      }
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
      const float step = dt[token][at.local], du = step * u[token][at.local];
#pragma unroll
      for (int k = 0; k < kStates; ++k) {
        before[token][k] = h[k];
        h[k] = exp2_fast(step * rate[k]) * h[k] + du * in[token * kN + at.lane * kStates + k];
      }
    }
#pragma unroll
    for (int token = kTokens - 1; token >= 0; --token) {
      const float step = dt[token][at.local], du = step * u[token][at.local], gradient = gy[token][at.local];
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
      if ((at.lane & 1) == 0) (upper ? g_dt : g_du)[token][at.local] = mine;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int token = int(threadIdx.x) / kChannels + i * kLanes;
      if (position + token >= at.last || copied >= s.c) continue;
      const int64_t to = at.row(s, position + token) * s.c + copied;
      const float by_du = g_du[token][column], by_y = gy[token][column];
      g.gu[to] = from_acc<T>(by_du * dt[token][column] + by_y * skip);
      // Rates are in units of 2^x, so to_dt came log2(e) times too large.
      g.g_delta[to] = from_acc<T>((g_dt[token][column] * 0.69314718055994531f + by_du * u[token][column]) *
                                  sigmoid(delta[i]));
      g_skip += by_y * u[token][column];
    }
    const int64_t group = (at.channel - at.local) / kChannels;
    for (int i = int(threadIdx.x); i < kTokens * 2 * kN; i += kThreads) {
      const int64_t p = position + i / (2 * kN), which = i / kN % 2, state = i % kN;
      if (p >= at.last || state >= s.n) continue;
      float sum = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += by_warp[w][i];
      parts.vectors[((which * groups + group) * s.b * s.t * 2 + at.row(s, p)) * s.n + state] = sum;
    }
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
  const int64_t part = ((at.image * cut.segments + at.segment) * 2 + at.direction) * s.c;
  if (at.valid)
#pragma unroll
    for (int k = 0; k < kStates; ++k)
      if (at.lane * kStates + k < s.n)  // dA / d a_log = A
        parts.a[(part + at.channel) * s.n + at.lane * kStates + k] = g_a[k] * rate[k] * 0.69314718055994531f;
  __syncthreads();
  g_du[int(threadIdx.x) / kChannels][column] = g_skip;
  __syncthreads();
  if (int(threadIdx.x) < kChannels && copied < s.c) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kLanes; ++i) sum += g_du[i][column];
    parts.skip[part + copied] = sum;
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
Room room_of(const SelectiveShape& s, const Cut& cut, int tile) {
  const int64_t chains = s.b * 2 * s.c;
  return {sums_floats(s, cut), div_up<int64_t>(s.t, tile) * chains * s.n,
          2 * div_up<int64_t>(s.c, kChannels) * s.b * s.t * 2 * s.n};
}

template <class T, int kStates>
void launch(const SelectiveScanBackward<T, float>& g, float* workspace, void* stream) {
  const SelectiveShape s = g.forward.s;
  const Cut cut = cut_of(s, kTile<kStates>);
  const Room room = room_of(s, cut, kTile<kStates>);
  float *starts = workspace + room.sums, *vectors = starts + room.starts;
  selective_scan_states(g.forward, workspace, starts, stream);
  const int64_t groups = div_up<int64_t>(s.c, kChannels), count = s.b * s.t * 2 * s.n;
  const unsigned blocks = unsigned(s.b * cut.segments * 2 * groups);
  auto run = [&](ScanPass pass) {  // the sums of the way there are used up by now
    selective_scan_bwd_tiles<T, kStates><<<blocks, kThreads, 0, as_stream(stream)>>>(
        g, cut, sums_at(workspace, s, cut), starts, Parts{vectors, g.g_a, g.g_skip}, pass);
    check_launch("selective_scan_bwd_tiles", stream);
  };
  if (cut.segments > 1) run(ScanPass::sums);
  run(ScanPass::outputs);
  auto add_up = [&](const float* from, T* to) {
    selective_scan_bwd_vectors<<<grid_for(count, 256), 256, 0, as_stream(stream)>>>(from, to, groups, count);
    check_launch("selective_scan_bwd_vectors", stream);
  };
  add_up(vectors, g.g_in);
  add_up(vectors + groups * count, g.g_out);
}

int tile_of(const SelectiveShape& s) { return s.n <= 16 ? kTile<4> : kTile<16>; }

}  // namespace

int64_t selective_scan_bwd_workspace(const SelectiveShape& s) {
  const Room room = room_of(s, cut_of(s, tile_of(s)), tile_of(s));
  return room.sums + room.starts + room.vectors;
}

int64_t selective_scan_parts(const SelectiveShape& s) { return s.b * cut_of(s, tile_of(s)).segments; }

template <class T>
void selective_scan_bwd(const SelectiveScanBackward<T, float>& g, float* workspace, void* stream) {
  if (g.forward.s.n <= 16)
    launch<T, 4>(g, workspace, stream);
  else
    launch<T, 16>(g, workspace, stream);
}

template void selective_scan_bwd(const SelectiveScanBackward<float, float>&, float*, void*);
template void selective_scan_bwd(const SelectiveScanBackward<bf16, float>&, float*, void*);

}  // namespace occam::kernels
