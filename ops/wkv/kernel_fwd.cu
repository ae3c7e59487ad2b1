// Forward: see chunks.cuh. Terms are over the largest key of the sequence: an output has at least that term,
// decayed, so that what f32 loses is lost beside it.
#include "core/cuda/mma.cuh"
#include "core/cuda/vec.cuh"
#include "ops/wkv/chunks.cuh"

namespace occam::kernels {

namespace {

constexpr int kSegment = 8, kTokens = 40;
constexpr float kSteepest =
    96;  // a sum may be that much below the largest term, with 2^-24 of itself above 2^-126

/// to [token of the block][kLanes] = the block's channels of x, of the warp's tokens.
template <class T>
__device__ __forceinline__ void bring(const WkvShape& s, const Place<kSegment>& p, const T* x, T* to) {
  constexpr int kPieces = kLanes / kPack<T>;
  const int64_t left = s.c - (p.channel - threadIdx.x);
  x += p.base - threadIdx.x, to -= p.first_of_block() * kLanes;
  for (int e = p.first * kPieces + int(threadIdx.x); e < p.last * kPieces; e += kLanes) {
    const int token = e / kPieces, at = e % kPieces * kPack<T>;
    copy_async16(to + token * kLanes + at, x + token * s.c + (at < left ? at : 0), at < left);
  }
}

/// Where the outputs of token after token go.
template <class T, bool kKept>
struct Outputs {
  T* y;
  float *log_sum, *wide_y;
  int64_t at, step;

  __device__ Outputs(const WkvForward<T, float>& a, int64_t first, int64_t step)
      : y(a.y), log_sum(a.log_sum), wide_y(a.wide_y), at(first), step(step) {}
  __device__ void next(const Average& sum, float exponent) {
    const float average = sum.num * reciprocal_fast(sum.den);
    y[at] = from_acc<T>(average);
    if constexpr (kKept) {
      log_sum[at] = exponent + log2_fast(sum.den);
      if constexpr (!std::is_same_v<T, float>) wide_y[at] = average;
    }
    at += step;
  }
};

/// Tokens at `row` elements from each other.
template <bool kTile, bool kKept, class T>
struct Pairs {
  static constexpr bool kAhead = !kTile;
  const T *keys, *values;
  int64_t row;
  float exponent, bonus;
  Outputs<T, kKept> to;
  T k[kSegment], v[kSegment];

  template <bool kFull>
  __device__ void load(int first, int count) {
    const T *key = keys + first * row, *value = values + first * row;
#pragma unroll
    for (int i = 0; i < kSegment; ++i)
      if (kFull || i < count) k[i] = key[i * row], v[i] = value[i * row];
  }
  template <bool kFull>
  __device__ void take(int, int count, Term (&terms)[kSegment]) const {
#pragma unroll
    for (int i = 0; i < kSegment; ++i)
      terms[i] =
          kFull || i < count ? Token{to_acc(k[i]) * kLog2e, to_acc(v[i]), 1}.over(exponent) : Term{0, 0};
  }
  template <bool kFull>
  __device__ void load_again(int first, int count) {
    load<kFull>(first, count);
  }
  template <bool kFull>
  __device__ void take_again(int first, int count, Term (&terms)[kSegment]) const {
    take<kFull>(first, count, terms);
  }
  __device__ void put(int, const Term& own, Average all) {
    all.num += bonus * own.num, all.den += bonus * own.den;
    to.next(all, exponent);
  }
};

/// Of all warps of the sequence. What is written here lies behind the two floats that chunks and blocks take.
__device__ __forceinline__ float largest(const Place<kSegment>& p, const Memory<Average, kSegment>& memory,
                                         float own) {
  constexpr int kThere = Average::kFloats * kLanes;
  memory.chunk(threadIdx.y, 0)[kThere] = own;
  __syncthreads();
  for (int n = 0; n < int(blockDim.y); ++n) own = fmaxf(own, memory.chunk(n, 0)[kThere]);
  if (p.blocks == 1) return own;
  if (threadIdx.y == 0) memory.block(0)[kThere] = own;
  memory.synchronize();
  for (int n = 0; n < p.blocks; ++n) own = fmaxf(own, in_block(memory.block(0), n)[kThere]);
  return own;
}

/// kTile: keys and values are brought to shared memory first. kKept: backward will follow.
template <bool kTile, bool kKept, class T>
__global__ void __maxnreg__(kTile ? 72 : 96) wkv_fwd_chunks(WkvForward<T, float> a, int blocks) {
  using Sum = Average;
  const WkvShape& s = a.s;
  const Place<kSegment> p(s, blocks);
  const Decay d(a.w, a.u, p, kSteepest);
  const Memory<Sum, kSegment> memory(s, p, kTile ? nullptr : a.scratch);
  const T *keys = a.k + p.base, *values = a.v + p.base;
  if constexpr (kTile) {
    T *keys_there = reinterpret_cast<T*>(memory.tile()),
      *values_there = keys_there + p.tokens_of_block() * kLanes;
    bring(s, p, a.k, keys_there), bring(s, p, a.v, values_there);
    copies_commit();
    copies_wait<0>();
    __syncwarp();
    const int64_t shift = threadIdx.x - p.first_of_block() * kLanes;
    keys = keys_there + shift, values = values_there + shift;
  }
  const int64_t row = kTile ? kLanes : s.c;
  Outputs<T, kKept> to{a, p.base + p.first * s.c, s.c};
  if (d.steep) {
    walk_steep<Sum>(
        p, d, memory,
        [=](int at) {
          return Token{to_acc(keys[at * row]) * kLog2e, to_acc(values[at * row]), 1};
        },
        [=, u = d.u](int, Token own, Joined<Sum> all) mutable {
          own.x += u;
          all.over(fmaxf(all.max, own.x));
          const Term term = own.over(all.max);
          all.sum.num += term.num, all.sum.den += term.den;
          to.next(all.sum, all.max);
        });
    return memory.leave();
  }
  float exponent = kNothing;
  if (p.inside) {
#pragma unroll 8
    for (int at = p.first; at < p.last; ++at) exponent = fmaxf(exponent, to_acc(keys[at * row]));
  }
  exponent = largest(p, memory, exponent) * kLog2e;
  Pairs<kTile, kKept, T> pairs{keys, values, row, exponent, exp2_fast(d.u), to, {}, {}};
  walk<Sum>(p, d, memory, pairs);
  memory.leave();
}

template <class T>
Layout<Average, kSegment> layout_of(const WkvForward<T, float>& a) {
  const bool packs = a.s.c % kPack<T> == 0 && aligned16(a.k, a.v);
  return {a.s, kTokens, packs ? int64_t(sizeof(T)) / 2 : 0};
}

}  // namespace

template <class T>
int64_t wkv_scratch(const WkvForward<T, float>& a) {
  return layout_of(a).scratch(a.s);
}

template <class T>
void wkv_fwd(const WkvForward<T, float>& a, void* stream) {
  if (a.s.b * a.s.t * a.s.c == 0) return;
  const auto layout = layout_of(a);
  auto* kernel = a.log_sum == nullptr
                     ? layout.global ? wkv_fwd_chunks<false, false, T> : wkv_fwd_chunks<true, false, T>
                 : layout.global ? wkv_fwd_chunks<false, true, T>
                                 : wkv_fwd_chunks<true, true, T>;
  launch(kernel, "wkv_fwd_chunks", a.s, layout, as_stream(stream), a, int(layout.blocks));
}

template int64_t wkv_scratch(const WkvForward<float, float>&);
template int64_t wkv_scratch(const WkvForward<bf16, float>&);
template void wkv_fwd(const WkvForward<float, float>&, void*);
template void wkv_fwd(const WkvForward<bf16, float>&, void*);

}  // namespace occam::kernels
