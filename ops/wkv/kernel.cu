// A lane owns a channel, a warp 32 channels and a chunk of the tokens, a block all chunks of a sequence. The
// two running sums of a token (of what stands before and behind it) follow from linear recurrences, so that
// a warp first condenses its chunk, the block shares these, and each warp then starts from the sums at its
// chunk's ends:
//   1. from the chunk's last token to its first: the sum behind every kSegment-th token, from within the
//      chunk alone, goes to global memory; the whole chunk as seen from either end to shared memory.
//   2. each warp adds up the chunks before and behind its own.
//   3. segment by segment forward: the sums behind each token of the segment in registers, then the outputs.
// Sums carry their own maximum; exponents are in base 2.
#include <algorithm>

#include "core/cuda/gelu_fast.h"
#include "core/cuda/launch.h"
#include "core/cuda/math.cuh"
#include "ops/wkv/kernel.h"

namespace occam::kernels {

using namespace cuda;

namespace {

constexpr int kLanes = 32, kMaxWarps = 16;
constexpr int kChunk = 24;  // tokens of a warp, until there are kMaxWarps of them
constexpr float kLog2e = 1.44269504f;
constexpr float kNothing = -1e30f;  // maximum of no terms: finite, so that differences are numbers
constexpr int kReduceWarps = 8;

/// Two sums with maxima a and b under one maximum: one of the factors is 1.
struct Factors {
  float a, b, max;
  __device__ Factors(float max_a, float max_b) {
    const float e = exp2_of(-fabsf(max_a - max_b));
    const bool first = max_a >= max_b;
    a = first ? 1 : e, b = first ? e : 1, max = first ? max_a : max_b;
  }
};

/// sum of 2^(k - w distance) (v, 1), divided by 2^max.
struct Average {
  static constexpr int kFloats = 3, kSegment = 8;
  float num = 0, den = 0, max = kNothing;

  /// One token further away, and a token at distance 0 joins.
  __device__ void join(float w, float k, float v) {
    const Factors f(max - w, k);
    num = f.a * num + f.b * v, den = f.a * den + f.b, max = f.max;
  }
  /// The terms of `far`, all of them `distance` further away.
  __device__ void join_all(const Average& far, float w, float distance) {
    const Factors f(max, far.max - w * distance);
    num = f.a * num + f.b * far.num, den = f.a * den + f.b * far.den, max = f.max;
  }
  __device__ void put(float* at, int64_t stride) const {
    at[0] = num, at[stride] = den, at[2 * stride] = max;
  }
  __device__ void get(const float* at, int64_t stride) {
    num = at[0], den = at[stride], max = at[2 * stride];
  }
};

/// The same for backward: sum of 2^(-log_sum - w distance) (g, -g y) and of these times the distance.
struct Pull {
  static constexpr int kFloats = 5, kSegment = 4;
  float num = 0, den = 0, moment_num = 0, moment_den = 0, max = kNothing;

  __device__ void join(float w, float log_sum, float g, float gy) {
    const Factors f(max - w, -log_sum);
    moment_num = f.a * (moment_num + num), moment_den = f.a * (moment_den + den);
    num = f.a * num + f.b * g, den = f.a * den - f.b * gy, max = f.max;
  }
  __device__ void join_all(const Pull& far, float w, float distance) {
    const Factors f(max, far.max - w * distance);
    moment_num = f.a * moment_num + f.b * (far.moment_num + distance * far.num);
    moment_den = f.a * moment_den + f.b * (far.moment_den + distance * far.den);
    num = f.a * num + f.b * far.num, den = f.a * den + f.b * far.den, max = f.max;
  }
  __device__ void put(float* at, int64_t stride) const {
    at[0] = num, at[stride] = den, at[2 * stride] = moment_num, at[3 * stride] = moment_den;
    at[4 * stride] = max;
  }
  __device__ void get(const float* at, int64_t stride) {
    num = at[0], den = at[stride], moment_num = at[2 * stride], moment_den = at[3 * stride];
    max = at[4 * stride];
  }
};

/// The part of a thread: its channel, and the tokens [first, last) of its warp in a sequence of `length`.
struct Place {
  int64_t channel, base, length, first, last, chunk;  // base: of the sequence's first token
  bool inside;

  __device__ explicit Place(const WkvShape& s) {
    channel = int64_t(blockIdx.y) * kLanes + threadIdx.x;
    base = s.begin(blockIdx.x) * s.c + channel, length = s.length(blockIdx.x);
    chunk = div_up<int64_t>(length, blockDim.y);
    first = min(length, threadIdx.y * chunk), last = min(length, first + chunk);
    inside = channel < s.c;
  }
  /// One step's part of what is of the whole sequence.
  __device__ float per_token(float w) const { return w / float(max(length, int64_t(1))); }
  /// Scratch of this sequence, as large as that of the longest one.
  template <class Sum>
  __device__ float* ends(float* scratch, const WkvShape& s) const {
    const int64_t segments = div_up<int64_t>(div_up<int64_t>(s.t, blockDim.y), Sum::kSegment);
    return scratch + int64_t(blockIdx.x) * blockDim.y * segments * Sum::kFloats * s.c;
  }
};

/// Steps 1 and 2: `before` and `behind` become the sums of the chunks on either side. load(segment, first)
/// fetches the tokens of a segment from `first` on, all at once; join(state, segment, i) takes one of them;
/// ends [segments][kFloats][c] of this sequence is written.
template <class Sum, class Segment, class Load, class Join>
__device__ void gather_sides(const WkvShape& s, const Place& p, float w, float* ends, Load load, Join join,
                             Sum& before, Sum& behind) {
  __shared__ float shared[kMaxWarps][2][Sum::kFloats][kLanes];
  Sum as_before, as_behind;  // this chunk, seen from the token after it and from the one ahead of it
  const int segments = int(div_up<int64_t>(p.chunk, Sum::kSegment));
  for (int n = segments - 1; p.inside && n >= 0; --n) {
    const int64_t first = p.first + n * Sum::kSegment;
    if (first >= p.last) continue;
    Segment segment;
    load(segment, first);
    as_behind.put(ends + (threadIdx.y * segments + n) * Sum::kFloats * s.c + p.channel, s.c);
    Sum here;
#pragma unroll
    for (int i = 0; i < Sum::kSegment; ++i)
      if (first + i < p.last) join(here, segment, i);
    as_before.join_all(here, w, float(max(p.last - first - Sum::kSegment, int64_t(0))));
#pragma unroll
    for (int i = Sum::kSegment - 1; i >= 0; --i)
      if (first + i < p.last) join(as_behind, segment, i);
  }
  as_before.put(&shared[threadIdx.y][0][0][threadIdx.x], kLanes);
  as_behind.put(&shared[threadIdx.y][1][0][threadIdx.x], kLanes);
  __syncthreads();
  // A chunk that is cut short lies at the end: its size counts only in steps from behind.
  for (int n = 0; n < int(threadIdx.y); ++n) {
    Sum chunk;
    chunk.get(&shared[n][0][0][threadIdx.x], kLanes);
    Sum all = chunk;
    all.join_all(before, w, float(p.chunk));
    before = all;
  }
  for (int n = int(blockDim.y) - 1; n > int(threadIdx.y); --n) {
    Sum chunk;
    chunk.get(&shared[n][1][0][threadIdx.x], kLanes);
    Sum all = chunk;
    all.join_all(behind, w, float(max(min(p.chunk, p.length - n * p.chunk), int64_t(0))));
    behind = all;
  }
}

/// The sum behind the last token of segment n: its part inside the chunk, and the chunks behind.
template <class Sum>
__device__ Sum segment_end(const WkvShape& s, const Place& p, float w, const float* ends, const Sum& behind,
                           int n) {
  const int64_t segments = div_up<int64_t>(p.chunk, Sum::kSegment);
  Sum sum;
  sum.get(ends + (threadIdx.y * segments + n) * Sum::kFloats * s.c + p.channel, s.c);
  const int64_t end = min(p.last, p.first + (n + 1) * Sum::kSegment);
  sum.join_all(behind, w, float(p.last - end));
  return sum;
}

template <class T>
__global__ void __launch_bounds__(kLanes* kMaxWarps, 1) wkv_fwd_chunks(WkvForward<T, float> a) {
  using Sum = Average;
  struct Segment {
    float k[Sum::kSegment], v[Sum::kSegment];
  };
  const WkvShape& s = a.s;
  const Place p(s);
  const float w = p.inside ? p.per_token(to_acc(a.w[p.channel])) * kLog2e : 0;
  const float u = p.inside ? to_acc(a.u[p.channel]) * kLog2e : 0;
  const int segments = int(div_up<int64_t>(p.chunk, Sum::kSegment));
  float* ends = p.ends<Sum>(a.scratch, s);
  auto load = [&](Segment& to, int64_t first) {
    const T *k = a.k + p.base + first * s.c, *v = a.v + p.base + first * s.c;
#pragma unroll
    for (int i = 0; i < Sum::kSegment; ++i)
      if (first + i < p.last) to.k[i] = to_acc(k[i * s.c]) * kLog2e, to.v[i] = to_acc(v[i * s.c]);
  };
  auto join = [&](Sum& sum, const Segment& x, int i) { sum.join(w, x.k[i], x.v[i]); };
  Sum before, behind;
  gather_sides<Sum, Segment>(s, p, w, ends, load, join, before, behind);
  for (int n = 0; p.inside && n < segments; ++n) {
    const int64_t first = p.first + n * Sum::kSegment;
    if (first >= p.last) break;
    Segment x;
    load(x, first);
    Sum after[Sum::kSegment], end = segment_end(s, p, w, ends, behind, n);
#pragma unroll
    for (int i = Sum::kSegment - 1; i >= 0; --i)
      if (first + i < p.last) {
        after[i] = end;
        join(end, x, i);
      }
#pragma unroll
    for (int i = 0; i < Sum::kSegment; ++i)
      if (first + i < p.last) {
        Sum all = before;
        all.join_all(after[i], 0, 0);
        const Factors f(all.max, u + x.k[i]);
        const float den = f.a * all.den + f.b;
        const int64_t at = p.base + (first + i) * s.c;
        const float y = __fdividef(f.a * all.num + f.b * x.v[i], den);
        a.y[at] = from_acc<T>(y);
        if (a.log_sum != nullptr) a.log_sum[at] = f.max + log2f(den);
        if (a.wide_y != nullptr) a.wide_y[at] = y;
        join(before, x, i);
      }
  }
}

/// partial [b][2][c]: gradients of w and u of each sequence.
template <class T>
__global__ void __launch_bounds__(kLanes* kMaxWarps, 1)
    wkv_bwd_chunks(WkvBackward<T, float> a, float* partial) {
  using Sum = Pull;
  struct Segment {
    float log_sum[Sum::kSegment], g[Sum::kSegment], y[Sum::kSegment];
  };
  const WkvShape& s = a.s;
  const Place p(s);
  const float w = p.inside ? p.per_token(to_acc(a.w[p.channel])) * kLog2e : 0;
  const float u = p.inside ? to_acc(a.u[p.channel]) * kLog2e : 0;
  const int segments = int(div_up<int64_t>(p.chunk, Sum::kSegment));
  float* ends = p.ends<Sum>(a.scratch, s);
  auto load = [&](Segment& to, int64_t first) {
    const int64_t at = p.base + first * s.c;
#pragma unroll
    for (int i = 0; i < Sum::kSegment; ++i)
      if (first + i < p.last) {
        to.log_sum[i] = a.log_sum[at + i * s.c];
        to.g[i] = to_acc(a.gy[at + i * s.c]);
        to.y[i] = a.y[at + i * s.c];
      }
  };
  auto join = [&](Sum& sum, const Segment& x, int i) { sum.join(w, x.log_sum[i], x.g[i], x.g[i] * x.y[i]); };
  Sum before, behind;
  gather_sides<Sum, Segment>(s, p, w, ends, load, join, before, behind);
  float gw = 0, gu = 0;
  for (int n = 0; p.inside && n < segments; ++n) {
    const int64_t first = p.first + n * Sum::kSegment;
    if (first >= p.last) break;
    Segment x;
    load(x, first);
    float key[Sum::kSegment], value[Sum::kSegment];
#pragma unroll
    for (int i = 0; i < Sum::kSegment; ++i)
      if (first + i < p.last) {
        key[i] = to_acc(a.k[p.base + (first + i) * s.c]) * kLog2e;
        value[i] = to_acc(a.v[p.base + (first + i) * s.c]);
      }
    Sum after[Sum::kSegment], end = segment_end(s, p, w, ends, behind, n);
#pragma unroll
    for (int i = Sum::kSegment - 1; i >= 0; --i)
      if (first + i < p.last) {
        after[i] = end;
        join(end, x, i);
      }
#pragma unroll
    for (int i = 0; i < Sum::kSegment; ++i)
      if (first + i < p.last) {
        const float k = key[i], v = value[i], e = exp2_of(u + k - x.log_sum[i]);
        Sum all = before;
        all.join_all(after[i], 0, 0);
        const float weight = exp2_of(all.max + k), own = e * x.g[i] * (v - x.y[i]);
        gu += own;
        gw -= weight * (v * all.moment_num + all.moment_den);
        const int64_t at = p.base + (first + i) * s.c;
        a.gv[at] = from_acc<T>(weight * all.num + e * x.g[i]);
        a.gk[at] = from_acc<T>(weight * (v * all.num + all.den) + own);
        join(before, x, i);
      }
  }
  __shared__ float sums[2][kMaxWarps][kLanes];
  sums[0][threadIdx.y][threadIdx.x] = gw, sums[1][threadIdx.y][threadIdx.x] = gu;
  __syncthreads();
  if (!p.inside || threadIdx.y != 0) return;
  for (int k = 1; k < int(blockDim.y); ++k) gw += sums[0][k][threadIdx.x], gu += sums[1][k][threadIdx.x];
  partial[(int64_t(blockIdx.x) * 2) * s.c + p.channel] = p.per_token(gw);
  partial[(int64_t(blockIdx.x) * 2 + 1) * s.c + p.channel] = gu;
}

/// out [2][c] = sum over sequences of partial.
__global__ void __launch_bounds__(kLanes* kReduceWarps)
    wkv_bwd_reduce(const float* partial, int64_t sequences, int64_t c, float* gw, float* gu) {
  const int64_t column = int64_t(blockIdx.x) * kLanes + threadIdx.x;  // of [2][c]
  __shared__ float parts[kReduceWarps][kLanes];
  float sum = 0;
  if (column < 2 * c)
    for (int64_t n = threadIdx.y; n < sequences; n += kReduceWarps) sum += partial[n * 2 * c + column];
  parts[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= 2 * c) return;
  for (int k = 1; k < kReduceWarps; ++k) sum += parts[k][threadIdx.x];
  (column < c ? gw[column] : gu[column - c]) = sum;
}

int64_t warps_of(const WkvShape& s) {
  return std::clamp<int64_t>(div_up<int64_t>(s.t, kChunk), 1, kMaxWarps);
}

dim3 grid_of(const WkvShape& s) { return {grid_of_rows(s.b), unsigned(div_up<int64_t>(s.c, kLanes))}; }

}  // namespace

int64_t wkv_scratch(const WkvShape& s, bool backward) {
  const int64_t warps = warps_of(s), chunk = div_up<int64_t>(s.t, warps);
  if (!backward) return s.b * warps * div_up<int64_t>(chunk, Average::kSegment) * Average::kFloats * s.c;
  return s.b * s.c * (warps * div_up<int64_t>(chunk, Pull::kSegment) * Pull::kFloats + 2);
}

template <class T>
void wkv_fwd(const WkvForward<T, float>& a, void* stream_handle) {
  const cudaStream_t stream = as_stream(stream_handle);
  if (a.s.b * a.s.t * a.s.c == 0) return;
  wkv_fwd_chunks<<<grid_of(a.s), dim3(kLanes, unsigned(warps_of(a.s))), 0, stream>>>(a);
  check_launch("wkv_fwd_chunks", stream);
}

template <class T>
void wkv_bwd(const WkvBackward<T, float>& a, void* stream_handle) {
  const cudaStream_t stream = as_stream(stream_handle);
  const WkvShape& s = a.s;
  if (s.c == 0) return;
  float* partial = a.scratch + wkv_scratch(s, true) - s.b * s.c * 2;
  const int64_t sequences = s.t > 0 ? s.b : 0;
  if (sequences > 0) {
    wkv_bwd_chunks<<<grid_of(s), dim3(kLanes, unsigned(warps_of(s))), 0, stream>>>(a, partial);
    check_launch("wkv_bwd_chunks", stream);
  }
  wkv_bwd_reduce<<<unsigned(div_up<int64_t>(2 * s.c, kLanes)), dim3(kLanes, kReduceWarps), 0, stream>>>(
      partial, sequences, s.c, a.gw, a.gu);
  check_launch("wkv_bwd_reduce", stream);
}

template void wkv_fwd(const WkvForward<float, float>&, void*);
template void wkv_fwd(const WkvForward<bf16, float>&, void*);
template void wkv_bwd(const WkvBackward<float, float>&, void*);
template void wkv_bwd(const WkvBackward<bf16, float>&, void*);

}  // namespace occam::kernels
