#pragma once
// From a map's products to its rows' statistics and its columns' sums, in a block of kernel_short.cu: 64
// whole rows in registers, and the last rows with a warp each.
#include "ops/attention_stats/short_room.cuh"

#ifdef OCCAM_WARPGROUP

namespace occam::kernels::short_maps {

/// Products become weights, relative to the largest of the row, and what is linear in them is added up.
template <int kTokens>
__device__ __forceinline__ void measure(float (&s)[kTokens / 2], Row (&row)[2], const WarpRows& at,
                                        float factor) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    // Keys that do not exist have products of 0.
    row[half].base = __int_as_float(warp_reduce<4>(largest_bits<kTokens / 8>(s, half), MaxOp{})) * factor;
    if (__any_sync(0xffffffffu, row[half].base == 0)) {
      float most = -infinity_<float>();
#pragma unroll
      for (int i = 2 * half; i < kTokens / 2; i += i % 2 == 0 ? 1 : 3)
        if (i / 4 * 8 + int(threadIdx.x) % 4 * 2 + i % 2 < at.t) most = fmaxf(most, s[i]);
      row[half].base = warp_reduce<4>(most, MaxOp{}) * factor;
    }
  }
  constexpr int kLeast = kTokens <= 80 ? 0 : kTokens - 64, kStep = 16;  // less than t
  Distances<kStep / 8> distances(at, 0);
#pragma unroll
  for (int key = 0; key < kTokens; key += kStep) {
    float* of = s + key / 2;
    const Distances<kStep / 8> next(at, key + kStep < kTokens ? key + kStep : 0);
    if (key + kStep > kLeast && at.t - key < kStep) hide<kStep / 8>(of, key, at.t);
    weigh<kStep / 8>(of, row, factor);
    if (key == 0) {
      add_linear<kStep / 8, div_up(int(kMostPrefix), 8)>(of, distances, row, at, 0);
    } else {
      add_linear<kStep / 8, 0>(of, distances, row, at, key);
    }
    distances = next;
  }
  if (threadIdx.x % 4 == 0) row[0].first = s[0], row[1].first = s[2];
}

/// 8 kN columns, two rows of a lane weighted and added, to `work` [kUnit][kColumnStride] of the warp.
template <int kN>
__device__ __forceinline__ void put_columns(const float* e, float upper, float lower, float* work) {
  const int lane = int(threadIdx.x) % kWarp;
  float* mine = work + lane % 4 * 2 * kColumnStride + lane / 4;
#pragma unroll
  for (int n = 0; n < kN; ++n) {
    const float* of = e + n * 4;
    mine[n * 8 * kColumnStride] = fmaf(of[0], upper, of[2] * lower);
    mine[(n * 8 + 1) * kColumnStride] = fmaf(of[1], upper, of[3] * lower);
  }
}
/// Sum of column `lane` over the warp's rows.
__device__ __forceinline__ float sum_of_column(const float* work) {
  const int lane = int(threadIdx.x) % kWarp;
  const float4* from = reinterpret_cast<const float4*>(work + lane * kColumnStride);
  const float4 a = from[0], b = from[1];
  return ((a.x + a.y) + (a.z + a.w)) + ((b.x + b.y) + (b.z + b.w));
}
/// Adds the sums of all columns to `to`; both places for the work are the warp's, and used in turn.
template <int kTokens>
__device__ __forceinline__ void add_columns(const float (&e)[kTokens / 2], float upper, float lower,
                                            float* work, float* other, float* to) {
  constexpr int kRest = kTokens % kUnit == 0 ? kUnit / 8 : kTokens % kUnit / 8;
  const int lane = int(threadIdx.x) % kWarp;
  __syncwarp();
  put_columns<kUnit / 8>(e, upper, lower, work);
#pragma unroll
  for (int key = 0; key < kTokens; key += kUnit) {
    float* const here = key / kUnit % 2 == 0 ? work : other;
    float* const next = key / kUnit % 2 == 0 ? other : work;
    __syncwarp();
    const float before = key + lane < kTokens ? to[key + lane] : 0;
    if (key + 2 * kUnit <= kTokens) {
      put_columns<kUnit / 8>(e + (key + kUnit) / 2, upper, lower, next);
    } else if (key + kUnit < kTokens) {
      put_columns<kRest>(e + (key + kUnit) / 2, upper, lower, next);
    }
    const float sum = sum_of_column(here);
    if (key + lane < kTokens) to[key + lane] = before + sum;
  }
  __syncwarp();
}

/// Adds the prefix rows, which are among the first of lanes' rows, one by one to `to`.
template <int kTokens>
__device__ __forceinline__ void add_prefix_rows(const float (&e)[kTokens / 2], float weight,
                                                const WarpRows& at, float* to) {
  static_assert(kMostPrefix <= 8);
  float2* mine = reinterpret_cast<float2*>(to) + threadIdx.x % 4;
#pragma unroll 1
  for (int i = 0; i < at.prefix; ++i) {
    if (at.row(0) == i) {
#pragma unroll
      for (int n = 0; n < kTokens / 8; ++n) {
        const float2 before = mine[n * 4];
        mine[n * 4] = make_float2(fmaf(e[4 * n], weight, before.x), fmaf(e[4 * n + 1], weight, before.y));
      }
    }
    __syncwarp();
  }
}

/// Rows that are not finite are left out of the sums of columns, whose largest nobody then asks for.
template <int kCount>
__device__ __forceinline__ void leave_out_not_finite(float* e, Shares& shares) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const bool finite = shares.weight[half] < infinity_<float>();
    if (__all_sync(0xffffffffu, finite)) continue;
    asm volatile("" ::: "memory");  // stays a branch
    if (!finite) shares.weight[half] = 0;
#pragma unroll
    for (int i = 2 * half; i < kCount; i += i % 2 == 0 ? 1 : 3)
      if (!finite) e[i] = 0;
  }
}

/// Row i by a warp, whose lanes share the keys, from its products with all of them, which become weights;
/// adds to the warp's sums of columns. Loops stay loops: a block comes here once or twice, and waits for
/// code.
template <int kTokens, class Store>
__device__ __forceinline__ void measure_row(const Room<kTokens>& room, const MapLayout& m, int i,
                                            float* weights, float factor, float error, Store store) {
  const int lane = int(threadIdx.x) % kWarp, t = int(m.t);
  const WarpRows at(m, room.tables, i - lane / 4);  // row 0 of every lane
  float most = -infinity_<float>();
#pragma unroll 1
  for (int j = lane; j < t; j += kWarp) most = max_(most, weights[j]);
  Row row[2];
  Row& r = row[0];
  r.base = warp_reduce<kWarp>(most, MaxOp{}) * factor;
#pragma unroll 1
  for (int j = lane; j < t; j += kWarp) {
    const float x = fmaf(weights[j], factor, -r.base), e = exp2_fast(x);
    const float distance = *reinterpret_cast<const float*>(at.from[0] + at.offsets[j]);
    const float patch = j < at.prefix ? 0 : e;
    weights[j] = e;
    r.first = j == 0 ? e : r.first;
    r.weighted = fmaf(e, x, r.weighted), r.squares = fmaf(e, e, r.squares);
    r.sum += patch, r.prefix += e - patch;
    r.distance = fmaf(patch, distance, r.distance);
    r.window3 = fmaf(patch, in_window3(distance), r.window3);
    r.window5 = fmaf(patch, in_window5(distance), r.window5);
  }
  // The quad's lanes have different parts of the sums, all quads the same.
  float Row::*const sums[] = {&Row::sum,      &Row::prefix,  &Row::weighted, &Row::squares,
                              &Row::distance, &Row::window3, &Row::window5,  &Row::first};
#pragma unroll
  for (int i = 0; i < 8; ++i)
#pragma unroll
    for (int apart = 4; apart < kWarp; apart *= 2) r.*sums[i] += shuffle_xor(r.*sums[i], apart);
  Facts facts;
  Shares shares(row, at, error, facts);
  Counts counts;
  bool close = false;
  int below = 0;  // the first bound, and the second in the upper half
  const bool finite = shares.weight[0] < infinity_<float>();
  float* to = room.columns + warp_here() * kTokens;
#pragma unroll 1
  for (int j = lane; j < t; j += kWarp) {
    const float e = weights[j];
#pragma unroll
    for (int bound = 0; bound < 2; ++bound) {
      const float step = shares.bounds.step(e, bound, 0);
      close |= step > 0 && step < 1;
      below += step == 1 ? 1 << bound * 16 : 0;
    }
    if (finite) to[j] = fmaf(e, shares.weight[0], to[j]);
  }
  below = int(__reduce_add_sync(0xffffffffu, unsigned(below)));
  if (lane % 4 == 0) {
    counts.below[0] = float(below & 0xffff), counts.below_uniform[0] = float(below >> 16);
    counts.squares[0] = counts.below[0] + counts.below_uniform[0];
  }
  if (__any_sync(0xffffffffu, close)) counts.squares[0] -= 1;
  if (lane != 0 && lane != 2) facts.row = t;  // two lanes report
  store(facts, shares, counts, at, error, 0);
}

/// The last 16 rows or fewer, from row `first` on, by all warps of the block: products by keys, then each has
/// every fourth row.
template <int kTokens, class Store>
__device__ __forceinline__ void measure_last(const Room<kTokens>& room, const MapLayout& m, int first,
                                             float factor, float key_square, float scale, Store store) {
  constexpr int kMine = div_up(div_up(kTokens, kUnit), kWarps);
  const int warp = warp_here(), lane = int(threadIdx.x) % kWarp, t = int(m.t);
  float s[kMine][kUnit / 8][4] = {};
#pragma unroll
  for (int u = 0; u < kMine; ++u)
    if (const int key = (u * kWarps + warp) * kUnit; key < t)
      products_of_warp(s[u], room.q, first, room.k, key, kTokens - key);
  const float error = error_of(key_square * largest_square(room.q, first), kSwizzleColumns, scale, t);
#pragma unroll 1
  for (int begin = first; begin < t; begin += kLastRows) {
    __syncthreads();
#pragma unroll
    for (int u = 0; u < kMine; ++u)
#pragma unroll
      for (int n = 0; n < kUnit / 8; ++n) {
        const int key = (u * kWarps + warp) * kUnit + n * 8 + lane % 4 * 2;
        const float* of = s[u][n];
        const float2 two = begin == first ? make_float2(of[0], of[1]) : make_float2(of[2], of[3]);
        if (key < kTokens) *reinterpret_cast<float2*>(room.work + lane / 4 * kTokens + key) = two;
      }
    __syncthreads();
#pragma unroll 1
    for (int i = begin + warp; i < min(t, begin + kLastRows); i += kWarps)
      measure_row(room, m, i, room.work + (i - begin) * kTokens, factor, error, store);
  }
}

}  // namespace occam::kernels::short_maps

#endif
