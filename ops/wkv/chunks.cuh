#pragma once
// A lane owns a channel, a warp 32 channels and a chunk of the tokens, a block all chunks of a sequence. The
// running sums of a token (of what stands before and behind it) follow from linear recurrences, so that a
// warp first condenses its chunk, the block shares these, and each warp then starts from the sums at its
// chunk's ends:
//   1. from the chunk's last segment to its first: the sum behind every segment, from within the chunk alone,
//      and the whole chunk as seen from either end.
//   2. each warp adds up the chunks before and behind its own.
//   3. segment by segment forward: the sums behind each token of the segment in registers, then the outputs.
// Chunks are whole segments, but for what the last one lacks: its sums behind are none.
#include <algorithm>
#include <type_traits>

#include "core/cuda/launch.h"
#include "ops/wkv/kernel.h"
#include "ops/wkv/sums.cuh"

namespace occam::kernels {

namespace {

using namespace cuda;

constexpr float kLog2e = 1.44269504f;
constexpr int kLanes = 32, kMaxWarps = 16, kManyWarps = 10;
constexpr int64_t kFewTokens = 20;

/// The part of a thread: its channel, and the tokens [first, last) of its warp in a sequence of `length`.
template <int kSegment>
struct Place {
  int64_t sequence, channel, base;  // base: of the sequence's first token
  int length, first, last, chunk;
  bool inside;

  __device__ explicit Place(const WkvShape& s) {
    const int64_t groups = div_up<int64_t>(s.c, kLanes);
    sequence = blockIdx.x / groups, channel = blockIdx.x % groups * kLanes + threadIdx.x;
    base = s.begin(sequence) * s.c + channel, length = int(s.length(sequence));
    chunk = round_up(div_up(length, int(blockDim.y)), kSegment);
    first = int(min(int64_t(length), threadIdx.y * int64_t(chunk)));
    last = length - first < chunk ? length : first + chunk;
    inside = channel < s.c;
  }
  __device__ int segments() const { return div_up(last - first, kSegment); }
  /// One step's part of what is of the whole sequence.
  __device__ float per_token(float w) const { return w / float(max(length, 1)); }
};

/// What a channel's recurrences take. steep, the same for a block: where decay and bonus over the sequence,
/// in base 2, may be more than `most`, and sums have to carry their exponents.
struct Decay {
  float w, u, factor;  // w: a token's
  bool steep;
  template <int kSegment, class T>
  __device__ Decay(const T* w_of, const T* u_of, const Place<kSegment>& p, float most)
      : w(p.inside ? to_acc(w_of[p.channel]) * kLog2e : 0),
        u(p.inside ? to_acc(u_of[p.channel]) * kLog2e : 0),
        factor(exp2_fast(-p.per_token(w))),
        steep(__any_sync(0xffffffffu, !(fabsf(w) + fabsf(u) <= most))) {
    w = p.per_token(w);
  }
};

/// Floats of dynamic shared memory: a chunk as seen from either end, [warps][2][kFloats][kLanes]; the sums
/// behind segments, [warps][chunk / kSegment - 1][kFloats][kLanes]; and what a kernel keeps of each token.
/// Where that is too much, the sums are in global memory, with as many for each sequence as the longest has.
template <class Sum, int kSegment>
struct Layout {
  static constexpr int kFloats = Joined<Sum>::kFloats;
  int64_t warps, segments, tile;  // tile: floats, 0 for none
  bool global;

  Layout(const WkvShape& s, int64_t warps, int64_t floats_of_token, int64_t most)
      : warps(warps),
        segments(std::max<int64_t>(div_up<int64_t>(div_up<int64_t>(s.t, warps), kSegment) - 1, 0)),
        tile(s.t * floats_of_token * kLanes),
        global(floats_of_token == 0 || 4 * shared_with(segments, tile) > std::min(most, room())) {
    if (global) tile = 0;
  }
  /// What a block may have beside kernels' own arrays.
  static int64_t room() { return device_limits().shared_bytes_opt_in - 8 * kMaxWarps * kLanes; }
  int64_t shared_with(int64_t segments, int64_t tile) const {
    return warps * (2 + segments) * kFloats * kLanes + tile;
  }
  int64_t shared_bytes() const { return 4 * shared_with(global ? 0 : segments, tile); }
  int64_t scratch(const WkvShape& s) const { return global ? s.b * warps * segments * kFloats * s.c : 0; }
};

extern __shared__ __align__(16) float shared_memory[];

/// A thread's view of that.
template <class Sum, int kSegment>
struct Memory {
  static constexpr int kFloats = Joined<Sum>::kFloats;
  float *chunks, *ends;
  int64_t stride;  // between floats of `ends`

  __device__ Memory(const WkvShape& s, const Place<kSegment>& p, float* global)
      : chunks(shared_memory + threadIdx.x), stride(kLanes) {
    const int warps = int(blockDim.y);
    const int64_t segments = div_up<int64_t>(div_up<int64_t>(s.t, warps), kSegment) - 1;
    ends = chunks + (2 * warps + threadIdx.y * segments) * kFloats * kLanes;
    if (global == nullptr) return;
    ends = global + (p.sequence * warps + threadIdx.y) * segments * kFloats * s.c + p.channel, stride = s.c;
  }
  __device__ float* chunk(int warp, int side) const { return chunks + (2 * warp + side) * kFloats * kLanes; }
  __device__ float* end(int n) const { return ends + n * kFloats * stride; }
  /// The first float behind, of lane 0.
  __device__ float* tile(const WkvShape& s) const {
    const int64_t segments = div_up<int64_t>(div_up<int64_t>(s.t, blockDim.y), kSegment) - 1;
    return shared_memory + blockDim.y * (2 + segments) * kFloats * kLanes;
  }
};

/// Goes over a chunk's segments from the last to the first, then from the first to the last. Of each,
/// `tokens`
///   load<kFull>(first, count)         reads what its `count` tokens from `first` on take (kFull: kSegment),
///   take<kFull>(first, count, terms)  gives their terms, zeros behind them, all over one exponent that is
///   good
///                                     for every token of the sequence,
///   load_again, take_again            are the same the second time,
///   put(i, term, sum)                 gets token i of the segment taken last, and the sum of all other
///   tokens.
/// kAhead: a segment is loaded when the one before it was taken.
template <class Sum, int kSegment, class Tokens>
__device__ __forceinline__ void walk(const Place<kSegment>& p, const Decay& d,
                                     const Memory<Sum, kSegment>& memory, Tokens& tokens) {
  constexpr bool kAhead = Tokens::kAhead;
  const int segments = p.inside ? p.segments() : 0;
  auto first_of = [&](int n) { return p.first + n * kSegment; };
  auto for_segment = [&](int n, auto body) {
    const int first = first_of(n), count = p.last - first;
    count >= kSegment ? body.template operator()<true>(first, count)
                      : body.template operator()<false>(first, count);
  };
  auto load = [&](int n) {
    for_segment(n, [&]<bool kFull>(int first, int count) { tokens.template load<kFull>(first, count); });
  };
  auto load_again = [&](int n) {
    for_segment(n,
                [&]<bool kFull>(int first, int count) { tokens.template load_again<kFull>(first, count); });
  };

  Sum as_before, as_behind;
  float decay = 1;  // from a segment's end to the chunk's
  const float of_segment = exp2_fast(-d.w * kSegment);
  if (kAhead && segments > 0) load(segments - 1);
  for (int n = segments - 1; n >= 0; --n) {
    Term terms[kSegment];
    if (!kAhead) load(n);
    for_segment(n,
                [&]<bool kFull>(int first, int count) { tokens.template take<kFull>(first, count, terms); });
    if (kAhead && n > 0) tokens.template load<true>(first_of(n - 1), kSegment);
    if (n < segments - 1) as_behind.put(memory.end(n), memory.stride);
    Sum here;
#pragma unroll
    for (int i = 0; i < kSegment; ++i) here.step(d.factor, terms[i]);
#pragma unroll
    for (int i = kSegment - 1; i >= 0; --i) as_behind.step(d.factor, terms[i]);
    as_before.add(here, decay, float(p.chunk - (n + 1) * kSegment));
    decay *= of_segment;
  }
  if (kAhead && segments > 0) load_again(0);
  as_before.put(memory.chunk(threadIdx.y, 0), kLanes);
  as_behind.put(memory.chunk(threadIdx.y, 1), kLanes);
  __syncthreads();
  if (!p.inside) return;
  const float of_chunk = exp2_fast(-d.w * float(p.chunk));
  Sum before, behind, chunk;
  for (int n = 0; n < int(threadIdx.y); ++n) {
    chunk.get(memory.chunk(n, 0), kLanes);
    chunk.add(before, of_chunk, float(p.chunk));
    before = chunk;
  }
  for (int n = int(blockDim.y) - 1; n > int(threadIdx.y); --n) {
    chunk.get(memory.chunk(n, 1), kLanes);
    chunk.add(behind, of_chunk, float(p.chunk));
    behind = chunk;
  }
  for (int n = 0; n < segments; ++n) {
    Sum end, after[kSegment];
    if (n < segments - 1) end.get(memory.end(n), memory.stride);
    const float left = float(p.chunk - (n + 1) * kSegment);
    end.add(behind, exp2_fast(-d.w * left), left);
    if (!kAhead) load_again(n);
    for_segment(n, [&]<bool kFull>(int first, int count) {
      Term terms[kSegment];
      tokens.template take_again<kFull>(first, count, terms);
      if (kAhead && n + 1 < segments) load_again(n + 1);
#pragma unroll
      for (int i = kSegment - 1; i >= 0; --i) {
        after[i] = end;
        end.step(d.factor, terms[i]);
      }
#pragma unroll
      for (int i = 0; i < kSegment; ++i) {
        after[i].add(before, 1, 0);
        if (kFull || i < count) tokens.put(i, terms[i], after[i]);
        before.step(d.factor, terms[i]);
      }
    });
  }
}

/// The same for channels of steep decay: token(at) with its own exponent, put(at, token, joined sum). By
/// value, so that nothing of the caller has to have an address.
template <class Sum, int kSegment, class Fetch, class Put>
__device__ __noinline__ void walk_steep(Place<kSegment> p, Decay d, Memory<Sum, kSegment> memory, Fetch token,
                                        Put put) {
  Joined<Sum> before, behind, chunk;
  const int segments = p.segments();
  if (p.inside) {
    for (int at = p.first; at < p.last; ++at) before.join(d.w, token(at));
    for (int at = p.last - 1; at >= p.first; --at) {
      if ((at - p.first + 1) % kSegment == 0 && at + 1 < p.last)
        behind.put(memory.end((at - p.first) / kSegment), memory.stride);
      behind.join(d.w, token(at));
    }
  }
  before.put(memory.chunk(threadIdx.y, 0), kLanes);
  behind.put(memory.chunk(threadIdx.y, 1), kLanes);
  __syncthreads();
  if (!p.inside) return;
  before = behind = {};
  for (int n = 0; n < int(threadIdx.y); ++n) {
    chunk.get(memory.chunk(n, 0), kLanes);
    chunk.add(before, d.w, float(p.chunk));
    before = chunk;
  }
  for (int n = int(blockDim.y) - 1; n > int(threadIdx.y); --n) {
    chunk.get(memory.chunk(n, 1), kLanes);
    chunk.add(behind, d.w, float(p.chunk));
    behind = chunk;
  }
  for (int n = 0; n < segments; ++n) {
    const int first = p.first + n * kSegment, last = min(p.last, first + kSegment);
    Joined<Sum> end;
    if (n < segments - 1) end.get(memory.end(n), memory.stride);
    end.add(behind, d.w, float(p.last - last));
    for (int at = first; at < last; ++at) {
      Joined<Sum> all = end;
      for (int j = last - 1; j > at; --j) all.join(d.w, token(j));
      all.add(before, 0, 0);
      put(at, token(at), all);
      before.join(d.w, token(at));
    }
  }
}

/// Warps of a block, with chunks of about so many tokens. Where blocks alone fill the device there are fewer,
/// so that two blocks share a multiprocessor and warps have fewer chunks to add up.
int64_t warps_of(const WkvShape& s, int64_t tokens) {
  const bool many = s.b * div_up<int64_t>(s.c, kLanes) > int64_t(device_limits().sm_count);
  return many ? std::clamp<int64_t>(div_up(s.t, tokens), 1, kManyWarps)
              : std::clamp<int64_t>(div_up(s.t, kFewTokens), 1, kMaxWarps);
}
unsigned grid_of(const WkvShape& s) { return grid_of_blocks(s.b * div_up<int64_t>(s.c, kLanes)); }

}  // namespace

}  // namespace occam::kernels
