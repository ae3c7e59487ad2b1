#pragma once
// Products of 16 x 16 tiles of bf16 with f32 sums: operands in shared memory, whose 16-byte pieces are spread
// over the banks, in global memory and in registers.
#include "core/cuda/launch.h"
#include "core/cuda/math.cuh"
#include "core/cuda/mma.cuh"

namespace occam::kernels {

using namespace cuda;

constexpr int kScanWidth = 64;  // of values

/// What a lane (g = lane / 4, q = lane % 4) has of a 16 x 16 tile: rows g and g + 8, columns 2q, 2q + 1, 2q +
/// 8, 2q + 9: [left half, right half][row g: 2 columns, row g + 8: 2 columns], as products leave it.
struct Tile {
  float v[2][4];
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

/// copy_async16 to an address in shared memory.
__device__ __forceinline__ void copy_async16_at(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0)
               : "memory");
}

/// A 16 x kWide operand of a product whose rows are the rows of memory, kWide / 16 fragments.
template <int kWide>
__device__ __forceinline__ void load_fragments(uint32_t (&a)[kWide / 16][4], const bf16* tile, int row) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int k = 0; k < kWide / 16; ++k)
    ldmatrix_at(a[k], piece_address<kWide>(tile, row, lane % 16, lane / 16) ^ k * kStep);
}

/// Columns 16 k .. of the same from global memory, `from` [token][width]: rows `row` .. of `count`; those
/// behind are as the last, for sums that nobody keeps.
__device__ __forceinline__ void load_fragment(uint32_t (&a)[4], const bf16* from, int64_t stride, int count,
                                              int row, int k) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int low = 0; low < 2; ++low) {
    const bf16* at = from + min(row + lane / 4 + low * 8, count - 1) * stride + k * 16 + lane % 4 * 2;
    a[low] = *reinterpret_cast<const uint32_t*>(at);
    a[low + 2] = *reinterpret_cast<const uint32_t*>(at + 8);
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

/// sum += the same rows, by the warp that has stored them.
__device__ __forceinline__ void add_rows(float (&sum)[8][4], const bf16* at, int64_t stride, int rows) {
  const int lane = int(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
#pragma unroll
  for (int low = 0; low < 2; ++low)
    if (g + low * 8 < rows)
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float2 of =
            unpack_bf16(*reinterpret_cast<const uint32_t*>(at + (g + low * 8) * stride + j * 8 + 2 * q));
        sum[j][2 * low] += of.x, sum[j][2 * low + 1] += of.y;
      }
}

/// Rows of a warp's tile times decays, rounded, by the values: an operand of 16 x 16 weights.
__device__ __forceinline__ void weigh(uint32_t (&weights)[4], const Tile& score, const Tile& factor) {
  Tile p;
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int k = 0; k < 4; ++k) p.v[half][k] = score.v[half][k] * factor.v[half][k];
  fragment_a(weights, p.v[0], p.v[1]);
}
/// The sums of a den: the product with a column of numbers (u, decayed, or 1), in column 0 of `den`.
__device__ __forceinline__ void add_den(float (&den)[4], const uint32_t (&weights)[4], float2 low,
                                        float2 high) {
  const bool mine = threadIdx.x % 32 < 4;
  mma_bf16(den, weights, mine ? pack_bf16(low.x, low.y) : 0, mine ? pack_bf16(high.x, high.y) : 0);
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
