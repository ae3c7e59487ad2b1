#pragma once
// Blocks of a cluster that write to each other's shared memory, and kernels that begin before the one ahead
// of them in the stream has ended. PTX ISA "barrier.cluster", "mapa", "griddepcontrol". Clusters: Hopper;
// older GPUs begin no kernel early.
#include <cstdint>

namespace occam::cuda {

/// All threads of all blocks of the cluster; what they wrote to shared memory before is seen after.
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
/// Where block `rank` has what this block has at the shared address `at`, for store_at_rank().
__device__ __forceinline__ uint32_t address_of_rank(uint32_t at, int rank) {
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
  return there;
}
__device__ __forceinline__ void store_at_rank(uint32_t there, float v) {
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(there), "f"(v) : "memory");
}

/// The next kernel of the stream may begin, if it was launched as one that may; its grid_wait() still waits
/// for the end of this one.
__device__ __forceinline__ void grid_release_next() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
/// Until the kernels ahead have ended and what they wrote can be read.
__device__ __forceinline__ void grid_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace occam::cuda
