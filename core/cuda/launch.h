#pragma once
// Launch configuration. Sizes are 64-bit; grids are clamped, so kernels loop (OCCAM_GRID_LOOP or a row loop).
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

#include "core/cuda/check.h"
#include "core/half.h"

namespace occam::cuda {

template <class T>
OCCAM_HD constexpr T div_up(T a, T b) {
  return (a + b - 1) / b;
}
template <class T>
OCCAM_HD constexpr T round_up(T a, T b) {
  return div_up(a, b) * b;
}

/// What launches ask of the current device; read once for each device.
struct DeviceLimits {
  int sm_count = 0;
  int capability = 0;           // 10 * major + minor, e.g. 90
  int shared_bytes = 0;         // dynamic shared memory a block may have without opting in
  int shared_bytes_opt_in = 0;  // the same after allow_shared()
  int threads_per_sm = 0;
  int64_t l2_bytes = 0;
};
const DeviceLimits& device_limits();

inline constexpr int64_t kMaxGridX = 2147483647;

/// Blocks for a grid-stride loop over `items`: enough to fill the device, never more than there is work, at
/// least 1. `blocks_per_sm` bounds the grid so that large inputs reuse their blocks.
inline unsigned grid_for(int64_t items, int threads_per_block, int blocks_per_sm = 16) {
  int64_t wanted = div_up<int64_t>(items, threads_per_block);
  return unsigned(std::clamp<int64_t>(wanted, 1, int64_t(device_limits().sm_count) * blocks_per_sm));
}

/// Blocks for kernels that take one row (or tile) a block: `rows`, clamped to the largest grid. A kernel that
/// may see more rows loops `for (int64_t row = blockIdx.x; row < rows; row += gridDim.x)`.
inline unsigned grid_of_rows(int64_t rows) { return unsigned(std::clamp<int64_t>(rows, 1, kMaxGridX)); }

/// Blocks of a kernel that does not loop. Throws Error{shape} when a grid has no room for so many.
unsigned grid_of_blocks(int64_t blocks);

/// Lets `kernel` be launched with `bytes` of dynamic shared memory; needed above
/// device_limits().shared_bytes. Throws Error{device} when the device has less.
void allow_shared_memory(const void* kernel, const char* name, int64_t bytes);
template <class... Args>
void allow_shared(void (*kernel)(Args...), const char* name, int64_t bytes) {
  if (bytes > device_limits().shared_bytes)
    allow_shared_memory(reinterpret_cast<const void*>(kernel), name, bytes);
}

/// True when every pointer is a multiple of 16 bytes: the condition of the packs in vec.cuh. Row strides must
/// be multiples of the pack as well.
template <class... Pointers>
OCCAM_HD bool aligned16(const Pointers*... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

}  // namespace occam::cuda

/// for each i in [0, count) of this thread in a one-dimensional grid; i and count are int64_t.
#define OCCAM_GRID_LOOP(i, count)                                  \
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, \
               occam_step_ = int64_t(gridDim.x) * blockDim.x;      \
       i < (count); i += occam_step_)
