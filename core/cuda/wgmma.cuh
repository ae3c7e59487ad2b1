#pragma once
// Hopper's asynchronous parts: products of a warpgroup (wgmma) that read shared memory, copies of boxes of a
// matrix by the copy engine (TMA), and the barriers in shared memory (mbarrier) that both complete on. PTX
// ISA "Asynchronous Warpgroup Level Matrix Instructions", "Tensors", "mbarrier". sm_90a only: a kernel that
// is compiled for others too uses them under OCCAM_WARPGROUP.
//
// Tiles lie in shared memory as TMA leaves them with the 128-byte swizzle: rows of 64 bf16 (128 bytes), the
// 16-byte unit u of row r at u ^ (r % 8), so that 8 rows of one unit lie in different banks. Tiles start at
// multiples of 1024 bytes.
#include <cstdint>

#include "core/cuda/mma.cuh"
#include "core/cuda/tensor_map.h"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define OCCAM_WARPGROUP 1
#endif

namespace occam::cuda {

inline constexpr int kSwizzleRow = 128;               // bytes of a row
inline constexpr int kSwizzleColumns = 64;            // bf16 of a row
inline constexpr int kSwizzleAtom = 8 * kSwizzleRow;  // bytes after which the pattern repeats

/// Element of the 16-byte piece `piece` of row `row`.
__device__ __forceinline__ int tile_at(int row, int piece) {
  return row * kSwizzleColumns + (piece ^ row % 8) * 8;
}
/// Byte offset of the 16-byte unit `unit` of row `row`.
__device__ __forceinline__ uint32_t swizzled(int row, int unit) {
  return uint32_t(row * kSwizzleRow + ((unit ^ (row & 7)) << 4));
}

// Barriers. A barrier is 8 bytes of shared memory by its 32-bit address; phases are told by parity.

__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
/// Makes initialised barriers visible to the copy engine; then synchronise.
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
/// Waits for the end of the phase of `parity`.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred p;\nagain:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      "@p bra done;\nbra again;\ndone:\n}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
/// Arrives, and lets the phase wait for `bytes` of copies.
__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
/// Of `threads` threads of the block (whole warps) that name the same `id`, 1 to 15.
__device__ __forceinline__ void named_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// Counts for the others at `id` without waiting.
__device__ __forceinline__ void named_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Copies of boxes. Elements outside the matrix are read as 0 and not written; x is the column, z the image.

__device__ __forceinline__ void prefetch_map(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
__device__ __forceinline__ void load_box(uint32_t to, const TensorMap* map, int x, int y, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], "
      "[%4];" ::"r"(to),
      "l"(map), "r"(x), "r"(y), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void load_box(uint32_t to, const TensorMap* map, int x, int y, int z,
                                         uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], "
      "[%5];" ::"r"(to),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier)
      : "memory");
}
/// Ends a group by itself; store_wait_read<n> waits until all but the n newest groups of this thread have
/// been read out of shared memory, store_wait until they are written.
__device__ __forceinline__ void store_box(const TensorMap* map, int x, int y, uint32_t from) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];\n"
      "cp.async.bulk.commit_group;" ::"l"(map),
      "r"(x), "r"(y), "r"(from)
      : "memory");
}
__device__ __forceinline__ void store_box(const TensorMap* map, int x, int y, int z, uint32_t from) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%1, %2, %3}], [%4];\n"
      "cp.async.bulk.commit_group;" ::"l"(map),
      "r"(x), "r"(y), "r"(z), "r"(from)
      : "memory");
}
template <int kNewest>
__device__ __forceinline__ void store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kNewest) : "memory");
}
__device__ __forceinline__ void store_wait() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
/// Ordinary stores to shared memory of this thread become visible to the copy engine and to wgmma.
__device__ __forceinline__ void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// The opposite of ldmatrix (mma.cuh): four 8 x 8 matrices to rows in shared memory.
__device__ __forceinline__ void stmatrix(uint32_t row, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(r0),
               "r"(r1), "r"(r2), "r"(r3)
               : "memory");
}
__device__ __forceinline__ void stmatrix_transposed(uint32_t row, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(r[0]),
               "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
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

// Products: d[64][n] (+)= a[64][16] b[16][n], bf16 with f32 sums, by a warpgroup. Warp w of it holds rows 16
// w to 16 w + 15 of d; in every 16 x 8 part of them a lane holds what it would hold of mma.sync's d
// (mma.cuh), so two neighbouring parts rounded to bf16 are a left operand again. The registers of d belong to
// the products until those were waited for.

/// An operand in shared memory is told by a 64-bit descriptor, whose upper half (swizzle of 128 bytes, 1024
/// bytes from 8 rows to the next) is the same for all; this is the lower half. `tile`: the address of row 0
/// of the first
/// 8. The 16 steps of the sum lie along the rows or are rows themselves ("across"); then more than 64 of m or
/// n lie in further tiles, each `chunk` bytes after the one before.
__device__ __forceinline__ uint32_t operand(uint32_t tile, uint32_t chunk = 16) {
  return (tile >> 4 & 0x3fff) | chunk >> 4 << 16;
}
/// To add to an operand for the next 16 steps.
inline constexpr uint32_t kStepAlong = 32 / 16, kStepAcross = 16 * kSwizzleRow / 16;
#define OCCAM_OPERAND(name, low) ".reg .b64 " name ";\nmov.b64 " name ", {" low ", 0x40000040};\n"

/// Opens a batch of products, which then run in the background: call when their registers hold what they
/// shall.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// Waits until at most the kNewest newest batches are under way.
template <int kNewest>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kNewest) : "memory");
}
/// The compiler may not move a use of d across this.
template <int kCount>
__device__ __forceinline__ void pin(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

#define OCCAM_F4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define OCCAM_F8(d, i) OCCAM_F4(d, i), OCCAM_F4(d, i + 4)

/// d [64][kN] (+)= a b; both from shared memory. kAcross: whose steps of the sum are rows. `add` false: d is
/// overwritten.
template <int kN, bool kAcrossA, bool kAcrossB>
__device__ __forceinline__ void wgmma(float* d, uint32_t a, uint32_t b, bool add) {
  static_assert(kN == 8 || kN == 16 || kN == 24 || kN == 32 || kN == 64 || kN == 128 || kN == 192);
  if constexpr (kN == 8)
    asm volatile(
        "{\n" OCCAM_OPERAND("a", "%4") OCCAM_OPERAND("b", "%5") ".reg .pred p;\nsetp.ne.b32 p, %6, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3"
        "}, a, b, p, 1, 1, %7, %8;\n}\n"
        : OCCAM_F4(d, 0)
        : "r"(a), "r"(b), "r"(int(add)), "n"(int(kAcrossA)), "n"(int(kAcrossB)));
  if constexpr (kN == 16)
    asm volatile(
        "{\n" OCCAM_OPERAND("a", "%8") OCCAM_OPERAND("b", "%9") ".reg .pred p;\nsetp.ne.b32 p, %10, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7"
        "}, a, b, p, 1, 1, %11, %12;\n}\n"
        : OCCAM_F8(d, 0)
        : "r"(a), "r"(b), "r"(int(add)), "n"(int(kAcrossA)), "n"(int(kAcrossB)));
  if constexpr (kN == 24)
    asm volatile(
        "{\n" OCCAM_OPERAND("a", "%12") OCCAM_OPERAND("b", "%13") ".reg .pred p;\nsetp.ne.b32 p, %14, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n24k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11"
        "}, a, b, p, 1, 1, %15, %16;\n}\n"
        : OCCAM_F8(d, 0), OCCAM_F4(d, 8)
        : "r"(a), "r"(b), "r"(int(add)), "n"(int(kAcrossA)), "n"(int(kAcrossB)));
  if constexpr (kN == 32)
    asm volatile(
        "{\n" OCCAM_OPERAND("a", "%16") OCCAM_OPERAND("b", "%17") ".reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
        "}, a, b, p, 1, 1, %19, %20;\n}\n"
        : OCCAM_F8(d, 0), OCCAM_F8(d, 8)
        : "r"(a), "r"(b), "r"(int(add)), "n"(int(kAcrossA)), "n"(int(kAcrossB)));
  if constexpr (kN == 64)
    asm volatile(
        "{\n" OCCAM_OPERAND("a", "%32") OCCAM_OPERAND("b", "%33") ".reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, a, b, p, 1, 1, %35, %36;\n}\n"
        : OCCAM_F8(d, 0), OCCAM_F8(d, 8), OCCAM_F8(d, 16), OCCAM_F8(d, 24)
        : "r"(a), "r"(b), "r"(int(add)), "n"(int(kAcrossA)), "n"(int(kAcrossB)));
  if constexpr (kN == 128)
    asm volatile(
        "{\n" OCCAM_OPERAND("a", "%64") OCCAM_OPERAND("b", "%65") ".reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, a, b, p, 1, 1, %67, %68;\n}\n"
        : OCCAM_F8(d, 0), OCCAM_F8(d, 8), OCCAM_F8(d, 16), OCCAM_F8(d, 24), OCCAM_F8(d, 32), OCCAM_F8(d, 40), OCCAM_F8(d, 48), OCCAM_F8(d, 56)
        : "r"(a), "r"(b), "r"(int(add)), "n"(int(kAcrossA)), "n"(int(kAcrossB)));
  if constexpr (kN == 192)
    asm volatile(
        "{\n" OCCAM_OPERAND("a", "%96") OCCAM_OPERAND("b", "%97") ".reg .pred p;\nsetp.ne.b32 p, %98, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
        "}, a, b, p, 1, 1, %99, %100;\n}\n"
        : OCCAM_F8(d, 0), OCCAM_F8(d, 8), OCCAM_F8(d, 16), OCCAM_F8(d, 24), OCCAM_F8(d, 32), OCCAM_F8(d, 40), OCCAM_F8(d, 48), OCCAM_F8(d, 56), OCCAM_F8(d, 64), OCCAM_F8(d, 72), OCCAM_F8(d, 80), OCCAM_F8(d, 88)
        : "r"(a), "r"(b), "r"(int(add)), "n"(int(kAcrossA)), "n"(int(kAcrossB)));
}

/// d [64][64] (+)= a b with a from registers and b's steps of the sum across.
__device__ __forceinline__ void wgmma_registers(float (&d)[32], const uint32_t (&a)[4], uint32_t b,
                                                bool add) {
  asm volatile(
      "{\n" OCCAM_OPERAND("b", "%36") ".reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, {%32, %33, %34, %35}, b, p, 1, 1, 1;\n}\n"
      : OCCAM_F8(d, 0), OCCAM_F8(d, 8), OCCAM_F8(d, 16), OCCAM_F8(d, 24)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"(int(add)));
}

/// d [64][32] (+)= a b with a from registers and b's steps of the sum along.
__device__ __forceinline__ void wgmma_registers(float (&d)[16], const uint32_t (&a)[4], uint32_t b,
                                                bool add) {
  asm volatile(
      "{\n" OCCAM_OPERAND("b", "%20") ".reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
      "}, {%16, %17, %18, %19}, b, p, 1, 1, 0;\n}\n"
      : OCCAM_F8(d, 0), OCCAM_F8(d, 8)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"(int(add)));
}

#undef OCCAM_F8
#undef OCCAM_F4
#undef OCCAM_OPERAND

/// Moves registers between warpgroups: all four warps call it, and the kernel has __launch_bounds__(t, 1).
template <int kRegisters>
__device__ __forceinline__ void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace occam::cuda
