#pragma once
// The matrix form of a window of up to 208 tokens on the tensor cores, in tiles of 16 x 16, bf16 with f32
// sums. Tokens stay in their natural order: direction 0 has the tiles on and below the diagonal, direction 1
// those on and above it.
//
// A weight of row i and column j in another tile is s_ij row_i between col_j: the decay of j within its tile
// (and u_j), of the tiles between, and of i within its own: products of factors <= 1, from sums over at most
// 16 tokens. On the diagonal it is exp of a difference of such sums.
#include "core/cuda/launch.h"
#include "core/cuda/math.cuh"
#include "core/cuda/mma.cuh"
#include "ops/matrix_scan/kernel.h"

namespace occam::kernels {

using namespace cuda;

constexpr int kScanTiles = 13, kScanWindow = kScanTiles * 16, kScanWidth = 64;
/// A window that is one of several leaves room for states.
constexpr int kScanLongWindow = 176;

/// What a window does not tell itself: where it lies.
struct ScanWindow {
  int64_t image, first, row;  // first token of its sequence, and its row in tensors of all tokens
  int count, tiles;           // tokens, and tiles that hold them; a shorter sequence may have none here
};
__device__ __forceinline__ ScanWindow window_of(const SequenceRows& s, int64_t step, int64_t image,
                                                int64_t window) {
  const int64_t first = window * step, left = s.length(image) - first;
  const int count = int(left < 0 ? 0 : left < step ? left : step);
  return {image, first, s.begin(image) + first, count, (count + 15) / 16};
}
/// Row 0 of a window of [token][width] of a direction and head or group.
__device__ __forceinline__ const bf16* rows_of(const ScanView<bf16>& x, const SequenceRows& s,
                                               const ScanWindow& w, int64_t direction, int64_t which) {
  return x.of(s, w.image) + w.first * x.t + direction * x.r + which * x.h;
}

/// Decays of one head and direction of a window, in shared memory.
struct TileGates {
  float log_row[kScanWindow];  // log2 of what i keeps of what came into its tile
  float column[kScanWindow];   // u_j times what is left of it at the end of its tile; 0 behind the last token
  float scale[kScanWindow];    // u_j
  float total[16];             // of a tile
};

/// Element of the 16-byte piece `piece` of row `row` of a tile of `kWide` columns, spread over the banks.
template <int kWide>
__device__ __forceinline__ int swizzled_at(int row, int piece) {
  return row * kWide + (piece ^ (row & 7)) * 8;
}

/// Address of the same for row `row` + `in_tile`, `row` a multiple of 8; that of piece + 2 k is `step` k
/// further in a sum without carry, at ^ k * kStep, because tiles lie at multiples of their rows' bytes (of
/// 256).
constexpr uint32_t kStep = 32;
template <int kWide>
__device__ __forceinline__ uint32_t piece_address(const bf16* tile, int row, int in_tile, int piece) {
  return shared_address(tile + row * kWide) + (in_tile * kWide + (piece ^ (in_tile & 7)) * 8) * 2;
}
__device__ __forceinline__ void ldmatrix_at(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}
__device__ __forceinline__ void ldmatrix_transposed_at(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

/// Starts copies of a window's rows [token][kWide], `stride` apart, into a tile; rows behind the last are
/// zero.
template <int kWide>
__device__ __forceinline__ void copy_rows(bf16* to, const bf16* from, int64_t stride, const ScanWindow& w) {
  for (int i = int(threadIdx.x); i < w.tiles * 16 * (kWide / 8); i += int(blockDim.x)) {
    const int row = i / (kWide / 8), piece = i % (kWide / 8);
    const bool there = row < w.count;
    copy_async16(to + swizzled_at<kWide>(row, piece), from + (there ? row * stride + piece * 8 : 0), there);
  }
}
template <int kWide>
__device__ __forceinline__ void copy_rows(bf16* to, const ScanView<bf16>& x, const SequenceRows& s,
                                          const ScanWindow& w, int64_t direction, int64_t which) {
  copy_rows<kWide>(to, rows_of(x, s, w, direction, which), x.t, w);
}

/// The same for a state [64][kN] of a line's window.
template <int kN>
__device__ __forceinline__ void copy_state(bf16* to, const bf16* states, int64_t line) {
  const bf16* state = states + line * kScanWidth * kN;
  for (int i = int(threadIdx.x); i < kScanWidth * (kN / 8); i += int(blockDim.x))
    copy_async16(to + swizzled_at<kN>(i / (kN / 8), i % (kN / 8)), state + i * 8, true);
}

/// A lane's log2 decay and scale of its token; a half warp has a tile. 0 behind the last token.
struct TokenGate {
  float log_decay = 0, scale = 0;
};
__device__ __forceinline__ TokenGate make_gate(float log_decay, float scale) {
  // Below 2^-150 a decay is 0 in f32: sums of such terms need not be larger.
  return {fmaxf(log_decay * 1.44269504f, -150.0f), scale};
}
__device__ __forceinline__ TokenGate load_gate(const float* log_decay, const float* scale, int64_t h,
                                               const ScanWindow& w, int64_t direction, int64_t head,
                                               int token) {
  if (token >= w.count) return {};
  const int64_t at = ((w.row + token) * 2 + direction) * h + head;
  return make_gate(log_decay[at], scale != nullptr ? scale[at] : 1.0f);
}
/// Writes the gates of token `at`; all lanes of a warp, whose halves have a tile each.
__device__ __forceinline__ void store_gate(TileGates& gates, const TokenGate& gate, int direction, int at) {
  const int lane = at % 16;
  float up = gate.log_decay,
        down = gate.log_decay;  // sums from the tile's start to here, from here to its end
#pragma unroll
  for (int d = 1; d < 16; d *= 2) {
    const float a = __shfl_up_sync(0xffffffffu, up, d, 16), b = __shfl_down_sync(0xffffffffu, down, d, 16);
    if (lane >= d) up += a;
    if (lane + d < 16) down += b;
  }
  float after =
      direction == 0 ? __shfl_down_sync(0xffffffffu, down, 1, 16) : __shfl_up_sync(0xffffffffu, up, 1, 16);
  if (lane == (direction == 0 ? 15 : 0)) after = 0;
  if (at >= kScanWindow) return;
  gates.log_row[at] = direction == 0 ? up : down;
  gates.column[at] = exp2_fast(after) * gate.scale;
  gates.scale[at] = gate.scale;
  if (lane == 15) gates.total[at / 16] = exp2_fast(up);
}

/// What the gates of an item on its way are made of.
struct NextGates {
  float log_decay[kScanWindow], scale[kScanWindow];
};
/// Starts copies of a thread's token.
__device__ __forceinline__ void copy_gate(NextGates& to, const float* log_decay, const float* scale,
                                          int64_t h, const ScanWindow& w, int64_t direction, int64_t head,
                                          int token) {
  if (token >= w.count) return;
  const int64_t at = ((w.row + token) * 2 + direction) * h + head;
  copy_async4(to.log_decay + token, log_decay + at, true);
  if (scale != nullptr) copy_async4(to.scale + token, scale + at, true);
}
/// The same thread's, when they have come.
__device__ __forceinline__ TokenGate next_gate(const NextGates& from, bool scaled, const ScanWindow& w,
                                               int token) {
  if (token >= w.count) return {};
  return make_gate(from.log_decay[token], scaled ? from.scale[token] : 1.0f);
}

/// What a lane (g = lane / 4, q = lane % 4) has of a 16 x 16 tile: rows g and g + 8, columns 2q, 2q + 1, 2q +
/// 8, 2q + 9: [left half, right half][row g: 2 columns, row g + 8: 2 columns], as products leave it.
struct Tile {
  float v[2][4];
};

/// Factors of a tile away from the diagonal: row factors times the gates' columns.
__device__ __forceinline__ Tile tile_factors(const TileGates& gates, int column_tile, float row0,
                                             float row1) {
  const int q = int(threadIdx.x) % 4;
  Tile f;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float2 c = *reinterpret_cast<const float2*>(gates.column + column_tile * 16 + half * 8 + 2 * q);
    f.v[half][0] = row0 * c.x, f.v[half][1] = row0 * c.y, f.v[half][2] = row1 * c.x,
    f.v[half][3] = row1 * c.y;
  }
  return f;
}
/// Decays of a tile on the diagonal; with `exclusive` a token has no weight for itself. Transposed: rows are
/// j and columns i.
template <bool kTransposed>
__device__ __forceinline__ Tile diagonal_decays(const TileGates& gates, int tile, int direction,
                                                bool exclusive) {
  const int lane = int(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
  const float *log_row = gates.log_row + tile * 16, row[2] = {log_row[g], log_row[g + 8]};
  Tile f;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float2 column = *reinterpret_cast<const float2*>(log_row + half * 8 + 2 * q);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int behind = g + k / 2 * 8 - (half * 8 + 2 * q + k % 2);
      const int before = (direction == 0) == kTransposed ? -behind : behind;  // of j before i in the scan
      const float change = row[k / 2] - (k % 2 == 0 ? column.x : column.y);
      f.v[half][k] =
          before > 0 || (before == 0 && !exclusive) ? exp2_fast(kTransposed ? -change : change) : 0;
    }
  }
  return f;
}

/// A 16 x kWide operand of a product whose rows are the rows of memory, kWide / 16 fragments.
template <int kWide>
__device__ __forceinline__ void load_fragments(uint32_t (&a)[kWide / 16][4], const bf16* tile, int row) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int k = 0; k < kWide / 16; ++k)
    ldmatrix_at(a[k], piece_address<kWide>(tile, row, lane % 16, lane / 16) ^ k * kStep);
}

/// Columns 16 k .. of the same from global memory, `from` [token][width]: rows `row` .. of `count`, then
/// zeros.
__device__ __forceinline__ void load_fragment(uint32_t (&a)[4], const bf16* from, int64_t stride, int count,
                                              int row, int k) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int token = row + lane / 4 + i % 2 * 8;
    a[i] = token < count
               ? *reinterpret_cast<const uint32_t*>(from + token * stride + k * 16 + i / 2 * 8 + lane % 4 * 2)
               : 0;
  }
}
template <int kWide>
__device__ __forceinline__ void load_fragments(uint32_t (&a)[kWide / 16][4], const bf16* from, int64_t stride,
                                               int count, int row) {
#pragma unroll
  for (int k = 0; k < kWide / 16; ++k) load_fragment(a[k], from, stride, count, row, k);
}

/// s = a b^T for the 16 rows of b from `row` on.
template <int kWide>
__device__ __forceinline__ void product_rows(Tile& s, const uint32_t (&a)[kWide / 16][4], const bf16* b,
                                             int row) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int k = 0; k < 4; ++k) s.v[half][k] = 0;
#pragma unroll
  for (int k = 0; k < kWide / 16; ++k) {
    uint32_t r[4];
    ldmatrix_at(r, piece_address<kWide>(b, row, lane % 8 + lane / 16 * 8, lane / 8 % 2) ^ k * kStep);
    mma_bf16(s.v[0], a[k], r[0], r[1]);
    mma_bf16(s.v[1], a[k], r[2], r[3]);
  }
}

/// sum += a b for the 16 rows of b from `row` on, 64 columns from `column` on.
template <int kWide>
__device__ __forceinline__ void product_columns(float (&sum)[8][4], const uint32_t (&a)[4], const bf16* b,
                                                int row, int column = 0) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    uint32_t r[4];
    ldmatrix_transposed_at(r, piece_address<kWide>(b, row, lane % 16, lane / 16) ^ (k + column / 16) * kStep);
    mma_bf16(sum[2 * k], a, r[0], r[1]);
    mma_bf16(sum[2 * k + 1], a, r[2], r[3]);
  }
}

/// The operand of the product above, kept, for all 64 columns; and the product with it.
__device__ __forceinline__ void load_columns(uint32_t (&b)[4][4], const bf16* tile, int row) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int k = 0; k < 4; ++k)
    ldmatrix_transposed_at(b[k], piece_address<kScanWidth>(tile, row, lane % 16, lane / 16) ^ k * kStep);
}
__device__ __forceinline__ void product_fragments(float (&sum)[8][4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[4][4]) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    mma_bf16(sum[2 * k], a, b[k][0], b[k][1]);
    mma_bf16(sum[2 * k + 1], a, b[k][2], b[k][3]);
  }
}

/// sum += a b for rows 16 k .. of b [kN][64], which lies transposed, [64][kN].
template <int kN>
__device__ __forceinline__ void product_transposed(float (&sum)[8][4], const uint32_t (&a)[4], const bf16* b,
                                                   int k) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    uint32_t r[4];
    ldmatrix_at(r, piece_address<kN>(b, j * 16, lane % 8 + lane / 16 * 8, lane / 8 % 2) ^ k * kStep);
    mma_bf16(sum[2 * j], a, r[0], r[1]);
    mma_bf16(sum[2 * j + 1], a, r[2], r[3]);
  }
}

__device__ __forceinline__ float2 unpack_bf16(uint32_t two) {
  return {__uint_as_float(two << 16), __uint_as_float(two & 0xffff0000u)};
}

/// A tile that was kept as an operand.
__device__ __forceinline__ Tile unpack_tile(const uint4& packed) {
  const uint32_t two[4] = {packed.x, packed.y, packed.z, packed.w};
  Tile t;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const float2 x = unpack_bf16(two[k]);
    t.v[k / 2][k % 2 * 2] = x.x, t.v[k / 2][k % 2 * 2 + 1] = x.y;
  }
  return t;
}
/// The 16 rows from `row` on of values in shared memory times factors of rows, by a warp.
__device__ __forceinline__ void scale_tile(bf16* values, const float* factors, int row) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int at = row + i * 4 + lane / 8;
    uint4* piece = reinterpret_cast<uint4*>(values + swizzled_at<kScanWidth>(at, lane % 8));
    const float factor = factors[at];
    const uint4 packed = *piece;
    uint32_t two[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float2 x = unpack_bf16(two[k]);
      two[k] = pack_bf16(x.x * factor, x.y * factor);
    }
    *piece = make_uint4(two[0], two[1], two[2], two[3]);
  }
}

/// Rows of an operand times factors of rows g and g + 8.
__device__ __forceinline__ void scale_rows(uint32_t (&a)[4], const float (&factor)[2]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 x = unpack_bf16(a[i]);
    a[i] = pack_bf16(x.x * factor[i % 2], x.y * factor[i % 2]);
  }
}
/// sum[low] += row g + 8 low of an operand . x.
__device__ __forceinline__ void dot_rows(float (&sum)[2], const uint32_t (&a)[4], const float* x) {
  const int q = int(threadIdx.x) % 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 of = unpack_bf16(a[i]);
    sum[i % 2] += of.x * x[i / 2 * 8 + 2 * q] + of.y * x[i / 2 * 8 + 2 * q + 1];
  }
}
/// The same with 16 x 16 of sums, as products leave them, in x's place.
__device__ __forceinline__ void dot_rows(float (&sum)[2], const uint32_t (&a)[4], const float (&left)[4],
                                         const float (&right)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 of = unpack_bf16(a[i]);
    const float(&x)[4] = i < 2 ? left : right;
    sum[i % 2] += of.x * x[i % 2 * 2] + of.y * x[i % 2 * 2 + 1];
  }
}
/// The sum over the lanes of a quad.
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

/// Rows g and g + 8 of a warp's 16 x 64 sums to memory, rounded; `rows` of the 16 exist. Neighbouring lanes
/// exchange halves, so that a quad writes 32 bytes side by side.
__device__ __forceinline__ void store_rows(bf16* to, int64_t stride, int rows, const float (&sum)[8][4]) {
  const int lane = int(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
  const bool odd = q % 2 == 1;
  bf16* at = to + g * stride + odd * 8 + q / 2 * 4;
#pragma unroll
  for (int low = 0; low < 2; ++low, at += 8 * stride)
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      const uint32_t left = pack_bf16(sum[j][2 * low], sum[j][2 * low + 1]),
                     right = pack_bf16(sum[j + 1][2 * low], sum[j + 1][2 * low + 1]);
      const uint32_t given = __shfl_xor_sync(0xffffffffu, odd ? left : right, 1);
      if (g + low * 8 < rows)
        *reinterpret_cast<uint2*>(at + j * 8) = odd ? make_uint2(given, right) : make_uint2(left, given);
    }
}

/// The operand a [16][16] transposed, where it lies in registers.
__device__ __forceinline__ void transpose_operand(uint32_t (&a)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(a[i]) : "r"(a[i]));
  const uint32_t right = a[1];
  a[1] = a[2], a[2] = right;
}

}  // namespace occam::kernels
