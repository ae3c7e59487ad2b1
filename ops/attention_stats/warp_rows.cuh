#pragma once
// A warp's rows of a map: where they are on the grid, and how far from each of the keys. A lane's scores are
// those of mma.cuh: rows g and g+8, of every 8 keys those at 2q and 2q+1.
#include "core/cuda/launch.h"
#include "core/cuda/mma.cuh"
#include "core/cuda/reduce.cuh"
#include "ops/attention_stats/kernel.h"

namespace occam::kernels::streaming {

using namespace cuda;

inline constexpr int kStats = kAttentionStatCount;
inline constexpr int kWarpRows = 16;
inline constexpr int kUnit = 32;               // keys that a warp treats together, at most
inline constexpr int kWorkStride = kUnit + 8;  // of column sums; 8 rows of pairs miss each other's banks
inline constexpr int kWorkFloats = 8 * kWorkStride;  // of a warp
inline constexpr float kLog2 = 1.4426950408889634f, kLn = 0.6931471805599453f;
inline constexpr float kHidden = -1e30f;  // a score of a key that does not exist
inline constexpr float kUnitF32 = 0x1p-24f;
inline constexpr float kMostExponent = 12;  // of a weight, before the base is raised

/// Relative error below 2^-22.
__device__ __forceinline__ float sqrt_fast(float x) {
  float y;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// x / divisor for x up to 2^20, 0 or more: half an integer away from the next quotient, so f32 is enough.
struct Divisor {
  float inverse;
  __device__ __forceinline__ explicit Divisor(int divisor) : inverse(reciprocal_fast(float(divisor))) {}
  __device__ __forceinline__ int quotient(int x) const { return int((float(x) + 0.5f) * inverse); }
};

/// Distances on the grid, in shared memory.
struct Tables {
  float* distances;  // [2 grid_h - 1][2 grid_w - 1], by difference of rows and columns
  int* offsets;      // of a key in `distances`, in bytes; [keys], 0 from t on
  int keys;
  static OCCAM_HD int64_t floats(const MapLayout& m) { return (2 * m.grid_h - 1) * (2 * m.grid_w - 1); }
  /// By all threads; they synchronise after.
  __device__ __forceinline__ void fill(const MapLayout& m) const {
    const int gw = int(m.grid_w), gh = int(m.grid_h), width = 2 * gw - 1, prefix = int(m.prefix);
    const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
    const int warps = int(blockDim.x) / kWarp;
    const Divisor by_grid(gw);
    for (int j = int(threadIdx.x); j < keys; j += int(blockDim.x)) {
      const int patch = max(j - prefix, 0);
      offsets[j] = j < int(m.t) ? (patch + by_grid.quotient(patch) * (width - gw)) * int(sizeof(float)) : 0;
    }
    for (int y = warp; y < 2 * gh - 1; y += warps)
      for (int x = lane; x < width; x += kWarp) {
        const float dy = float(y - (gh - 1)), dx = float(x - (gw - 1));
        distances[y * width + x] = sqrt_fast(dy * dy + dx * dx);
      }
  }
};

/// Where a warp's rows are.
struct WarpRows {
  int first, t, prefix;
  int band_begin, band_end;  // keys that a window of one of the rows may hold
  const char* from[2];       // a lane's rows in the distances
  const int* offsets;
  __device__ __forceinline__ WarpRows(const MapLayout& m, const Tables& tables, int first_row)
      : first(first_row), t(int(m.t)), prefix(int(m.prefix)), offsets(tables.offsets) {
    asm volatile(""
                 : "+r"(t));  // what follows from it is not kept in registers from before the loop over rows
    const int gw = int(m.grid_w), gh = int(m.grid_h), width = 2 * gw - 1;
    const Divisor by_grid(gw);
    // Two rows and two columns of the grid from the warp's first and last patch.
    const int reach = 2 * gw + 2;
    band_begin = max(first, prefix) - reach, band_end = min(first + kWarpRows, t) + reach;
    if (first + kWarpRows <= prefix) band_end = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = row(half), patch = i < prefix || i >= t ? 0 : i - prefix, y = by_grid.quotient(patch);
      from[half] =
          reinterpret_cast<const char*>(tables.distances + (gh - 1 - y) * width + gw - 1 - patch + y * gw);
    }
  }
  __device__ __forceinline__ int row(int half) const {
    return first + int(threadIdx.x) % kWarp / 4 + half * 8;
  }
};

/// Distances of a lane's rows to the 8 kN keys from `key` on, in the order of scores.
template <int kN>
struct Distances {
  float v[4 * kN];
  __device__ __forceinline__ Distances(const WarpRows& at, int key) {
    const int2* offsets = reinterpret_cast<const int2*>(at.offsets + key + int(threadIdx.x) % 4 * 2);
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      const int2 to = offsets[n * 4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        v[4 * n + i] = *reinterpret_cast<const float*>(at.from[i / 2] + (i % 2 == 0 ? to.x : to.y));
    }
  }
};

/// 1 or 0: within 1 or 2 rows and columns is no farther than sqrt 2 or sqrt 8; farther is 2 or 3 at least.
__device__ __forceinline__ float in_window3(float distance) {
  return __saturatef(fmaf(distance, -8.0f, 13.0f));
}
__device__ __forceinline__ float in_window5(float distance) {
  return __saturatef(fmaf(distance, -16.0f, 47.0f));
}

}  // namespace occam::kernels::streaming
