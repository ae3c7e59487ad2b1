#pragma once
// Means over the rows of a map, from the rows' statistics and the sums of the columns.
#include "core/cuda/reduce.cuh"
#include "ops/attention_stats/kernel.h"

namespace occam::kernels {

/// Largest x of the block, 0 or more; NaN wins. `room` has a number for each warp.
template <int kBlock>
__device__ __forceinline__ float most_of_block(float x, unsigned* room) {
  using namespace cuda;
  unsigned most = __reduce_max_sync(0xffffffffu, __float_as_uint(x));  // their order is that of their bits
  if (threadIdx.x % kWarp == 0) room[threadIdx.x / kWarp] = most;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kBlock / kWarp; ++w) most = max(most, room[w]);
  return __uint_as_float(most);
}

/// Bytes of `room` for write_means.
template <int kBlock>
inline constexpr int64_t kMeansBytes = int64_t(kBlock) / cuda::kWarp * 3 * kAttentionStatCount * 8;

/// rows: statistics of row i from rows[i stride] on; all_most, patch_most: the largest sums of a column over
/// all rows and over patch rows; to [3][kAttentionStatCount]. Thread x adds statistic x % 16 of every row of
/// its group.
template <int kBlock>
__device__ __forceinline__ void write_means(const float* rows, int64_t stride, const MapLayout& m,
                                            float all_most, float patch_most, double* room, float* to) {
  using namespace cuda;
  constexpr int kStats = kAttentionStatCount, kGroups = kBlock / kStats, kWarps = kBlock / kWarp;
  static_assert(kStats * 2 == kWarp);
  const int k = int(threadIdx.x) % kStats, group = int(threadIdx.x) / kStats;
  double prefix = 0, patch = 0, others = 0;  // two sums of patch rows: they need not wait for each other
  int missing = 0;
  for (int64_t i = group; i < m.prefix; i += kGroups) prefix += double(rows[i * stride + k]);
  const auto of_patch_row = [&](int64_t i) {
    const float value = rows[i * stride + k], support = rows[i * stride + kEffectiveSupport];
    // A patch row without mass on patches has no distance and is left out of that mean.
    const bool out = int(k == kAttentionDistance) & int(isnan(value)) & int(isfinite(support));
    missing += out;
    return out ? 0.0 : double(value);
  };
  int64_t i = m.prefix + group;
#pragma unroll 4
  for (; i + kGroups < m.t; i += 2 * kGroups) patch += of_patch_row(i), others += of_patch_row(i + kGroups);
  if (i < m.t) patch += of_patch_row(i);
  patch += others;
  double left_out = missing;
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
  prefix += shuffle_xor(prefix, kStats), patch += shuffle_xor(patch, kStats);
  left_out += shuffle_xor(left_out, kStats);
  __syncthreads();
  if (lane < kStats) {
    double* mine = room + warp * 3 * kStats + k;
    mine[0] = prefix, mine[kStats] = patch, mine[2 * kStats] = left_out;
  }
  __syncthreads();
  if (warp > 0) return;
  prefix = patch = left_out = 0;
#pragma unroll 4
  for (int w = 0; w < kWarps; ++w) {
    const double* from = room + w * 3 * kStats + k;
    prefix += from[0], patch += from[kStats], left_out += from[2 * kStats];
  }
  // NaN when a row was not finite, as for the other keys.
  const double patch_finite = __shfl_sync(0xffffffffu, patch, kEffectiveSupport);
  const double prefix_finite = __shfl_sync(0xffffffffu, prefix, kEffectiveSupport);
  const double all_rows = double(m.t), patch_rows = double(m.t - m.prefix);
  const double nan = __longlong_as_double(0x7ff8000000000000ll);
  double all = patch + prefix;
  if (k == kSinkMassMax) {
    all = isfinite(patch_finite + prefix_finite) ? double(all_most) : nan;
    patch = isfinite(patch_finite) ? double(patch_most) : nan;
  }
  // Half the warp divides for one set of rows, half for the other.
  const double mean = (lane < kStats ? patch : all) / (lane < kStats ? patch_rows - left_out : all_rows);
  const double of_all = shuffle_xor(mean, kStats), of_patch = mean;
  if (lane >= kStats) return;
  const bool spatial = k == kAttentionDistance || k == kWindowMass3 || k == kWindowMass5;
  to[k] = float(spatial ? of_patch : of_all);
  to[kStats + k] = m.prefix > 0 ? rows[k] : float(nan);
  to[2 * kStats + k] = float(of_patch);
}

}  // namespace occam::kernels
