// Backward: see chunks.cuh. Terms are over the first token's -log_sum: no two of a sequence differ by more
// than decay and bonus make them, both ways, and the logarithm of its length.
#include "ops/wkv/chunks.cuh"

namespace occam::kernels {

namespace {

constexpr int kSegment = 4, kTokens = 20;
constexpr float kSteepest = 30;
constexpr int kReduceWarps = 8;

/// Where the gradients of token after token go, and the sums of w's and u's.
template <class T>
struct Gradients {
  T *gk, *gv;
  int64_t step;
  float w = 0, u = 0;

  /// own: the token's term with its bonus, all: the others', to be multiplied by `weight`.
  __device__ void next(float weight, float v, const Term& own, const Pull& all) {
    const float num = all.num + own.num, den = all.den + own.den;
    u += weight * (v * own.num + own.den);
    w -= weight * (v * (all.far_num - all.num) + (all.far_den - all.den));
    *gv = from_acc<T>(weight * num), gv += step;
    *gk = from_acc<T>(weight * (v * num + den)), gk += step;
  }
};

/// A channel's tokens, `row` elements from each other. kTile: terms are kept in shared memory, else made
/// anew.
template <bool kTile, class T>
struct Slopes {
  static constexpr bool kAhead = true;
  const T *keys, *values, *slopes;
  const float *averages, *log_sums;
  int64_t row;
  float exponent, bonus;
  Term* held;
  Gradients<T> to;
  T g[kSegment], k[kSegment], v[kSegment];
  float y[kSegment], log_sum[kSegment], weight[kSegment], value[kSegment];

  template <bool kFull>
  __device__ void load(int first, int count) {
    const int64_t start = first * row;
#pragma unroll
    for (int i = 0; i < kSegment; ++i)
      if (kFull || i < count) {
        g[i] = slopes[start + i * row];
        y[i] = averages[start + i * row], log_sum[i] = log_sums[start + i * row];
      }
  }
  template <bool kFull>
  __device__ void take(int first, int count, Term (&terms)[kSegment]) {
#pragma unroll
    for (int i = 0; i < kSegment; ++i) {
      terms[i] = {0, 0};
      if (!kFull && i >= count) continue;
      terms[i] = Token{-log_sum[i], to_acc(g[i]), -to_acc(g[i]) * y[i]}.over(exponent);
      if (kTile) held[(first + i) * kLanes] = terms[i];
    }
  }
  template <bool kFull>
  __device__ void load_again(int first, int count) {
    const int64_t start = first * row;
#pragma unroll
    for (int i = 0; i < kSegment; ++i)
      if (kFull || i < count) k[i] = keys[start + i * row], v[i] = values[start + i * row];
    if (!kTile) load<kFull>(first, count);
  }
  template <bool kFull>
  __device__ void take_again(int first, int count, Term (&terms)[kSegment]) {
#pragma unroll
    for (int i = 0; i < kSegment; ++i)
      weight[i] = exp2_fast(fmaf(to_acc(k[i]), kLog2e, exponent)), value[i] = to_acc(v[i]);
    if constexpr (kTile) {
#pragma unroll
      for (int i = 0; i < kSegment; ++i)
        terms[i] = kFull || i < count ? held[(first + i) * kLanes] : Term{0, 0};
    } else {
      take<kFull>(first, count, terms);
    }
  }
  __device__ void put(int i, const Term& t, const Pull& all) {
    to.next(weight[i], value[i], {bonus * t.num, bonus * t.den}, all);
  }
};

/// partial [b][blocks][2][c]: gradients of w and u of each block.
template <bool kTile, class T>
__global__ void __maxnreg__(96) wkv_bwd_chunks(WkvBackward<T, float> a, float* partial, int blocks) {
  using Sum = Pull;
  __shared__ float sums[2][kMaxWarps][kLanes];
  const WkvShape& s = a.s;
  const Place<kSegment> p(s, blocks);
  const Decay d(a.w, a.u, p, kSteepest);
  const Memory<Sum, kSegment> memory(s, p, kTile ? nullptr : a.scratch);
  const T *keys = a.k + p.base, *values = a.v + p.base, *slopes = a.gy + p.base;
  const float *averages = a.y + p.base, *log_sums = a.log_sum + p.base;
  const int64_t row = s.c;
  Gradients<T> to{a.gk + p.base + p.first * row, a.gv + p.base + p.first * row, row};
  if (d.steep) {
    Gradients<T> steep = to;
    walk_steep<Sum>(
        p, d, memory,
        [=](int at) {
          const float g = to_acc(slopes[at * row]);
          return Token{-log_sums[at * row], g, -g * averages[at * row]};
        },
        [=, u = d.u, to = &steep](int at, Token t, Joined<Sum> all) {
          const float k = to_acc(keys[at * row]) * kLog2e, e = exp2_fast(u + k + t.x);
          all.sum.scale(exp2_fast(k + all.max));
          to->next(1, to_acc(values[at * row]), {e * t.num, e * t.den}, all.sum);
        });
    to = steep;
  } else {
    const float exponent = p.inside && p.length > 0 ? -log_sums[0] : 0;
    Term* held = reinterpret_cast<Term*>(memory.tile()) + (threadIdx.x - p.first_of_block() * kLanes);
    Slopes<kTile, T> tokens{keys, values,   slopes,         averages, log_sums,
                            row,  exponent, exp2_fast(d.u), held,     to};
    walk<Sum>(p, d, memory, tokens);
    to = tokens.to;
  }
  sums[0][threadIdx.y][threadIdx.x] = to.w, sums[1][threadIdx.y][threadIdx.x] = to.u;
  __syncthreads();
  if (!p.inside || threadIdx.y != 0) return memory.leave();
  for (int k = 1; k < int(blockDim.y); ++k) to.w += sums[0][k][threadIdx.x], to.u += sums[1][k][threadIdx.x];
  partial += (p.sequence * blocks + p.rank) * 2 * s.c + p.channel;
  partial[0] = p.per_token(to.w), partial[s.c] = to.u;
  memory.leave();
}

/// out [2][c] = sum over blocks of partial.
__global__ void __launch_bounds__(kLanes* kReduceWarps)
    wkv_bwd_reduce(const float* partial, int64_t blocks, int64_t c, float* gw, float* gu) {
  const int64_t column = int64_t(blockIdx.x) * kLanes + threadIdx.x;  // of [2][c]
  __shared__ float parts[kReduceWarps][kLanes];
  float sum = 0;
  if (column < 2 * c)
    for (int64_t n = threadIdx.y; n < blocks; n += kReduceWarps) sum += partial[n * 2 * c + column];
  parts[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= 2 * c) return;
  for (int k = 1; k < kReduceWarps; ++k) sum += parts[k][threadIdx.x];
  (column < c ? gw[column] : gu[column - c]) = sum;
}

Layout<Pull, kSegment> layout_of(const WkvShape& s) { return {s, kTokens, 2}; }

}  // namespace

template <class T>
int64_t wkv_scratch(const WkvBackward<T, float>& a) {
  const auto layout = layout_of(a.s);
  return layout.scratch(a.s) + 2 * a.s.b * layout.blocks * a.s.c;
}

template <class T>
void wkv_bwd(const WkvBackward<T, float>& a, void* stream_handle) {
  const cudaStream_t stream = as_stream(stream_handle);
  const WkvShape& s = a.s;
  if (s.c == 0) return;
  const auto layout = layout_of(s);
  float* partial = a.scratch + layout.scratch(s);
  const int64_t blocks = s.t > 0 ? s.b * layout.blocks : 0;
  if (blocks > 0) {
    auto* kernel = layout.global ? wkv_bwd_chunks<false, T> : wkv_bwd_chunks<true, T>;
    launch(kernel, "wkv_bwd_chunks", s, layout, stream, a, partial, int(layout.blocks));
  }
  const dim3 block(kLanes, kReduceWarps);
  wkv_bwd_reduce<<<unsigned(div_up<int64_t>(2 * s.c, kLanes)), block, 0, stream>>>(partial, blocks, s.c, a.gw,
                                                                                   a.gu);
  check_launch("wkv_bwd_reduce", stream);
}

template int64_t wkv_scratch(const WkvBackward<float, float>&);
template int64_t wkv_scratch(const WkvBackward<bf16, float>&);
template void wkv_bwd(const WkvBackward<float, float>&, void*);
template void wkv_bwd(const WkvBackward<bf16, float>&, void*);

}  // namespace occam::kernels
