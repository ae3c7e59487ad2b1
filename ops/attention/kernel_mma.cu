// Attention on tensor cores for bf16. Every kernel has the same shape: a block owns 64 rows of a head, 16 a
// warp, and streams the other side through shared memory in tiles of kColumns, two at a time (cp.async). A
// warp never needs another warp's rows, so scores stay in registers: the accumulators of one product are
// rounded and are the left operand of the next.
#include "core/cuda/launch.h"
#include "core/cuda/mma.cuh"
#include "core/cuda/reduce.cuh"
#include "ops/attention/kernel.h"

namespace occam::kernels {

using namespace cuda;

namespace {

constexpr int kThreads = 128, kRows = 64, kWarpRows = 16;
constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

/// Row stride of a tile. 16 bytes of padding put the 8 rows that ldmatrix reads together into different banks
/// (the stride is an odd multiple of 16 bytes), and keep rows aligned.
template <int kD>
constexpr int kStride = kD + 8;
/// Streamed rows of a tile. Backward has two more accumulators of kD columns a row: with long heads fewer
/// scores fit into the registers beside them.
template <int kD>
constexpr int kColumnsBackward = kD <= 64 ? 64 : 32;
constexpr int kColumnsForward = 64;

/// Where a block works.
struct Place {
  int64_t first;       // row of the head
  int64_t rows;        // of the head from there on, at least 1
  int64_t stat;        // offset of row `first` in lse and delta
  int64_t head_stat;   // offset of row 0 there
  int64_t qkv, y;      // offsets of row 0 of the head's q and y
  int64_t stride_qkv;  // from row to row
  int64_t stride_y;    // also from q to k and from k to v
  const uint8_t* mask;
};

__device__ __forceinline__ Place place_of_block(const Attention<bf16>& a, int64_t tiles) {
  int64_t head = blockIdx.x / tiles, first = blockIdx.x % tiles * kRows, image = head / a.h, y = a.h * a.d;
  int64_t column = head % a.h * a.d;
  return {first,
          a.t - first,
          head * a.t + first,
          head * a.t,
          image * a.t * 3 * y + column,
          image * a.t * y + column,
          3 * y,
          y,
          a.key_mask == nullptr ? nullptr : a.key_mask + image * a.t};
}

/// kCount rows of a head to shared memory; rows from `rows` on and columns from d on are 0. `packed`: rows
/// are multiples of 16 bytes and so are their addresses.
template <int kD, int kCount>
__device__ __forceinline__ void load_tile(bf16* tile, const bf16* from, int64_t stride, int64_t rows,
                                          int64_t d, bool packed) {
  if (packed) {
    constexpr int kChunks = kD / 8;
#pragma unroll
    for (int i = int(threadIdx.x); i < kCount * kChunks; i += kThreads) {
      int row = i / kChunks, column = i % kChunks * 8;
      bool valid = row < rows && column < d;
      copy_async16(tile + row * kStride<kD> + column, valid ? from + row * stride + column : from, valid);
    }
  } else {
    for (int i = int(threadIdx.x); i < kCount * kD; i += kThreads) {
      int row = i / kD, column = i % kD;
      tile[row * kStride<kD> + column] = row < rows && column < d ? from[row * stride + column] : bf16(0.0f);
    }
  }
}

/// The 16 rows of a warp as left operands.
template <int kD>
__device__ __forceinline__ void load_rows(uint32_t (&a)[kD / 16][4], const bf16* rows) {
  int lane = int(threadIdx.x) % kWarp;
#pragma unroll
  for (int k = 0; k < kD / 16; ++k) ldmatrix(a[k], rows + lane % 16 * kStride<kD> + k * 16 + lane / 16 * 8);
}

/// s = rows tile^T: products of the warp's 16 rows with each row of a tile.
template <int kD, int kColumns>
__device__ __forceinline__ void scores(float (&s)[kColumns / 8][4], const uint32_t (&rows)[kD / 16][4],
                                       const bf16* tile) {
  int lane = int(threadIdx.x) % kWarp;
  const bf16* at = tile + (lane % 8 + lane / 16 * 8) * kStride<kD> + lane / 8 % 2 * 8;
#pragma unroll
  for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) s[n][e] = 0;
#pragma unroll
  for (int k = 0; k < kD / 16; ++k) {
#pragma unroll
    for (int n = 0; n < kColumns / 16; ++n) {
      uint32_t b[4];
      ldmatrix(b, at + n * 16 * kStride<kD> + k * 16);
      mma_bf16(s[2 * n], rows[k], b[0], b[1]);
      mma_bf16(s[2 * n + 1], rows[k], b[2], b[3]);
    }
  }
}

/// o += p tile, p being the warp's 16 rows of weights of the tile's rows.
template <int kD, int kColumns>
__device__ __forceinline__ void weigh(float (&o)[kD / 8][4], const float (&p)[kColumns / 8][4],
                                      const bf16* tile) {
  int lane = int(threadIdx.x) % kWarp;
  const bf16* at = tile + lane % 16 * kStride<kD> + lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < kColumns / 16; ++k) {
    uint32_t a[4];
    fragment_a(a, p[2 * k], p[2 * k + 1]);
#pragma unroll
    for (int n = 0; n < kD / 16; ++n) {
      uint32_t b[4];
      ldmatrix_transposed(b, at + k * 16 * kStride<kD> + n * 16);
      mma_bf16(o[2 * n], a, b[0], b[1]);
      mma_bf16(o[2 * n + 1], a, b[2], b[3]);
    }
  }
}

/// Scores become exponents of 2; columns that may not be attended to -infinity. `key`: of column 0.
template <int kColumns>
__device__ __forceinline__ void scale_and_mask(float (&s)[kColumns / 8][4], float factor, const uint8_t* mask,
                                               int64_t key, int64_t t) {
#pragma unroll
  for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) s[n][e] *= factor;
  if (mask == nullptr && key + kColumns <= t) return;
  key += threadIdx.x % 4 * 2;
#pragma unroll
  for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      int64_t j = key + n * 8 + e;
      if (j < t && (mask == nullptr || mask[j] != 0)) continue;
      s[n][e] = s[n][e + 2] = -infinity_<float>();
    }
  }
}

/// The warp's accumulators times a factor for each of a lane's two rows, to `rows` rows at `to`. They pass
/// through the warp's rows of a tile, which become 16-byte stores.
template <int kD>
__device__ __forceinline__ void store_rows(const float (&o)[kD / 8][4], float upper, float lower, bf16* tile,
                                           bf16* to, int64_t stride, int64_t rows, int64_t d, bool packed) {
  int lane = int(threadIdx.x) % kWarp;
  __syncwarp();
#pragma unroll
  for (int n = 0; n < kD / 8; ++n) {
    bf16* at = tile + lane / 4 * kStride<kD> + n * 8 + lane % 4 * 2;
    *reinterpret_cast<uint32_t*>(at) = pack_bf16(o[n][0] * upper, o[n][1] * upper);
    *reinterpret_cast<uint32_t*>(at + 8 * kStride<kD>) = pack_bf16(o[n][2] * lower, o[n][3] * lower);
  }
  __syncwarp();
  if (packed) {
    constexpr int kChunks = kD / 8;
#pragma unroll
    for (int i = lane; i < kWarpRows * kChunks; i += kWarp) {
      int row = i / kChunks, column = i % kChunks * 8;
      if (row < rows && column < d)
        *reinterpret_cast<uint4*>(to + row * stride + column) =
            *reinterpret_cast<const uint4*>(tile + row * kStride<kD> + column);
    }
  } else {
    for (int i = lane; i < kWarpRows * kD; i += kWarp) {
      int row = i / kD, column = i % kD;
      if (row < rows && column < d) to[row * stride + column] = tile[row * kStride<kD> + column];
    }
  }
}

/// Sum or maximum over the four lanes that share a row.
__device__ __forceinline__ float row_max(float x) { return warp_reduce<4>(x, MaxOp{}); }
__device__ __forceinline__ float row_sum(float x) { return warp_reduce<4>(x, SumOp{}); }

/// Online softmax of one row half (e = 0: a lane's upper row, 2: its lower one): s becomes exp2(s - maximum),
/// sum and o move to the new maximum.
template <int kD, int kColumns>
__device__ __forceinline__ void softmax_step(float (&s)[kColumns / 8][4], int e, float& maximum, float& sum,
                                             float (&o)[kD / 8][4]) {
  float largest = maximum;
#pragma unroll
  for (int n = 0; n < kColumns / 8; ++n) largest = fmaxf(largest, fmaxf(s[n][e], s[n][e + 1]));
  largest = row_max(largest);
  float shift = largest == -infinity_<float>() ? 0 : largest;  // no key yet: all weights are 0
  float keep = exp2_fast(maximum - shift);
  maximum = largest;
  sum *= keep;
#pragma unroll
  for (int n = 0; n < kD / 8; ++n) o[n][e] *= keep, o[n][e + 1] *= keep;
#pragma unroll
  for (int n = 0; n < kColumns / 8; ++n) {
    s[n][e] = exp2_fast(s[n][e] - shift);
    s[n][e + 1] = exp2_fast(s[n][e + 1] - shift);
    sum += s[n][e] + s[n][e + 1];
  }
}

template <int kD>
__global__ void __launch_bounds__(kThreads)
    attention_fwd_rows(Attention<bf16> a, int64_t tiles, bool packed) {
  constexpr int kColumns = kColumnsForward, kTile = kColumns * kStride<kD>;
  extern __shared__ uint4 room[];
  bf16 *q_tile = reinterpret_cast<bf16*>(room), *kv_tiles = q_tile + kRows * kStride<kD>;
  const Place at = place_of_block(a, tiles);
  const bf16 *q = a.qkv + at.qkv, *k = q + at.stride_y, *v = k + at.stride_y;
  auto stream = [&](int64_t key) {
    bf16* tile = kv_tiles + key / kColumns % 2 * 2 * kTile;
    load_tile<kD, kColumns>(tile, k + key * at.stride_qkv, at.stride_qkv, a.t - key, a.d, packed);
    load_tile<kD, kColumns>(tile + kTile, v + key * at.stride_qkv, at.stride_qkv, a.t - key, a.d, packed);
  };
  load_tile<kD, kRows>(q_tile, q + at.first * at.stride_qkv, at.stride_qkv, at.rows, a.d, packed);
  copies_commit();
  stream(0);
  copies_commit();
  copies_wait<1>();
  __syncthreads();
  const int lane = int(threadIdx.x) % kWarp, warp_row = int(threadIdx.x) / kWarp * kWarpRows;
  bf16* own = q_tile + warp_row * kStride<kD>;
  uint32_t rows[kD / 16][4];
  load_rows<kD>(rows, own);

  float o[kD / 8][4] = {}, maximum[2] = {-infinity_<float>(), -infinity_<float>()}, sum[2] = {};
  for (int64_t key = 0; key < a.t; key += kColumns) {
    if (key + kColumns < a.t) stream(key + kColumns);
    copies_commit();
    copies_wait<1>();
    __syncthreads();
    const bf16* tile = kv_tiles + key / kColumns % 2 * 2 * kTile;
    float s[kColumns / 8][4];
    scores<kD, kColumns>(s, rows, tile);
    scale_and_mask<kColumns>(s, a.scale * kLog2e, at.mask, key, a.t);
    softmax_step<kD, kColumns>(s, 0, maximum[0], sum[0], o);
    softmax_step<kD, kColumns>(s, 2, maximum[1], sum[1], o);
    weigh<kD, kColumns>(o, s, tile + kTile);
    __syncthreads();  // the next but one tile will be copied over this one
  }
  float inverse[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float total = row_sum(sum[half]);
    inverse[half] = total == 0 ? 0 : 1 / total;
    int row = warp_row + lane / 4 + half * 8;
    if (lane % 4 == 0 && row < at.rows)
      a.lse[at.stat + row] = total == 0 ? infinity_<float>() : (maximum[half] + log2f(total)) * kLn2;
  }
  store_rows<kD>(o, inverse[0], inverse[1], own, a.y + at.y + (at.first + warp_row) * at.stride_y,
                 at.stride_y, at.rows - warp_row, a.d, packed);
}

/// dq: a block owns queries and streams keys and values.
template <int kD>
__global__ void __launch_bounds__(kThreads) attention_bwd_q(Attention<bf16> a, int64_t tiles, bool packed) {
  constexpr int kColumns = kColumnsBackward<kD>, kTile = kColumns * kStride<kD>;
  extern __shared__ uint4 room[];
  bf16 *q_tile = reinterpret_cast<bf16*>(room), *g_tile = q_tile + kRows * kStride<kD>,
       *kv_tiles = g_tile + kRows * kStride<kD>;
  const Place at = place_of_block(a, tiles);
  const bf16 *q = a.qkv + at.qkv, *k = q + at.stride_y, *v = k + at.stride_y, *g = a.gy + at.y;
  auto stream = [&](int64_t key) {
    bf16* tile = kv_tiles + key / kColumns % 2 * 2 * kTile;
    load_tile<kD, kColumns>(tile, k + key * at.stride_qkv, at.stride_qkv, a.t - key, a.d, packed);
    load_tile<kD, kColumns>(tile + kTile, v + key * at.stride_qkv, at.stride_qkv, a.t - key, a.d, packed);
  };
  load_tile<kD, kRows>(q_tile, q + at.first * at.stride_qkv, at.stride_qkv, at.rows, a.d, packed);
  load_tile<kD, kRows>(g_tile, g + at.first * at.stride_y, at.stride_y, at.rows, a.d, packed);
  copies_commit();
  stream(0);
  copies_commit();
  copies_wait<1>();
  __syncthreads();
  const int lane = int(threadIdx.x) % kWarp, warp_row = int(threadIdx.x) / kWarp * kWarpRows;
  bf16* own = q_tile + warp_row * kStride<kD>;
  uint32_t q_rows[kD / 16][4], g_rows[kD / 16][4];
  load_rows<kD>(q_rows, own);
  load_rows<kD>(g_rows, g_tile + warp_row * kStride<kD>);
  float lse[2], delta[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int row = warp_row + lane / 4 + half * 8;
    lse[half] = row < at.rows ? a.lse[at.stat + row] * kLog2e : 0;
    delta[half] = row < at.rows ? a.delta[at.stat + row] : 0;
  }

  float dq[kD / 8][4] = {};
  for (int64_t key = 0; key < a.t; key += kColumns) {
    if (key + kColumns < a.t) stream(key + kColumns);
    copies_commit();
    copies_wait<1>();
    __syncthreads();
    const bf16* tile = kv_tiles + key / kColumns % 2 * 2 * kTile;
    float s[kColumns / 8][4], ds[kColumns / 8][4];
    scores<kD, kColumns>(s, q_rows, tile);
    scale_and_mask<kColumns>(s, a.scale * kLog2e, at.mask, key, a.t);
    scores<kD, kColumns>(ds, g_rows, tile + kTile);
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) ds[n][e] = exp2_fast(s[n][e] - lse[e / 2]) * (ds[n][e] - delta[e / 2]);
    weigh<kD, kColumns>(dq, ds, tile);
    __syncthreads();
  }
  store_rows<kD>(dq, a.scale, a.scale, own, a.gqkv + at.qkv + (at.first + warp_row) * at.stride_qkv,
                 at.stride_qkv, at.rows - warp_row, a.d, packed);
}

/// dk and dv: a block owns keys and streams queries and gradients. Scores are transposed: rows are keys.
/// Streamed rows from t on are 0, also in lse and delta: their weights are 1, but meet gradients and queries
/// of 0.
template <int kD>
__global__ void __launch_bounds__(kThreads) attention_bwd_kv(Attention<bf16> a, int64_t tiles, bool packed) {
  constexpr int kColumns = kColumnsBackward<kD>, kTile = kColumns * kStride<kD>;
  extern __shared__ uint4 room[];
  bf16 *k_tile = reinterpret_cast<bf16*>(room), *v_tile = k_tile + kRows * kStride<kD>,
       *qg_tiles = v_tile + kRows * kStride<kD>;
  float* stats = reinterpret_cast<float*>(qg_tiles + 4 * kTile);  // [2 tiles][lse, delta][kColumns]
  const Place at = place_of_block(a, tiles);
  const bf16 *q = a.qkv + at.qkv, *k = q + at.stride_y, *v = k + at.stride_y, *g = a.gy + at.y;
  auto stream = [&](int64_t query) {
    bf16* tile = qg_tiles + query / kColumns % 2 * 2 * kTile;
    load_tile<kD, kColumns>(tile, q + query * at.stride_qkv, at.stride_qkv, a.t - query, a.d, packed);
    load_tile<kD, kColumns>(tile + kTile, g + query * at.stride_y, at.stride_y, a.t - query, a.d, packed);
    int i = int(threadIdx.x) % kColumns, which = int(threadIdx.x) / kColumns;
    const float* from = (which == 0 ? a.lse : a.delta) + at.head_stat + query;
    if (which < 2)
      copy_async4(stats + (query / kColumns % 2 * 2 + which) * kColumns + i,
                  query + i < a.t ? from + i : from, query + i < a.t);
  };
  load_tile<kD, kRows>(k_tile, k + at.first * at.stride_qkv, at.stride_qkv, at.rows, a.d, packed);
  load_tile<kD, kRows>(v_tile, v + at.first * at.stride_qkv, at.stride_qkv, at.rows, a.d, packed);
  copies_commit();
  stream(0);
  copies_commit();
  copies_wait<1>();
  __syncthreads();
  const int lane = int(threadIdx.x) % kWarp, warp_row = int(threadIdx.x) / kWarp * kWarpRows;
  bf16 *own_k = k_tile + warp_row * kStride<kD>, *own_v = v_tile + warp_row * kStride<kD>;
  bool attended[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int row = warp_row + lane / 4 + half * 8;
    attended[half] = row < at.rows && (at.mask == nullptr || at.mask[at.first + row] != 0);
  }

  const float factor = a.scale * kLog2e;
  float dk[kD / 8][4] = {}, dv[kD / 8][4] = {};
  for (int64_t query = 0; query < a.t; query += kColumns) {
    if (query + kColumns < a.t) stream(query + kColumns);
    copies_commit();
    copies_wait<1>();
    __syncthreads();
    const bf16* tile = qg_tiles + query / kColumns % 2 * 2 * kTile;
    const float* lse = stats + query / kColumns % 2 * 2 * kColumns + lane % 4 * 2;
    float p[kColumns / 8][4], ds[kColumns / 8][4];
    uint32_t rows[kD / 16][4];
    load_rows<kD>(rows, own_k);
    scores<kD, kColumns>(p, rows, tile);
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        p[n][e] = attended[e / 2] ? exp2_fast(p[n][e] * factor - lse[n * 8 + e % 2] * kLog2e) : 0;
    weigh<kD, kColumns>(dv, p, tile + kTile);
    load_rows<kD>(rows, own_v);
    scores<kD, kColumns>(ds, rows, tile + kTile);
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) ds[n][e] = p[n][e] * (ds[n][e] - lse[kColumns + n * 8 + e % 2]);
    weigh<kD, kColumns>(dk, ds, tile);
    __syncthreads();
  }
  bf16* to = a.gqkv + at.qkv + at.stride_y + (at.first + warp_row) * at.stride_qkv;
  store_rows<kD>(dk, a.scale, a.scale, own_k, to, at.stride_qkv, at.rows - warp_row, a.d, packed);
  store_rows<kD>(dv, 1, 1, own_v, to + at.stride_y, at.stride_qkv, at.rows - warp_row, a.d, packed);
}

template <int kD>
void launch(void (*kernel)(Attention<bf16>, int64_t, bool), const char* name, const Attention<bf16>& a,
            bool packed, int64_t tile_rows, int64_t floats, void* stream) {
  int64_t tiles = div_up<int64_t>(a.t, kRows), bytes = tile_rows * kStride<kD> * 2 + floats * 4;
  allow_shared(kernel, name, bytes);
  kernel<<<unsigned(a.b * a.h * tiles), kThreads, size_t(bytes), as_stream(stream)>>>(a, tiles, packed);
  check_launch(name, stream);
}

/// f.operator()<kD>() with the least kD that holds d.
template <class F>
void for_head_of(int64_t d, F f) {
  if (d <= 32) return f.template operator()<32>();
  if (d <= 64) return f.template operator()<64>();
  if (d <= 96) return f.template operator()<96>();
  f.template operator()<128>();
}

}  // namespace

void attention_fwd_mma(const Attention<bf16>& a, void* stream) {
  bool packed = a.d % 8 == 0 && aligned16(a.qkv, a.y);
  for_head_of(a.d, [&]<int kD>() {
    launch<kD>(attention_fwd_rows<kD>, "attention_fwd_rows", a, packed, kRows + 4 * kColumnsForward, 0,
               stream);
  });
}

void attention_bwd_mma(const Attention<bf16>& a, void* stream) {
  bool packed = a.d % 8 == 0 && aligned16(a.qkv, a.gy, a.gqkv);
  for_head_of(a.d, [&]<int kD>() {
    constexpr int kColumns = kColumnsBackward<kD>;
    launch<kD>(attention_bwd_kv<kD>, "attention_bwd_kv", a, packed, 2 * kRows + 4 * kColumns, 4 * kColumns,
               stream);
    launch<kD>(attention_bwd_q<kD>, "attention_bwd_q", a, packed, 2 * kRows + 4 * kColumns, 0, stream);
  });
}

}  // namespace occam::kernels
