#pragma once
// A lane owns a channel, a warp 32 channels and a chunk of the tokens, a block some chunks of a sequence and
// a cluster of blocks all of them. The running sums of a token (of what stands before and behind it) follow
// from linear recurrences, so that a warp first condenses its chunk, blocks share these, and each warp then
// starts from the sums at its chunk's ends:
//   1. from the chunk's last segment to its first: the sum behind every segment, from within the chunk alone,
//      and the whole chunk as seen from either end.
//   2. each warp adds up the blocks and, in its own, the chunks before and behind it.
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
constexpr int64_t kFewTokens = 20, kSpreadTokens = 256, kMostBlocks = 8, kMostShared = 108 * 1024;
constexpr int64_t kStaticShared = 8 * kMaxWarps * kLanes;  // of the larger kernel, beside Layout's

/// The part of a thread: its channel, and the tokens [first, last) of its warp in a sequence of `length` that
/// `blocks` blocks share.
template <int kSegment>
struct Place {
  int64_t sequence, channel, base;  // base: of the sequence's first token
  int rank, blocks, length, first, last, chunk;
  bool inside;

  __device__ Place(const WkvShape& s, int blocks) : rank(int(blockIdx.x) % blocks), blocks(blocks) {
    const int64_t groups = div_up<int64_t>(s.c, kLanes), unit = blockIdx.x / unsigned(blocks);
    sequence = unit / groups, channel = unit % groups * kLanes + threadIdx.x;
    base = s.begin(sequence) * s.c + channel, length = int(s.length(sequence));
    chunk = round_up(div_up(length, int(blockDim.y) * blocks), kSegment);
    first = int(min(int64_t(length), (int64_t(rank) * blockDim.y + threadIdx.y) * chunk));
    last = length - first < chunk ? length : first + chunk;
    inside = channel < s.c;
  }
  __device__ int segments() const { return div_up(last - first, kSegment); }
  __device__ int tokens_of_block() const { return chunk * int(blockDim.y); }
  __device__ int64_t first_of_block() const { return int64_t(rank) * tokens_of_block(); }
  /// One step's part of what is of the whole sequence.
  __device__ float per_token(float w) const { return w / float(max(length, 1)); }
};

/// What a channel's recurrences take. steep, the same for a cluster: where decay and bonus over the sequence,
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

/// Floats of dynamic shared memory: a block as seen from either end, [2][kFloats][kLanes]; its chunks in the
/// same way, [warps] of these; the sums behind segments, [warps][chunk / kSegment - 1][kFloats][kLanes]; and
/// what a kernel keeps of each token. Where that is too much for a cluster of kMostBlocks, the sums are in
/// global memory, with as many for each sequence as the longest has.
template <class Sum, int kSegment>
struct Layout {
  static constexpr int kFloats = Joined<Sum>::kFloats;
  int64_t warps = 0, blocks = 0, segments = 0, tile = 0;  // tile: floats, 0 for none
  bool global = false;

  /// `tokens`: of a warp, about. floats_of_token: what is kept; 0 where that cannot be.
  Layout(const WkvShape& s, int64_t tokens, int64_t floats_of_token) {
    const DeviceLimits& device = device_limits();
    const int64_t units = s.b * div_up<int64_t>(s.c, kLanes), sms = device.sm_count;
    const int64_t most_blocks = device.capability >= 90 ? kMostBlocks : 1;  // there are no clusters before
    const int64_t most_shared = std::min<int64_t>(kMostShared, device.shared_bytes_opt_in - kStaticShared);
    // As many blocks as memory asks for, and more where sequences are long and leave multiprocessors idle.
    auto idle = [&] {
      return blocks < most_blocks && units * (blocks + 1) <= sms && s.t > blocks * kSpreadTokens;
    };
    do {
      ++blocks;
      divide(s, tokens, sms);
      tile = (segments + 1) * kSegment * warps * floats_of_token * kLanes, global = false;
      global = floats_of_token == 0 || shared_bytes() > most_shared;
    } while (blocks < most_blocks && (global ? floats_of_token > 0 : idle()));
    if (!global) return;
    for (tile = 0, blocks = 1; idle();) ++blocks;
    divide(s, tokens, sms);
  }
  /// Where blocks alone fill the device there are fewer warps, so that two blocks share a
  /// multiprocessor and warps have fewer chunks to add up.
  void divide(const WkvShape& s, int64_t tokens, int64_t sms) {
    const int64_t part = div_up<int64_t>(s.t, blocks);
    const bool many = s.b * div_up<int64_t>(s.c, kLanes) * blocks > sms;
    warps = many ? std::clamp<int64_t>(div_up(part, tokens), 1, kManyWarps)
                 : std::clamp<int64_t>(div_up(part, kFewTokens), 1, kMaxWarps);
    segments = std::max<int64_t>(div_up<int64_t>(div_up(s.t, warps * blocks), kSegment) - 1, 0);
  }
  int64_t shared_bytes() const {
    return 4 * ((2 * (warps + 1) + (global ? 0 : warps * segments)) * kFloats * kLanes + tile);
  }
  int64_t scratch(const WkvShape& s) const {
    return global ? s.b * blocks * warps * segments * kFloats * s.c : 0;
  }
  int64_t grid(const WkvShape& s) const { return s.b * div_up<int64_t>(s.c, kLanes) * blocks; }
};

extern __shared__ __align__(16) float shared_memory[];

/// The same place in the shared memory of another block of the cluster.
__device__ __forceinline__ const float* in_block(const float* at, int rank) {
#if __CUDA_ARCH__ >= 900
  uint64_t there;
  asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(at), "r"(rank));
  at = reinterpret_cast<const float*>(there);
#endif
  return at;
}

/// A thread's view of a block's shared memory.
template <class Sum, int kSegment>
struct Memory {
  static constexpr int kFloats = Joined<Sum>::kFloats;
  float *own, *ends;
  int64_t stride;  // between floats of `ends`
  int blocks, segments;

  __device__ Memory(const WkvShape& s, const Place<kSegment>& p, float* global)
      : own(shared_memory + threadIdx.x), stride(kLanes), blocks(p.blocks) {
    const int warps = int(blockDim.y);
    segments = max(0, int(div_up<int64_t>(div_up<int64_t>(s.t, warps * blocks), kSegment)) - 1);
    ends = chunk(warps, 0) + threadIdx.y * segments * kFloats * kLanes;
    if (global == nullptr) return;
    ends = global + ((p.sequence * blocks + p.rank) * warps + threadIdx.y) * segments * kFloats * s.c +
           p.channel,
    stride = s.c;
  }
  __device__ float* block(int side) const { return own + side * kFloats * kLanes; }
  __device__ float* chunk(int warp, int side) const { return block(2 * (warp + 1) + side); }
  __device__ float* end(int n) const { return ends + n * kFloats * stride; }
  /// The first float behind, of lane 0.
  __device__ float* tile() const {
    return shared_memory + blockDim.y * (2 + segments) * kFloats * kLanes + 2 * kFloats * kLanes;
  }
  /// What was written before is seen behind it by all blocks that share the sequence.
  __device__ void synchronize() const {
    if (blocks == 1) return __syncthreads();
    arrive(), leave();
  }
  /// Not before all blocks have arrived may one leave whose memory others read.
  __device__ void arrive() const {
#if __CUDA_ARCH__ >= 900
    if (blocks > 1) asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
  }
  __device__ void leave() const {
#if __CUDA_ARCH__ >= 900
    if (blocks > 1) asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
  }
};

/// Step 2: of this warp's chunk as seen from either end, the sums of all chunks before and behind it.
/// add(sum, far, tokens): far joins a sum, so many tokens further away.
template <class S, class Sum, int kSegment, class Add>
__device__ __forceinline__ void exchange(const Place<kSegment>& p, const Memory<Sum, kSegment>& memory,
                                         Add add, S& before, S& behind) {
  const int warp = int(threadIdx.y), warps = int(blockDim.y);
  before.put(memory.chunk(warp, 0), kLanes);
  behind.put(memory.chunk(warp, 1), kLanes);
  __syncthreads();
  // sum becomes that of `next` and, behind it, of what it was.
  auto join = [&](S& sum, const float* next, int tokens) {
    S all;
    all.get(next, kLanes);
    add(all, sum, float(tokens));
    sum = all;
  };
  before = behind = {};
  if (p.blocks > 1) {
    if (warp == 0) {
      for (int n = 0; n < warps; ++n) join(before, memory.chunk(n, 0), p.chunk);
      before.put(memory.block(0), kLanes);
    }
    if (warp == warps - 1) {
      for (int n = warps - 1; n >= 0; --n) join(behind, memory.chunk(n, 1), p.chunk);
      behind.put(memory.block(1), kLanes);
    }
    memory.synchronize();
    before = behind = {};
    for (int n = 0; n < p.rank; ++n) join(before, in_block(memory.block(0), n), p.tokens_of_block());
    for (int n = p.blocks - 1; n > p.rank; --n)
      join(behind, in_block(memory.block(1), n), p.tokens_of_block());
    memory.arrive();
  }
  for (int n = 0; n < warp; ++n) join(before, memory.chunk(n, 0), p.chunk);
  for (int n = warps - 1; n > warp; --n) join(behind, memory.chunk(n, 1), p.chunk);
}

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
  Sum &before = as_before, &behind = as_behind;
  exchange(
      p, memory, [&](Sum& sum, const Sum& far, float n) { sum.add(far, exp2_fast(-d.w * n), n); }, before,
      behind);
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
  Joined<Sum> before, behind;
  const int segments = p.inside ? p.segments() : 0;
  if (p.inside) {
    for (int at = p.first; at < p.last; ++at) before.join(d.w, token(at));
    for (int at = p.last - 1; at >= p.first; --at) {
      if ((at - p.first + 1) % kSegment == 0 && at + 1 < p.last)
        behind.put(memory.end((at - p.first) / kSegment), memory.stride);
      behind.join(d.w, token(at));
    }
  }
  exchange(
      p, memory, [&](Joined<Sum>& sum, const Joined<Sum>& far, float n) { sum.add(far, d.w, n); }, before,
      behind);
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

/// Blocks of a cluster share a sequence.
template <class Sum, int kSegment, class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const char* name, const WkvShape& s,
            const Layout<Sum, kSegment>& l, cudaStream_t stream, Arguments... arguments) {
  allow_shared(kernel, name, l.shared_bytes() + kStaticShared);
  cudaLaunchConfig_t config{};
  config.gridDim = grid_of_blocks(l.grid(s)), config.blockDim = dim3(kLanes, unsigned(l.warps));
  config.dynamicSmemBytes = size_t(l.shared_bytes()), config.stream = stream;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {unsigned(l.blocks), 1, 1};
  config.attrs = &cluster, config.numAttrs = l.blocks > 1 ? 1 : 0;
  OCCAM_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, arguments...));
  check_launch(name, stream);
}

}  // namespace

}  // namespace occam::kernels
