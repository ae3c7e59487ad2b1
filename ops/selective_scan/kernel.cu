#include "ops/selective_scan/kernel.h"

#include "ops/selective_scan/launch.h"
#include "ops/selective_scan/tile.cuh"

namespace occam::kernels {

namespace {

constexpr int kWalked = 4;     // tokens read together, and so many more ahead
constexpr int kShortest = 16;  // segment
template <int kSplit>
constexpr int kAtOnce = (kSplit == 1 ? 10 : 8) / kSplit;  // blocks on a multiprocessor

/// Every thread reads and writes its own channel's elements; B and C of the block's tokens come through
/// shared memory, one stage ahead. Written are y, or sums of segments or states at the start of every tile
/// of `tile` tokens (a power of two, 4 or more).
template <class T, int kStates, int kSplit, bool kOutput>
__global__ void __launch_bounds__(kChannels* kSplit, kAtOnce<kSplit>)
    selective_scan_fwd_chains(SelectiveScan<T> a, Segments segments, Sums sums, float* starts, int tile) {
  constexpr int kN = kSplit * kStates, kBlock = kSplit * kChannels, kVectors = kWalked * 2 * kN;
  constexpr int kEach = (kVectors + kBlock - 1) / kBlock;  // of these a thread copies
  __shared__ __align__(16) float vectors[2][kVectors];     // B and C of a token
  const ChannelScanShape s = a.s;
  const Spot at(s, segments, kSplit);
  const bool sums_only = !kOutput && starts == nullptr;
  if (sums_only && at.segment + 1 == segments.count) return;
  float rate[kStates], h[kStates] = {}, total = 0;
  load_rates(rate, a, at);
  const int64_t chains = s.chains();
  if (!sums_only && at.valid)
    for (int64_t k = 0; k < at.segment; ++k)
      pass_segment(h, rate, {sums.dt + k * chains, sums.state + k * chains * s.n}, at.chain, at.lane, s.n);
  const int64_t row = at.edge(at.direction == 1), channel = at.some_channel(s);
  const int64_t step = at.direction == 1 ? -2 * s.c : 2 * s.c;
  const int64_t own = (row * 2 + at.direction) * s.c + channel;
  Ahead<T, kWalked> of_u(a.u + own, step, at), of_delta(a.delta + own, step, at);
  T* y = a.y + s.y_at(row, at.direction, channel) + at.first * step;
  const float skip = to_acc(a.skip[at.direction * s.c + channel]);
  const int64_t start = vector_start(s, at);
  T next[kEach];
  auto fetch = [&](int position) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int element = int(threadIdx.x) + i * kBlock, state = element % kN;
      const int p = position + element / (2 * kN);
      const T* from = element / kN % 2 == 0 ? a.in : a.out;
      next[i] = p < at.last && state < s.n ? from[start + (at.direction == 0 ? p : -p) * (2 * s.n) + state]
                                           : from_acc<T>(0.0f);
    }
  };
  fetch(at.first);
  int stage = 0;
  for (int position = at.first; position < at.last; position += kWalked, stage ^= 1) {
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      if (const int element = int(threadIdx.x) + i * kBlock; element < kVectors)
        vectors[stage][element] = to_acc(next[i]);
    __syncthreads();  // who is a stage ahead writes the other one
    fetch(position + kWalked);
    float u[kWalked], delta[kWalked];
    of_u.take(u), of_delta.take(delta);
#pragma unroll
    for (int i = 0; i < kWalked; ++i) {
      if (!kOutput && !sums_only && i % 4 == 0 && at.valid && ((position + i) & (tile - 1)) == 0 &&
          position + i < at.last) {
        float* to = starts + (unsigned(position + i) / unsigned(tile) * chains + at.chain) * s.n;
#pragma unroll
        for (int k = 0; k < kStates; ++k)
          if (at.lane * kStates + k < s.n) to[at.lane * kStates + k] = h[k];
      }
      // Without a token a step of 0, which changes nothing.
      const float dt = position + i < at.last ? softplus<T>(delta[i]) : 0.0f, du = dt * u[i];
      const float4* in = reinterpret_cast<const float4*>(vectors[stage] + i * 2 * kN + at.lane * kStates);
      const float4* out = in + kN / 4;
      total += dt;
      float even = 0, odd = 0;
#pragma unroll
      for (int k = 0; k < kStates; k += 4) {
        const float4 b = in[k / 4], c = out[k / 4];
        auto advance = [&](int j, float of_in) {
          h[k + j] = fmaf(exp2_fast(dt * rate[k + j]), h[k + j], du * of_in);
        };
        advance(0, b.x), advance(1, b.y), advance(2, b.z), advance(3, b.w);
        if (kOutput) {
          even = fmaf(h[k], c.x, fmaf(h[k + 2], c.z, even));
          odd = fmaf(h[k + 1], c.y, fmaf(h[k + 3], c.w, odd));
        }
      }
      if (!kOutput) continue;
      float sum = even + odd;
#pragma unroll
      for (int lanes = 1; lanes < kSplit; lanes *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
      if (position + i < at.last && at.valid && at.lane == 0) *y = from_acc<T>(fmaf(skip, u[i], sum));
      y += step;
    }
  }
  if (sums_only && at.valid) {
    if (at.lane == 0) sums.dt[at.segment * chains + at.chain] = total;
#pragma unroll
    for (int k = 0; k < kStates; ++k)
      if (at.lane * kStates + k < s.n)
        sums.state[(at.segment * chains + at.chain) * s.n + at.lane * kStates + k] = h[k];
  }
}

/// With few chains four lanes share the states of a channel.
struct Walk {
  Segments segments;
  int lanes, states;  // of a lane
};
Walk walk_of(const ChannelScanShape& s) {
  const Segments one = segments_of(s, kShortest, kAtOnce<1>);
  if (s.n <= 16 && one.count == 1) return {one, 1, 16};
  return {segments_of(s, kShortest, kAtOnce<4>), 4, s.n <= 16 ? 4 : 16};
}

template <class T, int kStates, int kSplit>
void launch(const SelectiveScan<T>& a, const Segments& segments, float* room, float* starts, int tile,
            void* stream) {
  const Sums sums = sums_at(room, a.s, segments);
  auto run = [&](auto kernel, float* to) {
    kernel<<<blocks_of(a.s, segments), kChannels * kSplit, 0, as_stream(stream)>>>(a, segments, sums, to,
                                                                                   tile);
    check_launch("selective_scan_fwd_chains", stream);
  };
  if (segments.count > 1) run(selective_scan_fwd_chains<T, kStates, kSplit, false>, nullptr);
  if (starts != nullptr)
    run(selective_scan_fwd_chains<T, kStates, kSplit, false>, starts);
  else
    run(selective_scan_fwd_chains<T, kStates, kSplit, true>, nullptr);
}

}  // namespace

int64_t selective_scan_fwd_workspace(const ChannelScanShape& s) {
  return sums_floats(s, walk_of(s).segments);
}

template <class T>
void selective_scan_states(const SelectiveScan<T>& a, float* room, float* starts, int tile, void* stream) {
  const Walk walk = walk_of(a.s);
  if (walk.lanes == 1)
    launch<T, 16, 1>(a, walk.segments, room, starts, tile, stream);
  else if (walk.states == 4)
    launch<T, 4, 4>(a, walk.segments, room, starts, tile, stream);
  else
    launch<T, 16, 4>(a, walk.segments, room, starts, tile, stream);
}
template <class T>
void selective_scan_fwd(const SelectiveScan<T>& a, float* workspace, void* stream) {
  selective_scan_states(a, workspace, nullptr, 1, stream);
}

template void selective_scan_states(const SelectiveScan<float>&, float*, float*, int, void*);
template void selective_scan_states(const SelectiveScan<bf16>&, float*, float*, int, void*);
template void selective_scan_fwd(const SelectiveScan<float>&, float*, void*);
template void selective_scan_fwd(const SelectiveScan<bf16>&, float*, void*);

}  // namespace occam::kernels
