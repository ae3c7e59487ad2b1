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

/// What a window does not tell itself: where it lies.
struct ScanWindow {
  int64_t image, first;  // first token
  int count, tiles;      // tokens, and tiles that hold them
};
__device__ __forceinline__ ScanWindow window_of(int64_t t, int64_t step, int64_t image, int64_t window) {
  const int64_t first = window * step;
  const int count = int(t - first < step ? t - first : step);
  return {image, first, count, (count + 15) / 16};
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
__device__ __forceinline__ void copy_rows(bf16* to, const ScanView<bf16>& x, const ScanWindow& w,
                                          int64_t direction, int64_t which) {
  copy_rows<kWide>(to, x.data + w.image * x.b + w.first * x.t + direction * x.r + which * x.h, x.t, w);
}

/// A lane's log2 decay and scale of its token; a half warp has a tile. 0 behind the last token.
struct TokenGate {
  float log_decay = 0, scale = 0;
};
__device__ __forceinline__ TokenGate load_gate(const float* log_decay, const float* scale, int64_t h,
                                               const ScanWindow& w, int64_t t, int64_t direction,
                                               int64_t head, int token) {
  TokenGate gate;
  if (token >= w.count) return gate;
  const int64_t at = ((w.image * t + w.first + token) * 2 + direction) * h + head;
  // Below 2^-150 a decay is 0 in f32: sums of such terms need not be larger.
  gate.log_decay = fmaxf(log_decay[at] * 1.44269504f, -150.0f);
  gate.scale = scale != nullptr ? scale[at] : 1.0f;
  return gate;
}
/// Writes the gates of token `at`; all lanes of a warp, with neighbouring tokens.
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
/// Factors of a tile on the diagonal; with `exclusive` a token has no weight for itself.
__device__ __forceinline__ Tile diagonal_factors(const TileGates& gates, int tile, int direction,
                                                 bool exclusive) {
  const int lane = int(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
  const float* log_row = gates.log_row + tile * 16;
  Tile f;
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int i = g + (k / 2) * 8, j = half * 8 + 2 * q + k % 2, before = direction == 0 ? i - j : j - i;
      const bool there = before > 0 || (before == 0 && !exclusive);
      f.v[half][k] = there ? exp2_fast(log_row[i] - log_row[j]) * gates.scale[tile * 16 + j] : 0.0f;
    }
  return f;
}

/// A 16 x kWide operand of a product whose rows are the rows of memory, kWide / 16 fragments.
template <int kWide>
__device__ __forceinline__ void load_fragments(uint32_t (&a)[kWide / 16][4], const bf16* tile, int row) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int k = 0; k < kWide / 16; ++k)
    ldmatrix(a[k], tile + swizzled_at<kWide>(row + lane % 16, 2 * k + lane / 16));
}

/// The same from global memory, [token][kWide] of one head: rows `row` .. of a window, zeros behind the last.
template <int kWide>
__device__ __forceinline__ void load_fragments(uint32_t (&a)[kWide / 16][4], const ScanView<bf16>& x,
                                               const ScanWindow& w, int64_t direction, int64_t which,
                                               int row) {
  const int lane = int(threadIdx.x) % 32;
  const bf16* from = x.data + w.image * x.b + w.first * x.t + direction * x.r + which * x.h + lane % 4 * 2;
#pragma unroll
  for (int k = 0; k < kWide / 16; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = row + lane / 4 + i % 2 * 8;
      a[k][i] =
          token < w.count ? *reinterpret_cast<const uint32_t*>(from + token * x.t + k * 16 + i / 2 * 8) : 0;
    }
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
    ldmatrix(r, b + swizzled_at<kWide>(row + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
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
    ldmatrix_transposed(r, b + swizzled_at<kWide>(row + lane % 16, column / 8 + 2 * k + lane / 16));
    mma_bf16(sum[2 * k], a, r[0], r[1]);
    mma_bf16(sum[2 * k + 1], a, r[2], r[3]);
  }
}

/// sum += a b for rows 16 k .. of b [16 ..][64], which lies transposed in global memory, [64][kN].
template <int kN>
__device__ __forceinline__ void product_transposed(float (&sum)[8][4], const uint32_t (&a)[4], const bf16* b,
                                                   int k) {
  const int lane = int(threadIdx.x) % 32;
  const bf16* from = b + lane / 4 * kN + k * 16 + lane % 4 * 2;
#pragma unroll
  for (int j = 0; j < 8; ++j)
    mma_bf16(sum[j], a, *reinterpret_cast<const uint32_t*>(from + j * 8 * kN),
             *reinterpret_cast<const uint32_t*>(from + j * 8 * kN + 8));
}

__device__ __forceinline__ float2 unpack_bf16(uint32_t two) {
  return {__uint_as_float(two << 16), __uint_as_float(two & 0xffff0000u)};
}

/// Lanes of a quad have columns 8 j + 2 q, + 1 of a row for j = 0 .. 3, and get columns 8 q .. 8 q + 7.
__device__ __forceinline__ void gather_row(uint32_t (&r)[4]) {
  const int q = int(threadIdx.x) % 4;
#pragma unroll
  for (int step = 1; step < 4; step *= 2) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (j & step) continue;
      // The lane with bit `step` clear gives away r[j + step] and keeps r[j].
      const bool high = q & step;
      const uint32_t given = __shfl_xor_sync(0xffffffffu, high ? r[j] : r[j + step], step);
      r[j] = high ? given : r[j];
      r[j + step] = high ? r[j + step] : given;
    }
  }
}
/// Rows g and g + 8 of a warp's 16 x 64 sums to memory, rounded; rows i0 .. of which `rows` exist.
__device__ __forceinline__ void store_rows(bf16* to, int64_t stride, int rows, const float (&sum)[8][4]) {
  const int lane = int(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
#pragma unroll
  for (int part = 0; part < 2; ++part)
#pragma unroll
    for (int low = 0; low < 2; ++low) {
      uint32_t r[4];
#pragma unroll
      for (int j = 0; j < 4; ++j)
        r[j] = pack_bf16(sum[part * 4 + j][2 * low], sum[part * 4 + j][2 * low + 1]);
      gather_row(r);
      const int row = g + low * 8;
      if (row < rows)
        *reinterpret_cast<uint4*>(to + row * stride + part * 32 + q * 8) = make_uint4(r[0], r[1], r[2], r[3]);
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
