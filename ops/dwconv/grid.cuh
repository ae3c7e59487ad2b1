#pragma once
// What the kernels of this folder share: lanes of channels, the convolution's arguments, sums over a block.
#include "core/cuda/launch.h"
#include "core/cuda/vec.cuh"
#include "ops/dwconv/kernel.h"

namespace occam::kernels {

using namespace cuda;

namespace {

constexpr int kLanes = 32, kTileWarps = 8, kAnyWarps = 4;
constexpr int kStrip = 4;     // of the general forms: outputs, or taps, that share their loads
constexpr int kSegment = 16;  // of the general forms: columns that a warp walks over
constexpr int kReduceWarps = 8;
constexpr int kBlocksOfSm = 3;

/// Columns of a tile at most, and bytes of x that a block keeps for one: two are there at a time, and
/// backward has gy beside them.
template <class T>
constexpr int kColumns = 64 / sizeof(T);
constexpr int kForwardBytes = 52 << 10;
template <class T>
constexpr int kBackwardBytes = (sizeof(T) == 4 ? 40 : 28) << 10;

/// What the convolution and its gradient for x share: to = base + sum of taps round each patch.
template <class T>
struct Convolve {
  DwconvShape s;
  const T *from, *w;
  T* to;
  const T* bias;            // [c] or null
  const float* image_base;  // [b, c] or null
  float* sums;              // [b, gh, segments, c]: sums of `from` over patches; or null
  bool flip;                // the kernel turned round: the gradient
  int segments;             // pieces of a row
};

/// Adds up the warps of a block: out[k * c + v]; parts [warps][kLanes] is shared memory.
template <int V, int kSums>
__device__ void put_block_sums(const float (&sum)[kSums][V], int used, bool inside, float* out, int64_t c,
                               float* parts) {
  const int warps = int(blockDim.y);
#pragma unroll
  for (int k = 0; k < kSums; ++k)
#pragma unroll
    for (int v = 0; v < V; ++v) {
      __syncthreads();
      parts[threadIdx.y * kLanes + threadIdx.x] = sum[k][v];
      __syncthreads();
      if (!inside || k >= used || threadIdx.y != (k * V + v) % warps) continue;
      float total = 0;
      for (int n = 0; n < warps; ++n) total += parts[n * kLanes + threadIdx.x];
      out[k * c + v] = total;
    }
}

}  // namespace

}  // namespace occam::kernels
