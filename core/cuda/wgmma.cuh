#pragma once
// Hopper's asynchronous parts: products of a warpgroup (wgmma) that read shared memory, copies of boxes of a
// matrix by the copy engine (TMA), and the barriers in shared memory (mbarrier) that both complete on. PTX
// ISA "Asynchronous Warpgroup Level Matrix Instructions", "Tensors", "mbarrier". sm_90a only.
//
// Tiles lie in shared memory as TMA leaves them with the 128-byte swizzle: rows of 64 bf16 (128 bytes), the
// 16-byte unit u of row r at u ^ (r % 8), so that 8 rows of one unit lie in different banks. Tiles start at
// multiples of 1024 bytes.
#include <cstdint>

#include "core/cuda/mma.cuh"
#include "core/cuda/tensor_map.h"

namespace occam::cuda {

inline constexpr int kSwizzleRow = 128;               // bytes of a row
inline constexpr int kSwizzleColumns = 64;            // bf16 of a row
inline constexpr int kSwizzleAtom = 8 * kSwizzleRow;  // bytes after which the pattern repeats

/// Byte offset of the 16-byte unit `unit` of row `row`.
__device__ __forceinline__ uint32_t swizzled(int row, int unit) {
  return uint32_t(row * kSwizzleRow + ((unit ^ (row & 7)) << 4));
}

// Barriers. A barrier is 8 bytes of shared memory by its 32-bit address; phases are told by parity.

__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
/// Makes initialised barriers visible to the copy engine and to the cluster; then synchronise.
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
/// Arrives at the barrier of the same address in block `rank` of the cluster. It says that shared memory was
/// read, and orders no ordinary stores (release at cluster scope would stall on every store before it).
__device__ __forceinline__ void barrier_arrive_at(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n}\n" ::"r"(barrier),
      "r"(rank)
      : "memory");
}
/// Arrives, and lets the phase wait for `bytes` of copies.
__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;\n" ::: "memory");
}
/// Of `threads` threads of the block (whole warps) that name the same `id`, 1 to 15.
__device__ __forceinline__ void named_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// Counts for the others at `id` without waiting.
__device__ __forceinline__ void named_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Copies of boxes. Elements outside the matrix are read as 0 and not written; x is the column.

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
/// To the same address in every block of the cluster that `mask` names; each block's barrier counts its
/// bytes.
__device__ __forceinline__ void load_box_multicast(uint32_t to, const TensorMap* map, int x, int y,
                                                   uint32_t barrier, uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(map), "r"(x), "r"(y), "r"(barrier), "h"(mask)
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
template <int kNewest>
__device__ __forceinline__ void store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kNewest) : "memory");
}
__device__ __forceinline__ void store_wait() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
/// Ordinary stores to shared memory of this thread become visible to the copy engine.
__device__ __forceinline__ void fence_for_copies() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// The opposite of ldmatrix (mma.cuh): four 8 x 8 matrices to rows in shared memory.
__device__ __forceinline__ void stmatrix(uint32_t row, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(r0),
               "r"(r1), "r"(r2), "r"(r3)
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

// Products. An operand is told by a 64-bit descriptor; one instruction contracts 16 of k.

/// k-major: rows of m or n, 64 of k. Step of 16 in k: 32 bytes.
__device__ __forceinline__ uint64_t descriptor_k_major(uint32_t tile) {
  return uint64_t((tile & 0x3ffff) >> 4) | uint64_t(1) << 16 | uint64_t(kSwizzleAtom >> 4) << 32 |
         uint64_t(1) << 62;
}
/// n-major: rows of k, 64 of n; the next 64 of n are `chunk` bytes on. Step of 16 in k: 16 rows.
__device__ __forceinline__ uint64_t descriptor_n_major(uint32_t tile, uint32_t chunk) {
  return uint64_t((tile & 0x3ffff) >> 4) | uint64_t(chunk >> 4) << 16 | uint64_t(kSwizzleAtom >> 4) << 32 |
         uint64_t(1) << 62;
}
__device__ __forceinline__ uint64_t descriptor_step(uint64_t descriptor, int bytes) {
  return descriptor + uint64_t(bytes >> 4);
}

/// Before the first product that touches accumulators which ordinary instructions wrote.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// Waits until at most the kNewest newest groups are under way.
template <int kNewest>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kNewest) : "memory");
}

#define OCCAM_R4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define OCCAM_R16(d, i) OCCAM_R4(d, i), OCCAM_R4(d, i + 4), OCCAM_R4(d, i + 8), OCCAM_R4(d, i + 12)

/// d[64][kN] = a[64][16] b[16][kN] (+ d when `add`), both from shared memory. In a warp d is 8 columns after
/// 8 columns as in mma.cuh; warp w of the group holds rows 16 w to 16 w + 15. The registers of d belong to
/// the product until it was waited for.
template <int kN>
struct Wgmma;

template <>
struct Wgmma<64> {
  template <int kTransposedB>
  static __device__ __forceinline__ void run(float (&d)[32], uint64_t a, uint64_t b, int add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "%32, %33, p, 1, 1, 0, %35;\n}\n"
        : OCCAM_R16(d, 0), OCCAM_R16(d, 16)
        : "l"(a), "l"(b), "r"(add), "n"(kTransposedB));
  }
};
template <>
struct Wgmma<128> {
  template <int kTransposedB>
  static __device__ __forceinline__ void run(float (&d)[64], uint64_t a, uint64_t b, int add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "%64, %65, p, 1, 1, 0, %67;\n}\n"
        : OCCAM_R16(d, 0), OCCAM_R16(d, 16), OCCAM_R16(d, 32), OCCAM_R16(d, 48)
        : "l"(a), "l"(b), "r"(add), "n"(kTransposedB));
  }
};
template <>
struct Wgmma<192> {
  template <int kTransposedB>
  static __device__ __forceinline__ void run(float (&d)[96], uint64_t a, uint64_t b, int add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %98, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95}, "
        "%96, %97, p, 1, 1, 0, %99;\n}\n"
        : OCCAM_R16(d, 0), OCCAM_R16(d, 16), OCCAM_R16(d, 32), OCCAM_R16(d, 48), OCCAM_R16(d, 64),
          OCCAM_R16(d, 80)
        : "l"(a), "l"(b), "r"(add), "n"(kTransposedB));
  }
};
template <>
struct Wgmma<256> {
  template <int kTransposedB>
  static __device__ __forceinline__ void run(float (&d)[128], uint64_t a, uint64_t b, int add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
        "%128, %129, p, 1, 1, 0, %131;\n}\n"
        : OCCAM_R16(d, 0), OCCAM_R16(d, 16), OCCAM_R16(d, 32), OCCAM_R16(d, 48), OCCAM_R16(d, 64),
          OCCAM_R16(d, 80), OCCAM_R16(d, 96), OCCAM_R16(d, 112)
        : "l"(a), "l"(b), "r"(add), "n"(kTransposedB));
  }
};

#undef OCCAM_R16
#undef OCCAM_R4

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
