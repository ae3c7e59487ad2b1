// A lane owns a channel, a warp 32 channels and a chunk of the tokens, a block all chunks of a sequence. The
// two running sums of a token (of what stands before and behind it) follow from linear recurrences, so that
// a warp first condenses its chunk, the block shares these, and each warp then starts from the sums at its
// chunk's ends:
//   1. from the chunk's last token to its first: the sum behind every kSegment-th token, from within the
//      chunk alone, and the whole chunk as seen from either end go to shared memory.
//   2. each warp adds up the chunks before and behind its own.
//   3. segment by segment forward: the sums behind each token of the segment in registers, then the outputs.
// Sums carry a maximum of their terms' exponents, in base 2. Inside a segment all terms are over one maximum,
// so that a token takes one exponential and the recurrences are plain multiply-adds; where decay or bonus of
// a channel are too strong for that (kSteepest), its warp keeps a maximum for each token. Forward reads k and
// v twice: where they fit, a block first brings them to shared memory.
#include <algorithm>

#include "core/cuda/launch.h"
#include "core/cuda/math.cuh"
#include "core/cuda/mma.cuh"
#include "ops/wkv/kernel.h"
#include "ops/wkv/sums.cuh"

namespace occam::kernels {

using namespace cuda;

namespace {

constexpr float kLog2e = 1.44269504f;
constexpr int kLanes = 32, kMaxWarps = 16;
constexpr int kChunk = 24;  // tokens of a warp, until there are kMaxWarps of them
constexpr int kReduceWarps = 8;

/// The part of a thread: its channel, and the tokens [first, last) of its warp in a sequence of `length`.
struct Place {
  int64_t sequence, channel, base;  // base: of the sequence's first token
  int length, first, last, chunk;
  bool inside;

  __device__ explicit Place(const WkvShape& s) {
    const int64_t groups = div_up<int64_t>(s.c, kLanes);
    sequence = blockIdx.x / groups, channel = blockIdx.x % groups * kLanes + threadIdx.x;
    base = s.begin(sequence) * s.c + channel, length = int(s.length(sequence));
    chunk = div_up(length, int(blockDim.y));
    first = int(min(int64_t(length), threadIdx.y * int64_t(chunk)));
    last = length - first < chunk ? length : first + chunk;
    inside = channel < s.c;
  }
  /// One step's part of what is of the whole sequence.
  __device__ float per_token(float w) const { return w / float(max(length, 1)); }
};

/// What a channel's recurrences take; `steep` is the same for a warp.
struct Decay {
  float w, u, factor;
  bool steep;
  template <class T>
  __device__ Decay(const T* w_of, const T* u_of, const Place& p, int segment)
      : w(p.inside ? p.per_token(to_acc(w_of[p.channel])) * kLog2e : 0),
        u(p.inside ? to_acc(u_of[p.channel]) * kLog2e : 0),
        factor(exp2_of(-w)),
        steep(__any_sync(0xffffffffu, is_steep(w, u, segment))) {}
};

/// The sums behind the segments of a block, [warps, segments][kFloats], a channel `stride` from the next.
struct Ends {
  float* at;
  int64_t stride;

  /// In `shared`, or where that is null in global memory, as many for each sequence as the longest has.
  template <class Sum>
  __device__ Ends(Sum, const WkvShape& s, const Place& p, float* shared, float* global)
      : at(shared + threadIdx.x), stride(kLanes) {
    if (shared != nullptr) return;
    const int64_t segments =
        int64_t(blockDim.y) * div_up<int64_t>(div_up<int64_t>(s.t, blockDim.y), Sum::kSegment);
    at = global + p.sequence * segments * Sum::kFloats * s.c + p.channel, stride = s.c;
  }
  template <class Sum>
  __device__ float* of(Sum, const Place& p, int n) const {
    return at + (threadIdx.y * div_up(p.chunk, Sum::kSegment) + n) * Sum::kFloats * stride;
  }
};

/// Steps 1 and 2: `before` and `behind` become the sums of the chunks on either side. load(segment, first)
/// fetches the tokens of a segment from `first` on, all at once; `ends` is written.
template <class Sum, class Load>
__device__ void gather_sides(const WkvShape& s, const Place& p, const Decay& d, const Ends& ends, Load load,
                             Sum& before, Sum& behind) {
  __shared__ float shared[kMaxWarps][2][Sum::kFloats][kLanes];
  const float w = d.w;
  Sum as_before, as_behind;  // this chunk, seen from the token after it and from the one ahead of it
  const int segments = div_up(p.chunk, Sum::kSegment);
  for (int n = segments - 1; p.inside && n >= 0; --n) {
    const int first = p.first + n * Sum::kSegment, count = p.last - first;
    if (count <= 0) continue;
    typename Sum::Segment segment;
    load(segment, first, count);
    as_behind.put(ends.of(Sum(), p, n), ends.stride);
    Sum here;
    if (d.steep) {
#pragma unroll
      for (int i = 0; i < Sum::kSegment; ++i)
        if (i < count) here.join(w, segment, i);
#pragma unroll
      for (int i = Sum::kSegment - 1; i >= 0; --i)
        if (i < count) as_behind.join(w, segment, i);
    } else {
      Sum near;
      float weight[Sum::kSegment];
      here.max = near.max = peak(segment, kNothing);
      weights(segment, here.max, weight);
#pragma unroll
      for (int i = 0; i < Sum::kSegment; ++i)
        if (i < count) here.step(d.factor, weight[i], segment, i);
#pragma unroll
      for (int i = Sum::kSegment - 1; i >= 0; --i)
        if (i < count) near.step(d.factor, weight[i], segment, i);
      near.join_all(as_behind, w, float(min(count, Sum::kSegment)));
      as_behind = near;
    }
    as_before.join_all(here, w, float(max(count - Sum::kSegment, 0)));
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
    all.join_all(behind, w, float(max(min(p.chunk, p.length - n * p.chunk), 0)));
    behind = all;
  }
}

/// The sum behind the last token of segment n: its part inside the chunk, and the chunks behind.
template <class Sum>
__device__ Sum segment_end(const Place& p, float w, const Ends& ends, const Sum& behind, int n) {
  Sum sum;
  sum.get(ends.of(Sum(), p, n), ends.stride);
  const int end = min(p.last, p.first + (n + 1) * Sum::kSegment);
  sum.join_all(behind, w, float(p.last - end));
  return sum;
}

/// Floats of dynamic shared memory: ends, and behind them k and v of the block's channels; 0: not there.
struct Shared {
  int ends = 0, tile = 0;
};
extern __shared__ __align__(16) float shared_memory[];

/// to [length][kLanes] = the block's channels of x.
template <class T>
__device__ __forceinline__ void bring(const WkvShape& s, const Place& p, const T* x, T* to) {
  constexpr int kWide = 16 / int(sizeof(T)), kPieces = kLanes / kWide;
  const int64_t left = s.c - (p.channel - threadIdx.x);
  x += p.base - threadIdx.x;
  for (int e = int(threadIdx.y) * kLanes + int(threadIdx.x); e < p.length * kPieces;
       e += int(blockDim.y) * kLanes) {
    const int token = e / kPieces, at = e % kPieces * kWide;
    copy_async16(to + token * kLanes + at, x + token * s.c + (at < left ? at : 0), at < left);
  }
}

/// The sum behind token i of a segment of `count`, made anew for each: steep channels are rare, and keeping
/// all of them would cost the others registers.
template <class Sum>
__device__ __forceinline__ Sum after_token(Sum end, float w, const typename Sum::Segment& x, int i,
                                           int count) {
#pragma unroll
  for (int j = Sum::kSegment - 1; j > i; --j)
    if (j < count) end.join(w, x, j);
  return end;
}

template <class T>
__global__ void __launch_bounds__(kLanes* kMaxWarps, 1)
    wkv_fwd_chunks(WkvForward<T, float> a, Shared shared) {
  using Sum = Average;
  const WkvShape& s = a.s;
  const Place p(s);
  const Decay d(a.w, a.u, p, Sum::kSegment);
  const int segments = div_up(p.chunk, Sum::kSegment);
  const Ends ends(Sum(), s, p, shared.ends > 0 ? shared_memory : nullptr, a.scratch);
  const T *keys = a.k + p.base, *values = a.v + p.base;
  int64_t stride = s.c;
  if (shared.tile > 0) {
    T* tile = reinterpret_cast<T*>(shared_memory + shared.ends);
    bring(s, p, a.k, tile), bring(s, p, a.v, tile + s.t * kLanes);
    copies_commit();
    copies_wait<0>();
    __syncthreads();
    keys = tile + threadIdx.x, values = keys + s.t * kLanes, stride = kLanes;
  }
  auto load = [&](Keys& to, int64_t first, int count) {
    const T *k = keys + first * stride, *v = values + first * stride;
#pragma unroll
    for (int i = 0; i < Sum::kSegment; ++i, k += stride, v += stride) {
      const bool there = i < count;
      to.x[i] = there ? to_acc(*k) * kLog2e : kNothing;
      to.v[i] = there ? to_acc(*v) : 0;
    }
  };
  Sum before, behind;
  gather_sides(s, p, d, ends, load, before, behind);
  const float bonus = exp2_of(d.u);
  for (int n = 0; p.inside && n < segments; ++n) {
    const int first = p.first + n * Sum::kSegment, count = p.last - first;
    if (count <= 0) break;
    Keys x;
    load(x, first, count);
    Sum end = segment_end(p, d.w, ends, behind, n);
    auto put = [&](int i, float num, float den, float max) {
      const int64_t at = p.base + int64_t(first + i) * s.c;
      const float y = __fdividef(num, den);
      a.y[at] = from_acc<T>(y);
      if (a.log_sum != nullptr) a.log_sum[at] = max + log2f(den);
      if (a.wide_y != nullptr) a.wide_y[at] = y;
    };
    if (d.steep) {
#pragma unroll
      for (int i = 0; i < Sum::kSegment; ++i)
        if (i < count) {
          Sum all = before;
          all.join_all(after_token(end, d.w, x, i, count), 0, 0);
          const Factors f(all.max, d.u + x.x[i]);
          put(i, f.a * all.num + f.b * x.v[i], f.a * all.den + f.b, f.max);
          before.join(d.w, x, i);
        }
    } else {
      Sum after[Sum::kSegment];
      float weight[Sum::kSegment], exact = before.max;
      const float max = peak(x, fmaxf(before.max, end.max));
      weights(x, max, weight);
      before.over(max), end.over(max);
#pragma unroll
      for (int i = Sum::kSegment - 1; i >= 0; --i)
        if (i < count) {
          after[i] = end;
          end.step(d.factor, weight[i], x, i);
        }
#pragma unroll
      for (int i = 0; i < Sum::kSegment; ++i)
        if (i < count) {
          const float own = bonus * weight[i];
          Sum all = before;
          all.add(after[i]);
          put(i, all.num + own * x.v[i], all.den + own, max);
          before.step(d.factor, weight[i], x, i);
          exact = fmaxf(exact - d.w, x.x[i]);
        }
      before.over(exact);
    }
  }
}

/// partial [b][2][c]: gradients of w and u of each sequence.
template <class T>
__global__ void __launch_bounds__(kLanes* kMaxWarps, 1)
    wkv_bwd_chunks(WkvBackward<T, float> a, float* partial, Shared shared) {
  using Sum = Pull;
  const WkvShape& s = a.s;
  const Place p(s);
  const Decay d(a.w, a.u, p, Sum::kSegment);
  const int segments = div_up(p.chunk, Sum::kSegment);
  const Ends ends(Sum(), s, p, shared.ends > 0 ? shared_memory : nullptr, a.scratch);
  auto load = [&](Slopes& to, int64_t first, int count) {
    int64_t at = p.base + first * s.c;
#pragma unroll
    for (int i = 0; i < Sum::kSegment; ++i, at += s.c) {
      const bool there = i < count;
      to.x[i] = there ? -a.log_sum[at] : kNothing;
      to.g[i] = there ? to_acc(a.gy[at]) : 0;
      to.y[i] = there ? a.y[at] : 0;
    }
  };
  Sum before, behind;
  gather_sides(s, p, d, ends, load, before, behind);
  float gw = 0, gu = 0;
  for (int n = 0; p.inside && n < segments; ++n) {
    const int first = p.first + n * Sum::kSegment, count = p.last - first;
    if (count <= 0) break;
    Slopes x;
    load(x, first, count);
    float key[Sum::kSegment], value[Sum::kSegment];
#pragma unroll
    for (int i = 0; i < Sum::kSegment; ++i)
      if (i < count) {
        key[i] = to_acc(a.k[p.base + int64_t(first + i) * s.c]) * kLog2e;
        value[i] = to_acc(a.v[p.base + int64_t(first + i) * s.c]);
      }
    Sum end = segment_end(p, d.w, ends, behind, n);
    auto put = [&](int i, const Sum& all) {
      const float k = key[i], v = value[i], e = exp2_of(d.u + k + x.x[i]);
      const float weight = exp2_of(all.max + k), own = e * x.g[i] * (v - x.y[i]);
      gu += own;
      gw -= weight * (v * all.moment_num + all.moment_den);
      const int64_t at = p.base + int64_t(first + i) * s.c;
      a.gv[at] = from_acc<T>(weight * all.num + e * x.g[i]);
      a.gk[at] = from_acc<T>(weight * (v * all.num + all.den) + own);
    };
    if (d.steep) {
#pragma unroll
      for (int i = 0; i < Sum::kSegment; ++i)
        if (i < count) {
          Sum all = before;
          all.join_all(after_token(end, d.w, x, i, count), 0, 0);
          put(i, all);
          before.join(d.w, x, i);
        }
    } else {
      Sum after[Sum::kSegment];
      float weight[Sum::kSegment], exact = before.max;
      const float max = peak(x, fmaxf(before.max, end.max));
      weights(x, max, weight);
      before.over(max), end.over(max);
#pragma unroll
      for (int i = Sum::kSegment - 1; i >= 0; --i)
        if (i < count) {
          after[i] = end;
          end.step(d.factor, weight[i], x, i);
        }
#pragma unroll
      for (int i = 0; i < Sum::kSegment; ++i)
        if (i < count) {
          Sum all = before;
          all.add(after[i]);
          put(i, all);
          before.step(d.factor, weight[i], x, i);
          exact = fmaxf(exact - d.w, x.x[i]);
        }
      before.over(exact);
    }
  }
  __shared__ float sums[2][kMaxWarps][kLanes];
  sums[0][threadIdx.y][threadIdx.x] = gw, sums[1][threadIdx.y][threadIdx.x] = gu;
  __syncthreads();
  if (!p.inside || threadIdx.y != 0) return;
  for (int k = 1; k < int(blockDim.y); ++k) gw += sums[0][k][threadIdx.x], gu += sums[1][k][threadIdx.x];
  partial[(p.sequence * 2) * s.c + p.channel] = p.per_token(gw);
  partial[(p.sequence * 2 + 1) * s.c + p.channel] = gu;
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

unsigned grid_of(const WkvShape& s) { return grid_of_blocks(s.b * div_up<int64_t>(s.c, kLanes)); }

/// Segments of a block.
template <class Sum>
int64_t segments_of(const WkvShape& s) {
  const int64_t warps = warps_of(s);
  return warps * div_up<int64_t>(div_up<int64_t>(s.t, warps), Sum::kSegment);
}

/// Bytes of shared memory that kernels have beside: what chunks share, and the sums of gradients.
template <class Sum>
constexpr int64_t kStatic = 8 * (Sum::kFloats + 1) * kMaxWarps* kLanes;

/// As much of shared memory as leaves room for another block; tile: bytes of the inputs that may go there.
template <class Sum>
Shared shared_of(const WkvShape& s, int64_t tile) {
  constexpr int64_t kMost = 80 * 1024;
  const int64_t ends = segments_of<Sum>(s) * Sum::kFloats * kLanes;
  if (4 * ends > kMost) return {};
  return {int(ends), tile > 0 && 4 * ends + tile <= kMost ? int(tile / 4) : 0};
}

}  // namespace

int64_t wkv_scratch(const WkvShape& s, bool backward) {
  auto floats = [&]<class Sum>(Sum) {
    return shared_of<Sum>(s, 0).ends > 0 ? 0 : s.b * segments_of<Sum>(s) * Sum::kFloats * s.c;
  };
  return backward ? floats(Pull()) + 2 * s.b * s.c : floats(Average());
}

template <class T>
void wkv_fwd(const WkvForward<T, float>& a, void* stream_handle) {
  const cudaStream_t stream = as_stream(stream_handle);
  const WkvShape& s = a.s;
  if (s.b * s.t * s.c == 0) return;
  const bool packs = s.c % (16 / int64_t(sizeof(T))) == 0 && aligned16(a.k, a.v);
  const Shared shared = shared_of<Average>(s, packs ? 2 * s.t * kLanes * int64_t(sizeof(T)) : 0);
  const int64_t bytes = 4 * int64_t(shared.ends + shared.tile);
  allow_shared(wkv_fwd_chunks<T>, "wkv_fwd_chunks", bytes + kStatic<Average>);
  wkv_fwd_chunks<<<grid_of(s), dim3(kLanes, unsigned(warps_of(s))), size_t(bytes), stream>>>(a, shared);
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
    const Shared shared = shared_of<Pull>(s, 0);
    allow_shared(wkv_bwd_chunks<T>, "wkv_bwd_chunks", 4 * int64_t(shared.ends) + kStatic<Pull>);
    wkv_bwd_chunks<<<grid_of(s), dim3(kLanes, unsigned(warps_of(s))), size_t(shared.ends) * 4, stream>>>(
        a, partial, shared);
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
