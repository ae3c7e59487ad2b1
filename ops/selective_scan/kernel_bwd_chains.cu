// Backward for up to 16 states: two neighbouring lanes have a channel and eight of its states each.
#include "ops/selective_scan/launch.h"
#include "ops/selective_scan/tile.cuh"

namespace occam::kernels {

namespace {

constexpr int kAll = 16, kSplit = 2, kStates = kAll / kSplit;  // of a lane
constexpr int kTokens = kTile<4>, kPart = 4;                   // of a tile, and of a part of it
constexpr int kVectors = 2 * kAll;                             // B and C of a token
constexpr int kCopies = 4, kBlock = kSplit * kChannels, kBlockWarps = kBlock / 32;
constexpr int kAtOnce = 4;  // blocks on a multiprocessor

/// State k of a lane is state k ^ mask of its eight, mask being the channel's place among eight, so that what
/// is added over channels is exchanged without choosing: in a step over channels 4 apart every lane gives
/// away the states with bit 2, and so on. Left is, of the lane's first state, the sum over 8 channels.
template <int kApart = kStates / 2>
__device__ __forceinline__ float sum_over_channels(float (&v)[kStates]) {
#pragma unroll
  for (int k = 0; k < kApart; ++k) v[k] += __shfl_xor_sync(0xffffffffu, v[k + kApart], kApart * kSplit);
  if constexpr (kApart > 1) return sum_over_channels<kApart / 2>(v);
  return v[0];
}

struct Shared {
  float4 steps[kTokens][kChannels];                     // dt, u, slope of dt by delta, gy
  float4 states[kTokens / kPart][kStates / 4][kBlock];  // before the parts of the tile
  float vectors[kTokens][2][kCopies][kAll];             // copy i: of B and C with state k at k ^ i
  float by_warp[kBlockWarps][kTokens][kVectors];
};

/// B or C of a token in the order of the lane's states.
__device__ __forceinline__ void load_vector(float (&v)[kStates], const float (&copies)[kCopies][kAll],
                                            int lane, int mask) {
  const float4* from = reinterpret_cast<const float4*>(copies[mask % 4] + lane * kStates);
#pragma unroll
  for (int q = 0; q < kStates / 4; ++q) {
    const float4 f = from[q ^ mask / 4];
    v[4 * q] = f.x, v[4 * q + 1] = f.y, v[4 * q + 2] = f.z, v[4 * q + 3] = f.w;
  }
}

/// From the last tile to the first, and within it part by part: states of a part are computed again from
/// those before it, then
///   dh_t = gy_t C_t + d,   d <- a_t dh_t
/// With sums_only just d at the segment's start, from 0, is computed.
template <class T>
__global__ void __launch_bounds__(kBlock, kAtOnce)
    selective_scan_bwd_chains(SelectiveScanBackward<T, float> g, Segments segments, Sums sums,
                              const float* starts, BackwardParts parts, bool sums_only) {
  extern __shared__ __align__(16) uint8_t bytes[];
  Shared& shared = *reinterpret_cast<Shared*>(bytes);
  const SelectiveScan<T>& a = g.forward;
  const ChannelScanShape s = a.s;
  const Spot at(s, segments, kSplit);
  if (sums_only && at.segment == 0) return;
  const int mask = at.local % kStates, warp = int(threadIdx.x) / 32;
  const int64_t chains = s.chains(), groups = (s.c + kChannels - 1) / kChannels;
  const int64_t channel = at.some_channel(s), row = at.edge(at.direction == 1);
  const int64_t step = at.direction == 1 ? -2 * s.c : 2 * s.c;
  const int64_t own = (row * 2 + at.direction) * s.c + channel, of_y = s.y_at(row, at.direction, channel);
  const int64_t vectors = vector_start(s, at), token_step = at.direction == 0 ? 2 * s.n : -2 * s.n;
  const float skip = to_acc(a.skip[at.direction * s.c + channel]);
  // Of B and C a thread copies one element of every fourth token, and later adds that of their gradients.
  const int which = int(threadIdx.x) / kAll % 2, element = int(threadIdx.x) % kAll;
  const bool element_exists = element < s.n;
  const T* const own_vector = (which == 0 ? a.in : a.out) + vectors + warp * token_step + element;
  float* const own_part = parts.vectors +
                          (which * groups + (at.channel - at.local) / kChannels) * s.rows() * 2 * s.n +
                          vectors + warp * token_step + element;
  auto state_of = [&](int k) { return at.lane * kStates + (k ^ mask); };
  auto there = [&](int k) { return at.valid && state_of(k) < s.n; };

  float rate[kStates], d[kStates] = {}, g_a[kStates] = {}, total = 0, g_skip = 0;
#pragma unroll
  for (int k = 0; k < kStates; ++k)
    rate[k] = there(k) ? rate_of(a.a_log[(at.direction * s.c + channel) * s.n + state_of(k)]) : 0.0f;
  if (!sums_only && at.valid)
    for (int64_t segment = segments.count - 1; segment > at.segment; --segment) {
      const int64_t chain = segment * chains + at.chain;
      const float dt = sums.dt[chain];
#pragma unroll
      for (int k = 0; k < kStates; ++k)
        if (there(k)) d[k] = exp2_fast(dt * rate[k]) * d[k] + sums.state[chain * s.n + state_of(k)];
    }

  const int last_tile = at.first < at.last ? (at.last - 1) / kTokens : -1;
  for (int tile = last_tile; tile * kTokens >= at.first; --tile) {
    const int position = tile * kTokens;
    __syncthreads();
    const T* from = own_vector + position * token_step;
#pragma unroll
    for (int i = 0; i < kTokens / kBlockWarps; ++i) {
      const int token = warp + i * kBlockWarps;
      const float v = element_exists && position + token < at.last ? to_acc(*from) : 0.0f;
      from += kBlockWarps * token_step;
#pragma unroll
      for (int copy = 0; copy < kCopies; ++copy) shared.vectors[token][which][copy][element ^ copy] = v;
    }
    {
      constexpr int kHalf = kTokens / kSplit;  // of the tokens each lane reads some
      const int first = position + at.lane * kHalf;
      T u[kHalf], delta[kHalf], gy[kHalf];
      const T *next_u = a.u + own + first * step, *next_delta = a.delta + (next_u - a.u),
              *next_gy = g.gy + of_y + first * step;
#pragma unroll
      for (int i = 0; i < kHalf; ++i) {
        const bool exists = first + i < at.last;
        u[i] = exists ? *next_u : from_acc<T>(0.0f);
        delta[i] = exists ? *next_delta : from_acc<T>(0.0f);
        gy[i] = exists && at.valid ? *next_gy : from_acc<T>(0.0f);
        next_u += step, next_delta += step, next_gy += step;
      }
#pragma unroll
      for (int i = 0; i < kHalf; ++i) {
        const bool exists = first + i < at.last;  // else a step of 0, which changes nothing
        const float x = to_acc(delta[i]);
        shared.steps[at.lane * kHalf + i][at.local] =
            make_float4(exists ? softplus<T>(x) : 0.0f, to_acc(u[i]), sigmoid_for<T>(x), to_acc(gy[i]));
      }
    }
    __syncthreads();
    if (sums_only) {
#pragma unroll 2
      for (int token = kTokens - 1; token >= 0; --token) {
        const float4 of_token = shared.steps[token][at.local];
        float out[kStates];
        load_vector(out, shared.vectors[token][1], at.lane, mask);
        total += of_token.x;
#pragma unroll
        for (int k = 0; k < kStates; ++k)
          d[k] = exp2_fast(of_token.x * rate[k]) * fmaf(of_token.w, out[k], d[k]);
      }
      continue;
    }
    float h[kStates];
    auto advance = [&](int token) {
      const float4 of_token = shared.steps[token][at.local];
      const float du = of_token.x * of_token.y;
      float in[kStates];
      load_vector(in, shared.vectors[token][0], at.lane, mask);
#pragma unroll
      for (int k = 0; k < kStates; ++k) h[k] = fmaf(exp2_fast(of_token.x * rate[k]), h[k], du * in[k]);
    };
    const float* start = starts + (tile * chains + at.chain) * s.n;
#pragma unroll
    for (int k = 0; k < kStates; ++k) h[k] = there(k) ? start[state_of(k)] : 0.0f;
#pragma unroll 1
    for (int part = 0; part < kTokens / kPart; ++part) {
#pragma unroll
      for (int q = 0; q < kStates / 4; ++q)
        shared.states[part][q][threadIdx.x] = make_float4(h[4 * q], h[4 * q + 1], h[4 * q + 2], h[4 * q + 3]);
      if (part < kTokens / kPart - 1)
#pragma unroll
        for (int i = 0; i < kPart; ++i) advance(part * kPart + i);
    }
#pragma unroll 1
    for (int part = kTokens / kPart - 1; part >= 0; --part) {
#pragma unroll
      for (int q = 0; q < kStates / 4; ++q) {
        const float4 f = shared.states[part][q][threadIdx.x];
        h[4 * q] = f.x, h[4 * q + 1] = f.y, h[4 * q + 2] = f.z, h[4 * q + 3] = f.w;
      }
      float before[kPart][kStates];
#pragma unroll
      for (int i = 0; i < kPart; ++i) {
#pragma unroll
        for (int k = 0; k < kStates; ++k) before[i][k] = h[k];
        advance(part * kPart + i);
      }
#pragma unroll
      for (int i = kPart - 1; i >= 0; --i) {
        const int token = part * kPart + i, p = position + token;
        const float4 of_token = shared.steps[token][at.local];
        const float dt = of_token.x, u = of_token.y, gradient = of_token.w, du = dt * u;
#pragma unroll
        for (int k = 0; k < kStates; ++k) h[k] *= gradient;
        const float to_out = sum_over_channels(h);
        float vector[kStates], to_du = 0, to_dt = 0;
        load_vector(vector, shared.vectors[token][1], at.lane, mask);
#pragma unroll
        for (int k = 0; k < kStates; ++k) vector[k] = fmaf(gradient, vector[k], d[k]);  // dh
        float in[kStates];
        load_vector(in, shared.vectors[token][0], at.lane, mask);
#pragma unroll
        for (int k = 0; k < kStates; ++k) {
          to_du = fmaf(vector[k], in[k], to_du);
          d[k] = exp2_fast(dt * rate[k]) * vector[k];
          const float slope = d[k] * before[i][k];
          to_dt = fmaf(slope, rate[k], to_dt);
          g_a[k] = fmaf(slope, dt, g_a[k]);
          vector[k] *= du;
          h[k] = before[i][k];
        }
        const float to_in = sum_over_channels(vector);
        // Lanes of the upper half get the sums for C, those of the lower for B.
        const bool upper = threadIdx.x & 16;
        shared.by_warp[warp][token][(upper ? kAll : 0) + state_of(0)] =
            (upper ? to_out : to_in) + __shfl_xor_sync(0xffffffffu, upper ? to_in : to_out, 16);
        to_du += __shfl_xor_sync(0xffffffffu, to_du, 1), to_dt += __shfl_xor_sync(0xffffffffu, to_dt, 1);
        g_skip = fmaf(gradient, u, g_skip);
        if (p < at.last && at.valid) {
          // Rates are in units of 2^x, so to_dt came log2(e) times too large.
          const float gu = fmaf(to_du, dt, gradient * skip);
          const float g_delta = (to_dt * 0.69314718055994531f + to_du * u) * of_token.z;
          (at.lane == 0 ? g.gu : g.g_delta)[own + p * step] = from_acc<T>(at.lane == 0 ? gu : g_delta);
        }
      }
    }
    __syncthreads();
    float* to = own_part + position * token_step;
#pragma unroll
    for (int i = 0; i < kTokens / kBlockWarps; ++i) {
      const int token = warp + i * kBlockWarps;
      float sum = 0;
#pragma unroll
      for (int w = 0; w < kBlockWarps; ++w) sum += shared.by_warp[w][token][threadIdx.x % 32];
      if (element_exists && position + token < at.last) *to = sum;
      to += kBlockWarps * token_step;
    }
  }
  if (!at.valid) return;
  if (sums_only && at.lane == 0) sums.dt[at.segment * chains + at.chain] = total;
#pragma unroll
  for (int k = 0; k < kStates; ++k)
    if (there(k)) {
      if (sums_only)
        sums.state[(at.segment * chains + at.chain) * s.n + state_of(k)] = d[k];
      else  // dA / d a_log = A
        parts.a[(at.part + at.channel) * s.n + state_of(k)] = g_a[k] * rate[k] * 0.69314718055994531f;
    }
  if (!sums_only && at.lane == 0) parts.skip[at.part + at.channel] = g_skip;
}

}  // namespace

Segments selective_scan_chain_segments(const ChannelScanShape& s) { return segments_of(s, kTokens, kAtOnce); }

template <class T>
void selective_scan_bwd_chains_pass(const SelectiveScanBackward<T, float>& g, const Segments& segments,
                                    const Sums& sums, const float* starts, const BackwardParts& parts,
                                    bool sums_only, void* stream) {
  allow_shared(selective_scan_bwd_chains<T>, "selective_scan_bwd_chains", int64_t(sizeof(Shared)));
  selective_scan_bwd_chains<T>
      <<<blocks_of(g.forward.s, segments), kBlock, sizeof(Shared), as_stream(stream)>>>(
          g, segments, sums, starts, parts, sums_only);
  check_launch("selective_scan_bwd_chains", stream);
}

template void selective_scan_bwd_chains_pass(const SelectiveScanBackward<float, float>&, const Segments&,
                                             const Sums&, const float*, const BackwardParts&, bool, void*);
template void selective_scan_bwd_chains_pass(const SelectiveScanBackward<bf16, float>&, const Segments&,
                                             const Sums&, const float*, const BackwardParts&, bool, void*);

}  // namespace occam::kernels
