#pragma once
// Rows of bf16 maps for mma.sync: how they are shared among blocks and warps, copies to shared memory,
// scores. A lane's scores are those of mma.cuh: rows g and g+8, of every 8 keys those at 2q and 2q+1.
#include "core/cuda/launch.h"
#include "core/cuda/mma.cuh"
#include "core/cuda/reduce.cuh"
#include "ops/attention_stats/kernel.h"
#include "ops/attention_stats/streaming.cuh"

namespace occam::kernels::streaming {

inline constexpr int kMostWarps = 7;
inline constexpr int64_t kMostHead = 128;

/// Rows of a block: 16 a warp, the last block may have fewer.
struct Tiling {
  int64_t parts;
  int warps, stride, steps;  // stride: of a row in shared memory; steps: of 16 along the head
  OCCAM_HD int64_t rows() const { return int64_t(warps) * kWarpRows; }
};
inline Tiling tiling_of(int64_t t, int64_t d) {
  int64_t tiles = div_up<int64_t>(t, kWarpRows), parts = div_up<int64_t>(tiles, kMostWarps);
  int64_t width = d <= 32 ? 32 : d <= 64 ? 64 : kMostHead;
  return {parts, int(div_up(tiles, parts)), int(width) + 8, int(width / 16)};
}

/// Where a block works.
struct Place {
  const bf16 *queries, *keys;  // of the map, from its row 0
  int64_t stride;              // from token to token
  int64_t map, part, first;    // first row of the block
};
__device__ __forceinline__ Place place_of_block(const MapSource<bf16>& s, int64_t t, const Tiling& tiling) {
  const int64_t map = blockIdx.x / tiling.parts, part = blockIdx.x % tiling.parts, width = s.h * s.d;
  const bf16* queries = s.qkv + map / s.h * t * 3 * width + map % s.h * s.d;
  return {queries, queries + width, 3 * width, map, part, part * tiling.rows()};
}

/// `count` rows to shared memory; rows from `valid` on and columns from d on become 0.
__device__ __forceinline__ void load_rows(bf16* to, const bf16* from, int64_t from_stride, int64_t valid,
                                          int count, int64_t d, int stride) {
  const int packs = (stride - 8) / 8;  // 4, 8 or 16: a thread stays in its column
  const int column = int(threadIdx.x) % packs * 8;
  for (int row = int(threadIdx.x) / packs; row < count; row += int(blockDim.x) / packs) {
    const bool exists = row < valid && column < d;
    copy_async16(to + row * stride + column, exists ? from + row * from_stride + column : from, exists);
  }
}

/// Raw products of the warp's 16 rows with 8 kN keys.
template <int kN>
__device__ __forceinline__ void scores(float (&s)[kN][4], const bf16* rows, const bf16* keys, int stride,
                                       int steps) {
  const int lane = int(threadIdx.x) % kWarp;
  const bf16* a_at = rows + lane % 16 * stride + lane / 16 * 8;
  const bf16* b_at = keys + (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8;
#pragma unroll
  for (int n = 0; n < kN; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) s[n][e] = 0;
#pragma unroll
  for (int k = 0; k < steps; ++k) {
    uint32_t a[4];
    ldmatrix(a, a_at + k * 16);
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      uint32_t b[4];
      ldmatrix(b, b_at + n * 8 * stride + k * 16);
      mma_bf16(s[n], a, b[0], b[1]);
      if (n + 1 < kN) mma_bf16(s[n + 1], a, b[2], b[3]);
    }
  }
}

/// No less than the squared length of any of 16 rows: no product of two of them is larger. 0 or more.
__device__ __forceinline__ float largest_square(const bf16* rows, int stride, int steps) {
  float s[2][4], largest = 0;
  scores(s, rows, rows, stride, steps);
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) largest = fmaxf(largest, s[n][e]);
  return largest;
}

}  // namespace occam::kernels::streaming
