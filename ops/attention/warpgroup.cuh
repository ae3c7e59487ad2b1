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

/// Rows of a tile from `address` (of row 0 of the first 8) as an operand: the lower half of its descriptor,
/// the upper half (swizzle of 128 bytes, 1024 from 8 rows to the next) is the same for all. Add kStepAlong
/// for each 16 elements along the rows, kStepAcross for each 16 rows.
__device__ __forceinline__ uint32_t operand(uint32_t address) { return 1 << 16 | (address >> 4 & 0x3fff); }
inline constexpr uint32_t kStepAlong = 32 / 16, kStepAcross = 2048 / 16;
#define OCCAM_OPERAND(name, low) ".reg .b64 " name "; mov.b64 " name ", {" low ", 0x40000040};\n"

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

// Barriers in shared memory that the copy engine completes; phases are told by parity.

__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
/// By the thread that initialised barriers, before the block synchronises.
__device__ __forceinline__ void barriers_ready() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{.reg .pred p;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra done;\nbra "
      "again;\n"
      "done:}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
/// Arrives, and lets the phase wait for `bytes` of copies.
__device__ __forceinline__ void barrier_expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
/// The box at (column, token, image) of a token_map to a tile.
__device__ __forceinline__ void copy_box(const bf16* tile, const void* map, int column, int token, int image,
                                         uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], "
      "[%5];" ::"r"(cuda::shared_address(tile)),
      "l"(map), "r"(column), "r"(token), "r"(image), "r"(barrier)
      : "memory");
}

/// The other way; what lies outside the view is not written. Ends a group of copies of this thread;
/// rows_copied waits until all its groups are read from shared memory.
__device__ __forceinline__ void copy_box_back(const void* map, int column, int token, int image,
                                              const bf16* tile) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%1, %2, %3}], [%4];\n"
      "cp.async.bulk.commit_group;" ::"l"(map),
      "r"(column), "r"(token), "r"(image), "r"(cuda::shared_address(tile))
      : "memory");
}
__device__ __forceinline__ void rows_copied() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

#define OCCAM_F8(d, i)                                                                        \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])

/// d [64][kN] (+)= a b; both from shared memory. kAcross: the operand's 16 steps of the sum are rows of its
/// tile (else they lie along the rows). `add` false: d is overwritten.
template <int kN, bool kAcrossA, bool kAcrossB>
__device__ __forceinline__ void product(float* d, uint32_t a, uint32_t b, bool add) {
  static_assert(kN == 16 || kN == 32 || kN == 64);
  if constexpr (kN == 16)
    asm volatile(
        "{" OCCAM_OPERAND("a", "%8") OCCAM_OPERAND("b", "%9") ".reg .pred p; setp.ne.b32 p, %10, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7}, "
        "a, b, p, 1, 1, %11, %12;}"
        : OCCAM_F8(d, 0)
        : "r"(a), "r"(b), "r"(int(add)), "n"(int(kAcrossA)), "n"(int(kAcrossB)));
  if constexpr (kN == 32)
    asm volatile(
        "{" OCCAM_OPERAND("a", "%16") OCCAM_OPERAND("b", "%17") ".reg .pred p; setp.ne.b32 p, %18, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,"
        "%15}, a, b, p, 1, 1, %19, %20;}"
        : OCCAM_F8(d, 0), OCCAM_F8(d, 8)
        : "r"(a), "r"(b), "r"(int(add)), "n"(int(kAcrossA)), "n"(int(kAcrossB)));
  if constexpr (kN == 64)
    asm volatile(
        "{" OCCAM_OPERAND("a", "%32") OCCAM_OPERAND("b", "%33") ".reg .pred p; setp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,"
        "%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, a, b, p, 1, 1, %35, %36;}"
        : OCCAM_F8(d, 0), OCCAM_F8(d, 8), OCCAM_F8(d, 16), OCCAM_F8(d, 24)
        : "r"(a), "r"(b), "r"(int(add)), "n"(int(kAcrossA)), "n"(int(kAcrossB)));
}

/// d [64][64] (+)= a b with a from registers; the steps of the sum are rows of b's tile.
__device__ __forceinline__ void product_of_registers(float (&d)[32], const uint32_t (&a)[4], uint32_t b,
                                                     bool add) {
  asm volatile(
      "{" OCCAM_OPERAND("b", "%36") ".reg .pred p; setp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,"
      "%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, {%32,%33,%34,%35}, b, p, 1, "
      "1, 1;}"
      : OCCAM_F8(d, 0), OCCAM_F8(d, 8), OCCAM_F8(d, 16), OCCAM_F8(d, 24)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"(int(add)));
}

#undef OCCAM_F8
#undef OCCAM_OPERAND

#endif

}  // namespace occam::kernels
