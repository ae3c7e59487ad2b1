#include "ops/selective_scan/kernel.h"

#include "ops/selective_scan/launch.h"
#include "ops/selective_scan/tile.cuh"

namespace occam::kernels {

namespace {

/// `mode` says what is written: sums of segments, states at the start of every tile, or y.
template <class T, int kStates>
__global__ void __launch_bounds__(kThreads)
    selective_scan_fwd_tiles(SelectiveScan<T> a, Cut cut, Sums sums, float* starts, ScanPass pass) {
  constexpr int kTokens = kTile<kStates>, kN = kLanes * kStates, kEach = kTokens * kChannels / kThreads;
  __shared__ float u[kTokens][kChannels], dt[kTokens][kChannels], in[kTokens * kN], out[kTokens * kN];
  const SelectiveShape s = a.s;
  const Spot at(s, cut, blockIdx.x);
  if (pass == ScanPass::sums && at.segment + 1 == cut.segments) return;
  float rate[kStates], h[kStates] = {}, total = 0;
  load_rates(rate, a, at);
  const float skip = at.valid ? to_acc(a.skip[at.direction * s.c + at.channel]) : 0.0f;
  const int64_t chains = s.b * 2 * s.c;
  if (pass != ScanPass::sums && at.valid)
    for (int64_t k = 0; k < at.segment; ++k)
      pass_segment(h, rate, {sums.dt + k * chains, sums.state + k * chains * s.n}, at.chain, at.lane, s.n);
  // Copies go by channels: thread i has channel i % 64 of every fourth token.
  const int column = int(threadIdx.x) % kChannels;
  const int64_t copied = at.channel - at.local + column;
  for (int64_t position = at.first; position < at.last; position += kTokens) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int token = int(threadIdx.x) / kChannels + i * kLanes;
      const bool there = position + token < at.last && copied < s.c;
      const int64_t from = at.row(s, position + token) * s.c + copied;
      u[token][column] = there ? to_acc(a.u[from]) : 0.0f;
      dt[token][column] = there ? softplus(to_acc(a.delta[from])) : 0.0f;  // 0: a step that changes nothing
    }
    load_vectors<kStates>(in, a.in, s, at, position);
    if (pass == ScanPass::outputs) load_vectors<kStates>(out, a.out, s, at, position);
    __syncthreads();
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
        const int token = four + i;
        const float step = dt[token][at.local], du = step * u[token][at.local];
        total += step;
        y[i] = 0;
#pragma unroll
        for (int k = 0; k < kStates; ++k) {
          h[k] = exp2_fast(step * rate[k]) * h[k] + du * in[token * kN + at.lane * kStates + k];
          y[i] += h[k] * out[token * kN + at.lane * kStates + k];
        }
      }
      if (pass != ScanPass::outputs) continue;
      // Sums over the four lanes; lane i keeps token i.
      const bool upper = at.lane & 2, odd = at.lane & 1;
      float keep0 = upper ? y[2] : y[0], keep1 = upper ? y[3] : y[1];
      keep0 += __shfl_xor_sync(0xffffffffu, upper ? y[0] : y[2], 2);
      keep1 += __shfl_xor_sync(0xffffffffu, upper ? y[1] : y[3], 2);
      const float mine = (odd ? keep1 : keep0) + __shfl_xor_sync(0xffffffffu, odd ? keep0 : keep1, 1);
      // Only the channel's own lanes, which have read it, use this element.
      float& place = u[four + at.lane][at.local];
      place = mine + skip * place;
      __syncwarp();
    }
    if (pass != ScanPass::outputs) continue;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int token = int(threadIdx.x) / kChannels + i * kLanes;
      if (position + token < at.last && copied < s.c)
        a.y[s.y_at(at.image, at.token(s, position + token), at.direction, copied)] =
            from_acc<T>(u[token][column]);
    }
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
  const Cut cut = cut_of(a.s, kTile<kStates>);
  const Sums sums = sums_at(room, a.s, cut);
  const unsigned blocks = unsigned(a.s.b * cut.segments * 2 * div_up<int64_t>(a.s.c, kChannels));
  auto run = [&](ScanPass pass) {
    selective_scan_fwd_tiles<T, kStates>
        <<<blocks, kThreads, 0, as_stream(stream)>>>(a, cut, sums, starts, pass);
    check_launch("selective_scan_fwd_tiles", stream);
  };
  if (cut.segments > 1) run(ScanPass::sums);
  run(starts != nullptr ? ScanPass::starts : ScanPass::outputs);
}

}  // namespace

int64_t selective_scan_fwd_workspace(const SelectiveShape& s) {
  return sums_floats(s, cut_of(s, s.n <= 16 ? kTile<4> : kTile<16>));
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
