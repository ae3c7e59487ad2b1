#pragma once
// Tensor-core products of bf16 and what feeds them. Layouts: PTX ISA, "Matrix Fragments for mma.m16n8k16 with
// floating point type", "ldmatrix" and "cp.async". With g = lane / 4 and q = lane % 4 a lane holds, of
//   a [16][16]: {a[g][2q], a[g][2q+1]}, {a[g+8][..]}, {a[g][2q+8], a[g][2q+9]}, {a[g+8][..]}   (4 registers)
//   b [16][8]:  {b[2q][g], b[2q+1][g]}, {b[2q+8][g], b[2q+9][g]}                               (2 registers)
//   d [16][8]:  d[g][2q], d[g][2q+1], d[g+8][2q], d[g+8][2q+1]                                 (4 floats)
// so two neighbouring d side by side, rounded to bf16, are an a: see fragment_a.
#include <cstdint>

#include "core/cuda/math.cuh"

namespace occam::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return uint32_t(__cvta_generic_to_shared(pointer));
}

/// d += a b, all lanes of a warp together.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// The same over 8 steps of the sum: the first half of a and of b.
__device__ __forceinline__ void mma_bf16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(b));
}

/// Four 8 x 8 matrices from shared memory: lanes 8i .. 8i+7 pass the addresses (multiples of 16 bytes) of the
/// rows of matrix i, and r[i] receives its elements [g][2q], [g][2q+1]; of the transposed form
/// [2q][g], [2q+1][g].
__device__ __forceinline__ void ldmatrix(uint32_t (&r)[4], const bf16* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_transposed(uint32_t (&r)[4], const bf16* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

/// {low, high} rounded to nearest even.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
/// The d of columns 0..7 and of columns 8..15 as an a of 16 columns.
__device__ __forceinline__ void fragment_a(uint32_t (&a)[4], const float (&left)[4],
                                           const float (&right)[4]) {
  a[0] = pack_bf16(left[0], left[1]);
  a[1] = pack_bf16(left[2], left[3]);
  a[2] = pack_bf16(right[0], right[1]);
  a[3] = pack_bf16(right[2], right[3]);
}

/// Copies 16 (or 4) bytes from global to shared memory in the background; zeros when not `valid` (`from` is
/// then not read). Both addresses are multiples of the size.
__device__ __forceinline__ void copy_async16(void* to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void copy_async4(void* to, const void* from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(valid ? 4 : 0)
               : "memory");
}
/// Ends a group of copies of this thread; copies_wait<n> waits until at most its n newest groups are under
/// way. Other threads see them after a __syncthreads() behind the wait.
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kNewest>
__device__ __forceinline__ void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kNewest) : "memory");
}

}  // namespace occam::cuda
