#pragma once
// What the kernels of warpgroups share: where a head lies, tiles of its rows to shared memory and results
// back.
#include "core/cuda/launch.h"
#include "core/cuda/reduce.cuh"
#include "core/cuda/wgmma.cuh"
#include "ops/attention/kernel.h"

namespace occam::kernels {

using cuda::kSwizzleColumns, cuda::tile_at;

inline constexpr int kGroup = 128;  // threads of a warpgroup
inline constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

/// Warpgroups for kTokens rows (a multiple of 16), 64 rows each.
template <int kTokens>
inline constexpr int kGroups = (kTokens + 63) / 64;

/// Where a head lies; offsets of its row 0.
struct Head {
  int64_t stat;         // in lse and delta
  int64_t qkv, y;       // of q in qkv, of y
  const uint8_t* mask;  // of the image, or null
};

__device__ __forceinline__ Head head_of(const Attention<bf16>& a, int64_t head) {
  int64_t image = uint32_t(head) / uint32_t(a.h), y = a.h * a.d,
          column = uint32_t(head) % uint32_t(a.h) * a.d;
  return {head * a.t, image * a.t * 3 * y + column, image * a.t * y + column,
          a.key_mask == nullptr ? nullptr : a.key_mask + image * a.t};
}

/// The dynamic shared memory from the first multiple of 1024 on.
__device__ __forceinline__ unsigned char* aligned_room() {
  extern __shared__ unsigned char room[];
  return room + (1024 - cuda::shared_address(room) % 1024) % 1024;
}

/// A value that all lanes of a warp have, as something that the compiler knows to be so.
__device__ __forceinline__ int same_for_warp(int x) { return __shfl_sync(0xffffffffu, x, 0); }
__device__ __forceinline__ int warp_here() { return same_for_warp(int(threadIdx.x) / cuda::kWarp); }

/// This thread's index, as something that the compiler cannot compute with ahead of the loop over heads: what
/// it would save in instructions it would lose in registers.
__device__ __forceinline__ int thread_here() {
  int thread = int(threadIdx.x);
  asm volatile("" : "+r"(thread));
  return thread;
}

/// Rows of 64 elements to a tile in the background, zeros from row t on; all threads of the block.
template <int kRows>
__device__ __forceinline__ void copy_tile(bf16* tile, const bf16* from, int64_t stride, int t) {
  for (int i = thread_here(); i < kRows * 8; i += int(blockDim.x)) {
    int row = i / 8, piece = i % 8;
    cuda::copy_async16(tile + tile_at(row, piece), row < t ? from + row * stride + piece * 8 : from, row < t);
  }
}

/// 0 for keys attended to, -infinity for others and from t on; written by threads 0 .. threads - 1.
template <int kTokens>
__device__ __forceinline__ void copy_bias(float* bias, const uint8_t* mask, int t, int thread, int threads) {
  for (int j = thread; j < kTokens; j += threads)
    bias[j] = j < t && (mask == nullptr || mask[j] != 0) ? 0 : -cuda::infinity_<float>();
}

/// A warp's 16 rows of results (two for each lane, with a factor each) to memory, through its 16 rows of a
/// tile.
__device__ __forceinline__ void store_rows(const float (&o)[32], float upper, float lower, bf16* tile,
                                           int row, bf16* to, int64_t stride, int t) {
  int lane = thread_here() % cuda::kWarp;
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    bf16* at = tile + tile_at(row + lane / 4, n) + lane % 4 * 2;
    *reinterpret_cast<uint32_t*>(at) = cuda::pack_bf16(o[4 * n] * upper, o[4 * n + 1] * upper);
    *reinterpret_cast<uint32_t*>(at + 8 * kSwizzleColumns) =
        cuda::pack_bf16(o[4 * n + 2] * lower, o[4 * n + 3] * lower);
  }
  __syncwarp();
#pragma unroll
  for (int i = lane; i < 16 * 8; i += cuda::kWarp) {
    int at = row + i / 8, piece = i % 8;
    if (at < t)
      *reinterpret_cast<uint4*>(to + at * stride + piece * 8) =
          *reinterpret_cast<const uint4*>(tile + tile_at(at, piece));
  }
}

#ifdef OCCAM_WARPGROUP
/// The same by the copy engine, where `map` views what the rows belong to in boxes of 16 tokens.
__device__ __forceinline__ void copy_rows_back(const float (&o)[32], float upper, float lower, bf16* tile,
                                               int row, const cuda::TensorMap* map, int column, int image) {
  int lane = thread_here() % cuda::kWarp;
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    bf16* to = tile + tile_at(row + lane / 4, n) + lane % 4 * 2;
    *reinterpret_cast<uint32_t*>(to) = cuda::pack_bf16(o[4 * n] * upper, o[4 * n + 1] * upper);
    *reinterpret_cast<uint32_t*>(to + 8 * kSwizzleColumns) =
        cuda::pack_bf16(o[4 * n + 2] * lower, o[4 * n + 3] * lower);
  }
  cuda::fence_async();
  __syncwarp();
  if (lane == 0) cuda::store_box(map, column, row, image, cuda::shared_address(tile + row * kSwizzleColumns));
}
#endif

/// f.operator()<kTokens>() with the least kTokens that holds t.
template <class F>
void for_tokens_of(int64_t t, F f) {
  if (t <= 64) return f.template operator()<64>();
  if (t <= 80) return f.template operator()<80>();
  if (t <= 144) return f.template operator()<144>();
  f.template operator()<208>();
}

}  // namespace occam::kernels
