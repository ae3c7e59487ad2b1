#include "ops/selective_scan/kernel.h"

#include "ops/selective_scan/launch.h"
#include "ops/selective_scan/tile.cuh"

namespace occam::kernels {

namespace {

/// `mode` says what is written: sums of segments, states at the start of every tile, or y.
template <class T, int kStates>
__global__ void __launch_bounds__(kThreads, kStates <= 4 ? 3 : 2)
    selective_scan_fwd_tiles(SelectiveScan<T> a, Segments segments, Sums sums, float* starts, ScanPass pass,
                             bool packed) {
  constexpr int kTokens = kTile<kStates>, kN = kLanes * kStates;
  __shared__ __align__(16) float2 steps[kTokens][kChannels];  // dt and dt u; then y in place of dt
  __shared__ __align__(16) float in[kThreads], out[kThreads];
  const ChannelScanShape s = a.s;
  const Spot at(s, segments);
  if (pass == ScanPass::sums && at.segment + 1 == segments.count) return;
  float rate[kStates], h[kStates] = {}, total = 0;
  load_rates(rate, a, at);
  const int64_t chains = s.chains();
  if (pass != ScanPass::sums && at.valid)
    for (int64_t k = 0; k < at.segment; ++k)
      pass_segment(h, rate, {sums.dt + k * chains, sums.state + k * chains * s.n}, at.chain, at.lane, s.n);
  const Copier copier(s, at, packed);
  const bool copies = copier.token < kTokens, is_output = pass == ScanPass::outputs;
  const int64_t vectors = vector_start(s, at);
  const Four<T> skip = copier.parameters(a.skip, s, at);
  // The next tile is fetched to registers while this one is computed.
  Four<T> u, next_u, next_delta;
  float next_in, next_out = 0;
  auto fetch = [&](int position) {
    if (copies) {
      next_u = copier.load(a.u, false, position, at.last);
      next_delta = copier.load(a.delta, false, position, at.last);
    }
    next_in = load_vector<kStates>(a.in, s, at, vectors, position);
    if (is_output) next_out = load_vector<kStates>(a.out, s, at, vectors, position);
  };
  fetch(at.first);
  for (int position = at.first; position < at.last; position += kTokens) {
    if (copies) {
      u = next_u;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // Without a token a step of 0, which changes nothing.
        const float dt = position + copier.token < at.last ? softplus<T>(to_acc(next_delta.v[i])) : 0.0f;
        steps[copier.token][copier.column + i] = make_float2(dt, dt * to_acc(u.v[i]));
      }
    }
    in[threadIdx.x] = next_in, out[threadIdx.x] = next_out;
    __syncthreads();
    if (position + kTokens < at.last) fetch(position + kTokens);
    if (pass == ScanPass::starts && at.valid) {
      const int64_t tile = position / kTokens;
#pragma unroll
      for (int k = 0; k < kStates; ++k)
        if (at.lane * kStates + k < s.n)
          starts[(tile * chains + at.chain) * s.n + at.lane * kStates + k] = h[k];
    }
#pragma unroll
    for (int four = 0; four < kTokens; four += 4) {
      float y[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 step = steps[four + i][at.local];
        const float *b = in + (four + i) * kN + at.lane * kStates,
                    *c = out + (four + i) * kN + at.lane * kStates;
        total += step.x;
        y[i] = 0;
#pragma unroll
        for (int k = 0; k < kStates; ++k) {
          h[k] = exp2_fast(step.x * rate[k]) * h[k] + step.y * b[k];
          y[i] += h[k] * c[k];
        }
      }
      if (!is_output) continue;
      // Only the channel's own lanes, which have read it, use this element.
      steps[four + at.lane][at.local].x = sum_over_lanes(y, at.lane);
    }
    __syncthreads();
    if (!is_output) continue;
    if (copies) {
      Four<T> y;
#pragma unroll
      for (int i = 0; i < 4; ++i)
        y.v[i] = from_acc<T>(steps[copier.token][copier.column + i].x + to_acc(skip.v[i]) * to_acc(u.v[i]));
      copier.store(a.y, y, true, position, at.last);
    }
    // What the next tile writes over has been read by the same thread: its own elements of `steps`.
  }
  if (pass == ScanPass::sums && at.valid) {
    if (at.lane == 0) sums.dt[at.segment * chains + at.chain] = total;
#pragma unroll
    for (int k = 0; k < kStates; ++k)
      if (at.lane * kStates + k < s.n)
        sums.state[(at.segment * chains + at.chain) * s.n + at.lane * kStates + k] = h[k];
  }
}

template <class T, int kStates>
void launch(const SelectiveScan<T>& a, float* room, float* starts, void* stream) {
  const Segments segments = segments_of(a.s, kTile<kStates>);
  const Sums sums = sums_at(room, a.s, segments);
  const unsigned blocks = blocks_of(a.s, segments);
  const bool packed = copies_packed<T>(a.s, a.u, a.delta, a.y);
  auto run = [&](ScanPass pass) {
    selective_scan_fwd_tiles<T, kStates>
        <<<blocks, kThreads, 0, as_stream(stream)>>>(a, segments, sums, starts, pass, packed);
    check_launch("selective_scan_fwd_tiles", stream);
  };
  if (segments.count > 1) run(ScanPass::sums);
  run(starts != nullptr ? ScanPass::starts : ScanPass::outputs);
}

}  // namespace

int64_t selective_scan_fwd_workspace(const ChannelScanShape& s) {
  return sums_floats(s, segments_of(s, s.n <= 16 ? kTile<4> : kTile<16>));
}

template <class T>
void selective_scan_states(const SelectiveScan<T>& a, float* room, float* starts, void* stream) {
  if (a.s.n <= 16)
    launch<T, 4>(a, room, starts, stream);
  else
    launch<T, 16>(a, room, starts, stream);
}
template <class T>
void selective_scan_fwd(const SelectiveScan<T>& a, float* workspace, void* stream) {
  selective_scan_states(a, workspace, nullptr, stream);
}

template void selective_scan_states(const SelectiveScan<float>&, float*, float*, void*);
template void selective_scan_states(const SelectiveScan<bf16>&, float*, float*, void*);
template void selective_scan_fwd(const SelectiveScan<float>&, float*, void*);
template void selective_scan_fwd(const SelectiveScan<bf16>&, float*, void*);

}  // namespace occam::kernels
