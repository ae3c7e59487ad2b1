#pragma once
// Products of a warpgroup (128 threads) on Hopper's tensor cores, bf16 with f32 sums, operands in shared
// memory under the 128-byte swizzle. Layouts: PTX ISA, "Asynchronous warpgroup level matrix instructions".
// Warp w of the group has rows 16 w .. 16 w + 15 of a result [64][n]; in every 16 x 8 part of it a lane holds
// what it would hold of mma.sync's d (core/cuda/mma.cuh), so two neighbouring parts rounded to bf16 are a
// left operand again.
//
// A tile has rows of 64 elements (128 bytes) and starts at a multiple of 1024 bytes; the 16-byte piece c of
// row r lies at piece c ^ (r % 8) of that row. Whoever writes a tile calls share_with_tensor_cores() before
// the barrier that precedes the products.
#include <cstdint>

#include "core/cuda/mma.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define OCCAM_WARPGROUP 1
#endif

namespace occam::kernels {

inline constexpr int kTileRow = 64;  // elements

/// Element of (row, 16-byte piece) in a tile.
__device__ __forceinline__ int tile_at(int row, int piece) { return row * kTileRow + (piece ^ row % 8) * 8; }

#ifdef OCCAM_WARPGROUP

/// Rows of a tile from `address` (of row 0 of the first 8) as an operand; add kStepAlong for each 16 elements
/// along the rows, kStepAcross for each 16 rows.
__device__ __forceinline__ uint64_t operand(uint32_t address) {
  constexpr uint64_t kSwizzle128 = uint64_t(1) << 62, kEightRows = uint64_t(1024 / 16) << 32;
  return kSwizzle128 | kEightRows | uint64_t(1) << 16 | (address >> 4 & 0x3fff);
}
inline constexpr uint64_t kStepAlong = 32 / 16, kStepAcross = 2048 / 16;

/// Opens a batch of products, which then run in the background: call when their registers hold what they
/// shall.
__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// Waits until at most the kNewest newest batches are under way.
template <int kNewest>
__device__ __forceinline__ void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kNewest) : "memory");
}
/// The compiler may not move a use of d across this.
template <int kCount>
__device__ __forceinline__ void pin(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
__device__ __forceinline__ void share_with_tensor_cores() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
/// Waits for the 128 threads of warpgroup `group`.
__device__ __forceinline__ void group_barrier(int group) {
  asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
}

#define OCCAM_F8(d, i)                                                                        \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])

/// d [64][kN] (+)= a b; both from shared memory. kAcross: the operand's 16 steps of the sum are rows of its
/// tile (else they lie along the rows). `add` false: d is overwritten.
template <int kN, bool kAcrossA, bool kAcrossB>
__device__ __forceinline__ void product(float* d, uint64_t a, uint64_t b, bool add) {
  static_assert(kN == 16 || kN == 32 || kN == 64);
  if constexpr (kN == 16)
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %10, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7}, "
        "%8, %9, p, 1, 1, %11, %12;}"
        : OCCAM_F8(d, 0)
        : "l"(a), "l"(b), "r"(int(add)), "n"(int(kAcrossA)), "n"(int(kAcrossB)));
  if constexpr (kN == 32)
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %18, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,"
        "%15}, %16, %17, p, 1, 1, %19, %20;}"
        : OCCAM_F8(d, 0), OCCAM_F8(d, 8)
        : "l"(a), "l"(b), "r"(int(add)), "n"(int(kAcrossA)), "n"(int(kAcrossB)));
  if constexpr (kN == 64)
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,"
        "%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, %32, %33, p, 1, 1, %35, %36;}"
        : OCCAM_F8(d, 0), OCCAM_F8(d, 8), OCCAM_F8(d, 16), OCCAM_F8(d, 24)
        : "l"(a), "l"(b), "r"(int(add)), "n"(int(kAcrossA)), "n"(int(kAcrossB)));
}

/// d [64][64] (+)= a b with a from registers; the steps of the sum are rows of b's tile.
__device__ __forceinline__ void product_of_registers(float (&d)[32], const uint32_t (&a)[4], uint64_t b,
                                                     bool add) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,"
      "%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, {%32,%33,%34,%35}, %36, p, 1, "
      "1, 1;}"
      : OCCAM_F8(d, 0), OCCAM_F8(d, 8), OCCAM_F8(d, 16), OCCAM_F8(d, 24)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(add)));
}

#undef OCCAM_F8

#endif

}  // namespace occam::kernels
