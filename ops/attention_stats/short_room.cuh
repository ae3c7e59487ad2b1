#pragma once
// Where a block of kernel_short.cu has queries, keys, sums and records of its map, how they come there, and
// what is made of them by tensor cores.
#include "ops/attention/head.cuh"
#include "ops/attention_stats/decide.cuh"
#include "ops/attention_stats/finish.cuh"
#include "ops/attention_stats/streaming.cuh"

namespace occam::kernels::short_maps {

using namespace cuda;
using namespace streaming;

inline constexpr int kWarps = kGroup / kWarp;
inline constexpr int64_t kMostTokensHere = 256, kMostPrefix = 8;
inline constexpr int kSlot =
    kSwizzleColumns / 2;                  // floats from one row's record to the next: its query's place
inline constexpr int kBox = 16;           // rows that are copied together
inline constexpr int kLastRows = 8;       // of the last ones that are measured together
inline constexpr int kColumnStride = 12;  // of a column's 8 parts: misses other columns' banks

/// Blocks of a multiprocessor: what bounds the registers.
template <int kTokens>
inline constexpr int kBlocks = kTokens <= 80    ? 4
                               : kTokens <= 208 ? 3
                                                : 2;

/// Shared memory of a block, from a multiple of 1024 on.
template <int kTokens>
struct Room {
  bf16 *q, *k;            // tiles of kTokens rows; the record of row i takes the place of query i
  float *work, *columns;  // of warps or of the block; [warps + 1][kTokens], sums over patch, prefix rows
  Tables tables;
  static constexpr int kOfWarps = kWarps * kUnit * kColumnStride * 4;
  static constexpr int kOfDecision = Decision<kTokens>::kRoom * 8, kOfLast = kLastRows * kTokens * 4;
  static constexpr int kWork = std::max({kOfWarps, kOfDecision, kOfLast});  // bytes
  OCCAM_HD Room(unsigned char* room, const MapLayout& m) {
    q = reinterpret_cast<bf16*>(room);
    k = q + kTokens * kSwizzleColumns;
    work = reinterpret_cast<float*>(k + kTokens * kSwizzleColumns);
    columns = work + kWork / 4;
    tables.offsets = reinterpret_cast<int*>(columns + (kWarps + 1) * kTokens);
    tables.keys = round_up(kTokens, kUnit);
    tables.distances = reinterpret_cast<float*>(tables.offsets + tables.keys);
  }
  static int64_t bytes(const MapLayout& m) {
    const Room room(nullptr, m);
    return int64_t(reinterpret_cast<uintptr_t>(room.tables.distances + Tables::floats(m))) + 1024;
  }
  static_assert(kMeansBytes<kGroup> <= kWork);
};

#ifdef OCCAM_WARPGROUP

/// No less than the squared length of row `row` of a tile, but for the pieces that other lanes have; 0 or
/// more. In bf16: eight sums in a row are off by 8 * 2^-9 at most.
template <int kPieces>
__device__ __forceinline__ float square_of_row(const bf16* tile, int row, int first_piece) {
  uint32_t sums[4] = {};
#pragma unroll
  for (int piece = 0; piece < kPieces; ++piece) {
    const uint4 of = *reinterpret_cast<const uint4*>(tile + tile_at(row, first_piece + piece));
    const uint32_t two[4] = {of.x, of.y, of.z, of.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) asm("fma.rn.bf16x2 %0, %1, %1, %0;" : "+r"(sums[i]) : "r"(two[i]));
  }
  float sum = 0;
#pragma unroll
  for (uint32_t two : sums) sum += __uint_as_float(two << 16) + __uint_as_float(two & 0xffff0000u);
  return fmaxf(0, sum * 1.02f);
}
/// Largest x of the warp, 0 or more.
__device__ __forceinline__ float most_of_warp(float x) {
  return __uint_as_float(__reduce_max_sync(0xffffffffu, __float_as_uint(x)));
}

/// The same for the longest of 16 rows.
__device__ __forceinline__ float largest_square(const bf16* tile, int row) {
  const int lane = int(threadIdx.x) % kWarp;
  const float half = square_of_row<4>(tile, row + lane / 2, lane % 2 * 4);
  return most_of_warp(half + shuffle_xor(half, 1));
}

/// Products of 16 rows of one tile with 32 of another, or with what there is of them, by a warp.
__device__ __forceinline__ void products_of_warp(float (&s)[kUnit / 8][4], const bf16* a_tile, int a_row,
                                                 const bf16* b_tile, int b_row, int b_rows) {
  const int lane = int(threadIdx.x) % kWarp;
  a_row += lane % 16, b_row += lane % 8 + lane / 16 * 8;
#pragma unroll
  for (int step = 0; step < kSwizzleColumns / 16; ++step) {
    uint32_t a[4];
    ldmatrix(a, a_tile + tile_at(a_row, step * 2 + lane / 16));
#pragma unroll
    for (int n = 0; n < kUnit / 8; n += 2) {
      if (n * 8 >= b_rows) break;
      uint32_t b[4];
      ldmatrix(b, b_tile + tile_at(b_row + n * 8, step * 2 + lane / 8 % 2));
      mma_bf16(s[n], a, b[0], b[1]);
      mma_bf16(s[n + 1], a, b[2], b[3]);
    }
  }
}

/// Copies of queries (side 0) and keys, 64 rows to a barrier.
template <int kTokens>
struct Loads {
  static constexpr int kBoxes = kTokens / kBox, kChunks = div_up(kTokens, 64);
  static constexpr int kLead = kBoxes < 4 ? kBoxes : 4;  // boxes of the first queries
  const Room<kTokens>& room;
  const TensorMap* qkv;
  int image, head, heads;
  uint64_t* barriers;  // [2][kChunks]
  __device__ __forceinline__ uint32_t barrier(int side, int chunk) const {
    return shared_address(barriers + side * kChunks + chunk);
  }
  __device__ __forceinline__ void load(int side, int box) const {
    load_box(shared_address((side == 0 ? room.q : room.k) + box * kBox * kSwizzleColumns), qkv,
             (side * heads + head) * kSwizzleColumns, box * kBox, image, barrier(side, box / 4));
  }
  /// What the first rows need. By a warp; all threads synchronise before they wait.
  __device__ __forceinline__ void begin() const {
    const int lane = int(threadIdx.x) % kWarp;
    if (lane < 2 * kChunks) {
      barrier_init(barrier(0, lane), 1);
      barrier_init_fence();
      barrier_expect(barrier(0, lane), min(64, kTokens - lane % kChunks * 64) * kSwizzleRow);
    }
    __syncwarp();
    if (lane < kLead + kBoxes) load(lane < kLead ? 0 : 1, lane < kLead ? lane : lane - kLead);
  }
  /// The rest, once that is there.
  __device__ __forceinline__ void rest() const {
    const int box = int(threadIdx.x) % kWarp + kLead;
    if (box < kBoxes) load(0, box);
  }
};

/// Begins products of the 64 rows at q with all keys, a part of the rows in each warp.
template <int kTokens>
__device__ __forceinline__ void begin_products(float (&s)[kTokens / 2], uint32_t q, uint32_t k) {
  constexpr int kRest = kTokens % 64;
#pragma unroll
  for (float& x : s) x = 0;  // the first product overwrites it
  wgmma_fence();
#pragma unroll
  for (int key = 0; key < kTokens - kRest; key += 64)
#pragma unroll
    for (int step = 0; step < kSwizzleColumns / 16; ++step)
      wgmma<64, false, false>(s + key / 2, q + step * kStepAlong,
                              k + key / 16 * kStepAcross + step * kStepAlong, step > 0);
  if constexpr (kRest > 0) {
    static_assert(kRest == 16);
#pragma unroll
    for (int step = 0; step < kSwizzleColumns / 16; ++step)
      wgmma<16, false, false>(s + (kTokens - kRest) / 2, q + step * kStepAlong,
                              k + (kTokens - kRest) / 16 * kStepAcross + step * kStepAlong, step > 0);
  }
  wgmma_commit();
}

#endif

}  // namespace occam::kernels::short_maps
