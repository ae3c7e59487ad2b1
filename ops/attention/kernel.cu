// Attention with plain f32 multiply-adds: for float (true f32), and for bf16 heads that kernel_mma.cu does
// not take. A block of 16 x 16 threads owns kSide rows of a head and streams the other side in tiles of kSide
// rows; all tiles are f32 in shared memory. Thread (x, y) has rows y kR .. y kR + kR - 1 and columns x, x +
// 16, ..., so the 16 lanes with one y share rows: sums over columns are shuffles, and weights pass through
// shared memory within a warp.
#include "ops/attention/kernel.h"

#include <type_traits>

#include "core/cuda/launch.h"
#include "core/cuda/reduce.cuh"
#include "core/cuda/vec.cuh"

namespace occam::kernels {

using namespace cuda;

namespace {

constexpr int kThreads = 256, kLanes = 16;

/// Heads of up to kD elements. Longer heads take smaller tiles: all must fit into shared memory.
template <int kD>
struct Sizes {
  static constexpr int kSide = kD <= 64 ? 64 : kD <= 128 ? 32 : 16;
  static constexpr int kR = kSide / kLanes;               // rows and columns of scores of a thread
  static constexpr int kRun = kD < 64 ? kD / kLanes : 4;  // neighbouring columns of an output row of a thread
  static constexpr int kRuns = kD / (kLanes * kRun);
  // Padding keeps rows aligned for 16-byte loads and puts the 8 rows a quarter warp reads into different
  // banks.
  static constexpr int kStride = kD + 4, kWeightStride = kSide + 4;
  static constexpr int kTile = kSide * kStride;
};

struct Place {
  int64_t first, rows;           // first row of the block; rows of the head from there on
  int64_t head_stat;             // offset of row 0 in lse and delta
  int64_t qkv, y;                // offsets of row 0 of the head's q and y
  int64_t stride_qkv, stride_y;  // from row to row; stride_y also from q to k and from k to v
  const uint8_t* mask;
};

template <class T>
__device__ __forceinline__ Place place_of_block(const Attention<T>& a, int64_t tiles, int side) {
  int64_t head = blockIdx.x / tiles, first = blockIdx.x % tiles * side, image = head / a.h, y = a.h * a.d;
  int64_t column = head % a.h * a.d;
  return {first,
          a.t - first,
          head * a.t,
          image * a.t * 3 * y + column,
          image * a.t * y + column,
          3 * y,
          y,
          a.key_mask == nullptr ? nullptr : a.key_mask + image * a.t};
}

/// kSide rows of a head to shared memory; rows from `rows` on and columns from d on are 0. `packed`: rows are
/// multiples of 16 bytes and so are their addresses.
template <int kD, class T>
__device__ __forceinline__ void load_tile(float* tile, const T* from, int64_t stride, int64_t rows, int64_t d,
                                          bool packed) {
  using S = Sizes<kD>;
  if (packed) {
    constexpr int kChunks = kD / kPack<T>;
    for (int i = int(threadIdx.x); i < S::kSide * kChunks; i += kThreads) {
      int row = i / kChunks, column = i % kChunks * kPack<T>;
      float v[kPack<T>] = {};
      if (row < rows && column < d) load_acc(from + row * stride + column, v);
#pragma unroll
      for (int j = 0; j < kPack<T>; j += 4)
        *reinterpret_cast<float4*>(tile + row * S::kStride + column + j) =
            make_float4(v[j], v[j + 1], v[j + 2], v[j + 3]);
    }
  } else {
    for (int i = int(threadIdx.x); i < S::kSide * kD; i += kThreads) {
      int row = i / kD, column = i % kD;
      tile[row * S::kStride + column] = row < rows && column < d ? to_acc(from[row * stride + column]) : 0;
    }
  }
}

__device__ __forceinline__ void unpack(float (&to)[4], const float* from) {
  float4 v = *reinterpret_cast<const float4*>(from);
  to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}

/// s[i][j] = row (y kR + i) of `rows` . row (x + 16 j) of `columns`.
template <int kD, int kR>
__device__ __forceinline__ void scores(float (&s)[kR][kR], const float* rows, const float* columns) {
  using S = Sizes<kD>;
  const float* row = rows + int(threadIdx.x) / kLanes * kR * S::kStride;
  const float* column = columns + int(threadIdx.x) % kLanes * S::kStride;
#pragma unroll
  for (int i = 0; i < kR; ++i)
#pragma unroll
    for (int j = 0; j < kR; ++j) s[i][j] = 0;
#pragma unroll 4
  for (int c = 0; c < kD; c += 4) {
    float a[kR][4], b[kR][4];
#pragma unroll
    for (int i = 0; i < kR; ++i) {
      unpack(a[i], row + i * S::kStride + c);
      unpack(b[i], column + i * kLanes * S::kStride + c);
    }
#pragma unroll
    for (int i = 0; i < kR; ++i)
#pragma unroll
      for (int j = 0; j < kR; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) s[i][j] += a[i][e] * b[j][e];
  }
}

/// o[i][run kRun + e] += sum over the tile's rows of p[i][row] tile[row][x kRun + 16 kRun run + e]. `weights`
/// is where the 16 lanes of a row exchange their p.
template <int kD, int kR>
__device__ __forceinline__ void weigh(float (&o)[kR][kD / kLanes], const float (&p)[kR][kR], float* weights,
                                      const float* tile) {
  using S = Sizes<kD>;
  const int x = int(threadIdx.x) % kLanes;
  float* own = weights + int(threadIdx.x) / kLanes * kR * S::kWeightStride;
  __syncwarp();  // readers of the previous weights are done
#pragma unroll
  for (int i = 0; i < kR; ++i)
#pragma unroll
    for (int j = 0; j < kR; ++j) own[i * S::kWeightStride + x + kLanes * j] = p[i][j];
  __syncwarp();
#pragma unroll 2
  for (int row = 0; row < S::kSide; row += 4) {
    float a[kR][4];
#pragma unroll
    for (int i = 0; i < kR; ++i) unpack(a[i], own + i * S::kWeightStride + row);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float* from = tile + (row + e) * S::kStride + x * S::kRun;
#pragma unroll
      for (int run = 0; run < S::kRuns; ++run)
#pragma unroll
        for (int n = 0; n < S::kRun; ++n) {
          float value = from[run * kLanes * S::kRun + n];
#pragma unroll
          for (int i = 0; i < kR; ++i) o[i][run * S::kRun + n] += a[i][e] * value;
        }
    }
  }
}

/// Row y kR + i of the block to row i of `to`, times factor[i].
template <int kD, int kR, class T>
__device__ __forceinline__ void store_rows(const float (&o)[kR][kD / kLanes], const float (&factor)[kR],
                                           T* to, int64_t stride, int64_t rows, int64_t d) {
  using S = Sizes<kD>;
  const int x = int(threadIdx.x) % kLanes, y = int(threadIdx.x) / kLanes;
#pragma unroll
  for (int i = 0; i < kR; ++i)
#pragma unroll
    for (int run = 0; run < S::kRuns; ++run)
#pragma unroll
      for (int n = 0; n < S::kRun; ++n) {
        int column = (run * kLanes + x) * S::kRun + n;
        if (y * kR + i < rows && column < d)
          to[(y * kR + i) * stride + column] = from_acc<T>(o[i][run * S::kRun + n] * factor[i]);
      }
}

__device__ __forceinline__ bool attended(const uint8_t* mask, int64_t key, int64_t t) {
  return key < t && (mask == nullptr || mask[key] != 0);
}

template <int kD, class T>
__global__ void __launch_bounds__(kThreads) attention_fwd_rows(Attention<T> a, int64_t tiles, bool packed) {
  using S = Sizes<kD>;
  constexpr int kR = S::kR;
  extern __shared__ float4 room[];
  float *q_tile = reinterpret_cast<float*>(room), *k_tile = q_tile + S::kTile, *v_tile = k_tile + S::kTile,
        *weights = v_tile + S::kTile;
  const Place at = place_of_block(a, tiles, S::kSide);
  const T *q = a.qkv + at.qkv, *k = q + at.stride_y, *v = k + at.stride_y;
  const int x = int(threadIdx.x) % kLanes, y = int(threadIdx.x) / kLanes;
  load_tile<kD>(q_tile, q + at.first * at.stride_qkv, at.stride_qkv, at.rows, a.d, packed);
  float o[kR][kD / kLanes] = {}, maximum[kR], sum[kR] = {};
#pragma unroll
  for (int i = 0; i < kR; ++i) maximum[i] = -infinity_<float>();
  for (int64_t key = 0; key < a.t; key += S::kSide) {
    __syncthreads();
    load_tile<kD>(k_tile, k + key * at.stride_qkv, at.stride_qkv, a.t - key, a.d, packed);
    load_tile<kD>(v_tile, v + key * at.stride_qkv, at.stride_qkv, a.t - key, a.d, packed);
    __syncthreads();
    float s[kR][kR];
    scores<kD>(s, q_tile, k_tile);
#pragma unroll
    for (int j = 0; j < kR; ++j) {
      bool use = attended(at.mask, key + x + kLanes * j, a.t);
#pragma unroll
      for (int i = 0; i < kR; ++i) s[i][j] = use ? s[i][j] * a.scale : -infinity_<float>();
    }
#pragma unroll
    for (int i = 0; i < kR; ++i) {
      float largest = maximum[i];
#pragma unroll
      for (int j = 0; j < kR; ++j) largest = fmaxf(largest, s[i][j]);
      largest = warp_max<kLanes>(largest);
      float shift = largest == -infinity_<float>() ? 0 : largest;  // no key yet: all weights are 0
      float keep = expf(maximum[i] - shift), added = 0;
      maximum[i] = largest;
#pragma unroll
      for (int j = 0; j < kR; ++j) {
        s[i][j] = expf(s[i][j] - shift);
        added += s[i][j];
      }
      sum[i] = sum[i] * keep + warp_sum<kLanes>(added);
#pragma unroll
      for (int c = 0; c < kD / kLanes; ++c) o[i][c] *= keep;
    }
    weigh<kD>(o, s, weights, v_tile);
  }
  float inverse[kR];
#pragma unroll
  for (int i = 0; i < kR; ++i) {
    inverse[i] = sum[i] == 0 ? 0 : 1 / sum[i];
    if (x == 0 && y * kR + i < at.rows)
      a.lse[at.head_stat + at.first + y * kR + i] =
          sum[i] == 0 ? infinity_<float>() : maximum[i] + logf(sum[i]);
  }
  store_rows<kD>(o, inverse, a.y + at.y + at.first * at.stride_y, at.stride_y, at.rows, a.d);
}

/// dq: a block owns queries and streams keys and values.
template <int kD, class T>
__global__ void __launch_bounds__(kThreads) attention_bwd_q(Attention<T> a, int64_t tiles, bool packed) {
  using S = Sizes<kD>;
  constexpr int kR = S::kR;
  extern __shared__ float4 room[];
  float *q_tile = reinterpret_cast<float*>(room), *g_tile = q_tile + S::kTile, *k_tile = g_tile + S::kTile,
        *v_tile = k_tile + S::kTile, *weights = v_tile + S::kTile;
  const Place at = place_of_block(a, tiles, S::kSide);
  const T *q = a.qkv + at.qkv, *k = q + at.stride_y, *v = k + at.stride_y;
  const int x = int(threadIdx.x) % kLanes, y = int(threadIdx.x) / kLanes;
  load_tile<kD>(q_tile, q + at.first * at.stride_qkv, at.stride_qkv, at.rows, a.d, packed);
  load_tile<kD>(g_tile, a.gy + at.y + at.first * at.stride_y, at.stride_y, at.rows, a.d, packed);
  float dq[kR][kD / kLanes] = {}, lse[kR], delta[kR], factor[kR];
#pragma unroll
  for (int i = 0; i < kR; ++i) {
    int64_t row = at.head_stat + at.first + y * kR + i;
    bool inside = y * kR + i < at.rows;
    lse[i] = inside ? a.lse[row] : 0;
    delta[i] = inside ? a.delta[row] : 0;
    factor[i] = a.scale;
  }
  for (int64_t key = 0; key < a.t; key += S::kSide) {
    __syncthreads();
    load_tile<kD>(k_tile, k + key * at.stride_qkv, at.stride_qkv, a.t - key, a.d, packed);
    load_tile<kD>(v_tile, v + key * at.stride_qkv, at.stride_qkv, a.t - key, a.d, packed);
    __syncthreads();
    float s[kR][kR], ds[kR][kR];
    scores<kD>(s, q_tile, k_tile);
    scores<kD>(ds, g_tile, v_tile);
#pragma unroll
    for (int j = 0; j < kR; ++j) {
      bool use = attended(at.mask, key + x + kLanes * j, a.t);
#pragma unroll
      for (int i = 0; i < kR; ++i)
        ds[i][j] = use ? expf(s[i][j] * a.scale - lse[i]) * (ds[i][j] - delta[i]) : 0;
    }
    weigh<kD>(dq, ds, weights, k_tile);
  }
  store_rows<kD>(dq, factor, a.gqkv + at.qkv + at.first * at.stride_qkv, at.stride_qkv, at.rows, a.d);
}

/// dk and dv: a block owns keys and streams queries and gradients. Scores are transposed: rows are keys.
template <int kD, class T>
__global__ void __launch_bounds__(kThreads) attention_bwd_kv(Attention<T> a, int64_t tiles, bool packed) {
  using S = Sizes<kD>;
  constexpr int kR = S::kR;
  extern __shared__ float4 room[];
  float *k_tile = reinterpret_cast<float*>(room), *v_tile = k_tile + S::kTile, *q_tile = v_tile + S::kTile,
        *g_tile = q_tile + S::kTile, *weights = g_tile + S::kTile;
  const Place at = place_of_block(a, tiles, S::kSide);
  const T *q = a.qkv + at.qkv, *k = q + at.stride_y, *v = k + at.stride_y, *g = a.gy + at.y;
  const int x = int(threadIdx.x) % kLanes, y = int(threadIdx.x) / kLanes;
  load_tile<kD>(k_tile, k + at.first * at.stride_qkv, at.stride_qkv, at.rows, a.d, packed);
  load_tile<kD>(v_tile, v + at.first * at.stride_qkv, at.stride_qkv, at.rows, a.d, packed);
  float dk[kR][kD / kLanes] = {}, dv[kR][kD / kLanes] = {}, one[kR], factor[kR];
  bool use[kR];
#pragma unroll
  for (int i = 0; i < kR; ++i) {
    use[i] = attended(at.mask, at.first + y * kR + i, a.t);
    one[i] = 1, factor[i] = a.scale;
  }
  for (int64_t query = 0; query < a.t; query += S::kSide) {
    __syncthreads();
    load_tile<kD>(q_tile, q + query * at.stride_qkv, at.stride_qkv, a.t - query, a.d, packed);
    load_tile<kD>(g_tile, g + query * at.stride_y, at.stride_y, a.t - query, a.d, packed);
    __syncthreads();
    float p[kR][kR], ds[kR][kR];
    scores<kD>(p, k_tile, q_tile);
    scores<kD>(ds, v_tile, g_tile);
#pragma unroll
    for (int j = 0; j < kR; ++j) {
      int64_t row = query + x + kLanes * j;
      float lse = row < a.t ? a.lse[at.head_stat + row] : 0,
            delta = row < a.t ? a.delta[at.head_stat + row] : 0;
#pragma unroll
      for (int i = 0; i < kR; ++i) {
        p[i][j] = use[i] && row < a.t ? expf(p[i][j] * a.scale - lse) : 0;
        ds[i][j] = p[i][j] * (ds[i][j] - delta);
      }
    }
    weigh<kD>(dv, p, weights, g_tile);
    weigh<kD>(dk, ds, weights, q_tile);
  }
  T* to = a.gqkv + at.qkv + at.stride_y + at.first * at.stride_qkv;
  store_rows<kD>(dk, factor, to, at.stride_qkv, at.rows, a.d);
  store_rows<kD>(dv, one, to + at.stride_y, at.stride_qkv, at.rows, a.d);
}

/// delta = gy . y of each row of each head; 8 lanes a row. Rows are in the order of y, [b,t,h].
template <class T>
__global__ void __launch_bounds__(kThreads) attention_delta(Attention<T> a, bool packed) {
  constexpr int kTeam = 8;
  const int64_t rows = a.b * a.t * a.h, first = int64_t(blockIdx.x) * (kThreads / kTeam);
  const int lane = int(threadIdx.x) % kTeam;
  for (int64_t base = first; base < rows; base += int64_t(gridDim.x) * (kThreads / kTeam)) {
    int64_t row = base + threadIdx.x / kTeam;
    float sum = 0;
    if (row < rows) {
      const T *y = a.y + row * a.d, *g = a.gy + row * a.d;
      if (packed) {
        for (int64_t i = lane * kPack<T>; i < a.d; i += kTeam * kPack<T>) {
          float u[kPack<T>], v[kPack<T>];
          load_acc(y + i, u);
          load_acc(g + i, v);
#pragma unroll
          for (int j = 0; j < kPack<T>; ++j) sum += u[j] * v[j];
        }
      } else {
        for (int64_t i = lane; i < a.d; i += kTeam) sum += to_acc(y[i]) * to_acc(g[i]);
      }
    }
    sum = warp_sum<kTeam>(sum);
    int64_t head = row % a.h, token = row / a.h % a.t, image = row / a.h / a.t;
    if (lane == 0 && row < rows) a.delta[(image * a.h + head) * a.t + token] = sum;
  }
}

template <int kD, class T>
void launch(void (*kernel)(Attention<T>, int64_t, bool), const char* name, const Attention<T>& a, bool packed,
            int tiles_held, void* stream) {
  using S = Sizes<kD>;
  int64_t tiles = div_up<int64_t>(a.t, S::kSide);
  int64_t bytes = (tiles_held * S::kTile + S::kSide * S::kWeightStride) * int64_t(sizeof(float));
  allow_shared(kernel, name, bytes);
  kernel<<<unsigned(a.b * a.h * tiles), kThreads, size_t(bytes), as_stream(stream)>>>(a, tiles, packed);
  check_launch(name, stream);
}

/// f.operator()<kD>() with the least kD that holds d; bf16 comes here with long heads alone.
template <class T, class F>
void for_head_of(int64_t d, F f) {
  if constexpr (std::is_same_v<T, float>) {
    if (d <= 32) return f.template operator()<32>();
    if (d <= 64) return f.template operator()<64>();
    if (d <= 128) return f.template operator()<128>();
  }
  f.template operator()<256>();
}

}  // namespace

template <class T>
void attention_fwd(const Attention<T>& a, void* stream) {
  if (a.b * a.t * a.h * a.d == 0) return;
  if constexpr (std::is_same_v<T, bf16>)
    if (a.d <= kAttentionLargestMma) {
      if (!attention_fits_warpgroups(a)) return attention_fwd_mma(a, stream);
      return a.t <= kAttentionShort ? attention_fwd_short(a, stream) : attention_fwd_long(a, stream);
    }
  bool packed = a.d % kPack<T> == 0 && aligned16(a.qkv);
  for_head_of<T>(a.d, [&]<int kD>() {
    launch<kD>(attention_fwd_rows<kD, T>, "attention_fwd_rows", a, packed, 3, stream);
  });
}

template <class T>
void attention_bwd(const Attention<T>& a, void* stream) {
  if (a.b * a.t * a.h * a.d == 0) return;
  bool warpgroups = false;
  if constexpr (std::is_same_v<T, bf16>) {
    warpgroups = attention_fits_warpgroups(a);
    if (warpgroups && a.t <= kAttentionShort) return attention_bwd_short(a, stream);
  }
  int64_t rows = a.b * a.t * a.h;
  attention_delta<<<grid_of_rows(div_up<int64_t>(rows, kThreads / 8)), kThreads, 0, as_stream(stream)>>>(
      a, a.d % kPack<T> == 0 && aligned16(a.y, a.gy));
  check_launch("attention_delta", stream);
  if constexpr (std::is_same_v<T, bf16>)
    if (a.d <= kAttentionLargestMma)
      return warpgroups ? attention_bwd_long(a, stream) : attention_bwd_mma(a, stream);
  bool packed = a.d % kPack<T> == 0 && aligned16(a.qkv, a.gy);
  for_head_of<T>(a.d, [&]<int kD>() {
    launch<kD>(attention_bwd_kv<kD, T>, "attention_bwd_kv", a, packed, 4, stream);
    launch<kD>(attention_bwd_q<kD, T>, "attention_bwd_q", a, packed, 4, stream);
  });
}

#define OCCAM_INSTANTIATE(T)                               \
  template void attention_fwd(const Attention<T>&, void*); \
  template void attention_bwd(const Attention<T>&, void*)
OCCAM_INSTANTIATE(float);
OCCAM_INSTANTIATE(bf16);

}  // namespace occam::kernels
