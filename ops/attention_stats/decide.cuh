#pragma once
// What f32 could not tell of a row, in f64: row by row by a block, or without order some rows together.
#include "core/cuda/reduce.cuh"
#include "ops/attention_stats/records.h"

namespace occam::kernels {

/// The bf16 in the upper half of x, times 2^-896: exact, whatever the number.
__device__ __forceinline__ double widened(uint32_t x) {
  return __hiloint2double((int(x) >> 3) & int(0x8fffe000), 0);
}

/// Sum over the block; `room` has a number for each warp.
__device__ __forceinline__ double sum_of_block(double x, double* room) {
  using namespace cuda;
  x = warp_sum(x);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) room[threadIdx.x / kWarp] = x;
  __syncthreads();
  double sum = 0;
  for (int w = 0; w < int(blockDim.x) / kWarp; ++w) sum += room[w];
  return sum;
}

/// f(i), all threads together, for every thread i whose `wanted` is set. Ends synchronised.
template <class F>
__device__ __forceinline__ void for_wanted(bool wanted, F f) {
  using namespace cuda;
  __shared__ unsigned masks[kWarp];
  const unsigned mine = __ballot_sync(0xffffffffu, wanted);
  if (threadIdx.x % kWarp == 0) masks[threadIdx.x / kWarp] = mine;
  __syncthreads();
  for (int w = 0; w < int(blockDim.x) / kWarp; ++w)
    for (unsigned left = masks[w]; left != 0; left &= left - 1) {
      f(w * kWarp + __ffs(int(left)) - 1);
      __syncthreads();
    }
}

/// Bytes of `room` for decide_row.
inline OCCAM_HD int64_t decide_bytes(int64_t t, int64_t d) { return (t + d + 32) * int64_t(sizeof(double)); }

/// Row i, whose record is v, by the block; its mass support only when the record has kNoSupport. `pack`(j,
/// c): elements 8c .. 8c+7 of key j; d is a multiple of 8; weights are taken relative to 2^base. Synchronised
/// before and after.
template <class Pack>
__device__ __forceinline__ void decide_row(const Pack& pack, const bf16* query, int d, double scale,
                                           double base, int i, const MapLayout& m, double* room, float* v) {
  double *sums = room, *q = room + 32, *a = q + d;
  const int thread = int(threadIdx.x), threads = int(blockDim.x), t = int(m.t);
  const bool places = v[kAttentionDistance] == kNoMass, support = v[kMassSupport] == kNoSupport;
  for (int c = thread; c < d; c += threads) q[c] = double(float(query[c])) * 0x1p896;
  __syncthreads();
  double sum = 0;
#pragma unroll 1
  for (int j = thread; j < t; j += threads) {
    double score[4] = {};
#pragma unroll 2
    for (int c = 0; c < d / 8; ++c) {
      const uint4 eight = pack(j, c);
      const uint32_t words[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        score[n] = fma(q[c * 8 + 2 * n], widened(words[n] << 16), score[n]);
        score[n] = fma(q[c * 8 + 2 * n + 1], widened(words[n]), score[n]);
      }
    }
    sum += a[j] = exp(scale * ((score[0] + score[1]) + (score[2] + score[3])) - base * 0.6931471805599453);
  }
  const double inverse = 1 / sum_of_block(sum, sums), n = double(t);
  int below = 0, below_uniform = 0, before = 0;
#pragma unroll 1
  for (int first = 0; first < t; first += threads) {
    const int j = first + thread;
    const double own = j < t ? a[j] : 0, p = j < t ? own * inverse : 1;
    below += __syncthreads_count(p < kShareThreshold * (1 - kTie));
    below_uniform += __syncthreads_count(p < 1 / n * (1 - kTie));
    if (!support) continue;
    double mass[4] = {own};  // of the entries up to this one, the largest first
    if (j < t) {
#pragma unroll 1
      for (int k = 0; k < t; k += 4)
#pragma unroll
        for (int u = 0; u < 4; ++u) {
          const double other = k + u < t ? a[k + u] : 0;
          mass[u] += other > own || (other == own && k + u < j) ? other : 0;
        }
    }
    const double up_to = ((mass[0] + mass[1]) + (mass[2] + mass[3])) * inverse;
    before += __syncthreads_count(j < t && up_to < kSupportMass * (1 - kTie));
  }
  if (thread == 0) {
    v[kThresholdShare] = float(below / n), v[kThresholdShareUniform] = float(below_uniform / n);
    if (support) v[kMassSupport] = float(min(before + 1, t) / n);
    v[kSinkMassMax] = fabsf(v[kSinkMassMax]);
  }
  if (!places) return;
  const int gw = int(m.grid_w), patch = i - int(m.prefix), y = patch / gw, x = patch % gw;
  double mass = 0, distance = 0, window3 = 0, window5 = 0;
  for (int key = thread; key < t - int(m.prefix); key += threads) {
    const int dy = key / gw - y, dx = key % gw - x, reach = max(abs(dy), abs(dx));
    const double p = a[key + m.prefix] * inverse;
    mass += p, distance += p * sqrt(double(dy * dy + dx * dx));
    window3 += reach <= 1 ? p : 0, window5 += reach <= 2 ? p : 0;
  }
  mass = sum_of_block(mass, sums), distance = sum_of_block(distance, sums);
  window3 = sum_of_block(window3, sums), window5 = sum_of_block(window5, sums);
  if (thread > 0) return;
  v[kAttentionDistance] = mass > 0 ? float(distance / mass) : __int_as_float(0x7fc00000);
  v[kWindowMass3] = float(window3), v[kWindowMass5] = float(window5);
}

/// e^x for x up to about 0, within 1e-11 of itself; 0 below -700. Without a branch, so that a lane's calls
/// overlap.
__device__ __forceinline__ double exp_of_negative(double x) {
  const double magic =
      6755399441055744.0;  // 1.5 * 2^52: rounds to whole numbers, which stand in its last bits
  const double shifted = fma(x, 1.4426950408889634, magic), n = shifted - magic;
  const double r = fma(n, -1.9082149292705877e-10, fma(n, -0.6931471803691238, x));  // ln 2 in two parts
  double y = 1.0 / 362880;
  const double terms[] = {1.0 / 40320, 1.0 / 5040, 1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0};
#pragma unroll
  for (double term : terms) y = fma(y, r, term);
  const double scaled =
      __hiloint2double(__double2hiint(y) + (__double2loint(shifted) << 20), __double2loint(y));
  return x < -700 ? 0 : scaled;
}

/// Rows of a map with d = 64 and at most kTokens keys, without order, by a block of four warps: four rows
/// at a time, a thread having every 128th key of each, then a warp a row.
template <int kTokens>
struct Decision {
  static constexpr int kRows = 4, kThreads = kRows * cuda::kWarp, kHead = 64;
  static constexpr int kKeys = cuda::div_up(kTokens, kThreads);
  static constexpr int kRoom = kRows * (kHead + kTokens);  // f64 numbers: [rows][head], [rows][tokens]

  const bf16* queries;
  int64_t stride;  // from query to query
  double scale;
  const MapLayout& m;
  double* room;
  float* records;
  int slot;  // from record to record

  /// `rows` [count]; `pack`(j, c): elements 8c .. 8c+7 of key j < kTokens. Synchronised before, and after.
  template <class Pack>
  __device__ __forceinline__ void rows(int count, const uint8_t* rows, const Pack& pack) const {
    using namespace cuda;
    const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
    double* q = room;
#pragma unroll 1
    for (int first = 0; first < count; first += kRows) {
      const int here = min(kRows, count - first);
      if (warp < here) {
        const uint32_t two = reinterpret_cast<const uint32_t*>(queries + rows[first + warp] * stride)[lane];
        reinterpret_cast<double2*>(q + warp * kHead)[lane] = {low(two), high(two)};
      }
      __syncthreads();
      products(here, pack);
#pragma unroll 1
      for (int r = 0; r < here; ++r) weigh(r, double(records[rows[first + r] * slot + kTopMass1]));
      __syncthreads();
      if (warp < here) finish(warp, rows[first + warp]);
      __syncthreads();
    }
  }

 private:
  __device__ __forceinline__ double* weights(int r) const { return room + kRows * kHead + r * kTokens; }
  static __device__ __forceinline__ int key(int u) { return u * kThreads + int(threadIdx.x); }

  static __device__ __forceinline__ double low(uint32_t two) { return double(__uint_as_float(two << 16)); }
  static __device__ __forceinline__ double high(uint32_t two) {
    return double(__uint_as_float(two & 0xffff0000u));
  }

  /// Products of the first queries with all keys.
  template <class Pack>
  __device__ __forceinline__ void products(int here, const Pack& pack) const {
    double sums[kRows][kKeys][2] = {};
#pragma unroll 1
    for (int c = 0; c < kHead / 8; ++c) {
      uint4 k[kKeys];
#pragma unroll
      for (int u = 0; u < kKeys; ++u) k[u] = pack(min(key(u), kTokens - 1), c);
      double2 of_keys[kKeys][4];
#pragma unroll
      for (int u = 0; u < kKeys; ++u) {
        const uint32_t parts[4] = {k[u].x, k[u].y, k[u].z, k[u].w};
#pragma unroll
        for (int n = 0; n < 4; ++n) of_keys[u][n] = {low(parts[n]), high(parts[n])};
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (r >= here) break;
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const double2 q = reinterpret_cast<const double2*>(room + r * kHead)[c * 4 + n];
#pragma unroll
          for (int u = 0; u < kKeys; ++u) {
            sums[r][u][0] = fma(q.x, of_keys[u][n].x, sums[r][u][0]);
            sums[r][u][1] = fma(q.y, of_keys[u][n].y, sums[r][u][1]);
          }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int u = 0; u < kKeys; ++u)
        if (r < here && key(u) < kTokens) weights(r)[key(u)] = sums[r][u][0] + sums[r][u][1];
  }

  /// The thread's products become weights, relative to 2^base.
  __device__ __forceinline__ void weigh(int r, double base) const {
#pragma unroll
    for (int u = 0; u < kKeys; ++u) {
      const int j = key(u);
      double& of = weights(r)[j];
      if (j < kTokens) of = j < m.t ? exp_of_negative(fma(of, scale, base * -0.6931471805599453)) : 0;
    }
  }

  /// Row i from its weights, by a warp.
  __device__ __forceinline__ void finish(int r, int i) const {
    using namespace cuda;
    const int lane = int(threadIdx.x) % kWarp, t = int(m.t), prefix = int(m.prefix);
    const double* e = weights(r);
    float* v = records + i * slot;
    const bool places = v[kAttentionDistance] == kNoMass;
    constexpr int kUnits = div_up(kTokens, kWarp);
    double own[kUnits], sum = 0;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const int j = u * kWarp + lane;
      own[u] = j < kTokens ? e[j] : 0;  // 0 from t on
      sum += own[u];
    }
    const double total = warp_sum(sum), n = double(t);
    const double share = total * (kShareThreshold * (1 - kTie)), uniform = total * (1 - kTie);
    unsigned below = 0, below_uniform = 0;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) below += own[u] < share, below_uniform += own[u] * n < uniform;
    constexpr unsigned kCounted = kUnits * kWarp;
    below = __reduce_add_sync(0xffffffffu, below) - (kCounted - unsigned(t));
    below_uniform = __reduce_add_sync(0xffffffffu, below_uniform) - (kCounted - unsigned(t));
    if (lane == 0) {
      v[kThresholdShare] = __fdividef(float(below), float(t));
      v[kThresholdShareUniform] = __fdividef(float(below_uniform), float(t));
      v[kGini] = v[kTopMass1] = __int_as_float(0x7fc00000);
      v[kSinkMassMax] = fabsf(v[kSinkMassMax]);
    }
    if (!places) return;
    const int gw = int(m.grid_w), patch = i - prefix, y = patch / gw, x = patch % gw;
    double mass = 0, distance = 0, window3 = 0, window5 = 0;
#pragma unroll 1
    for (int j = prefix + lane; j < t; j += kWarp) {
      const int dy = (j - prefix) / gw - y, dx = (j - prefix) % gw - x, reach = max(abs(dy), abs(dx));
      mass += e[j], distance += e[j] * sqrt(double(dy * dy + dx * dx));
      window3 += reach <= 1 ? e[j] : 0, window5 += reach <= 2 ? e[j] : 0;
    }
    mass = warp_sum(mass), distance = warp_sum(distance);
    window3 = warp_sum(window3), window5 = warp_sum(window5);
    if (lane > 0) return;
    v[kAttentionDistance] = mass > 0 ? float(distance / mass) : __int_as_float(0x7fc00000);
    v[kWindowMass3] = float(window3 / total), v[kWindowMass5] = float(window5 / total);
  }
};

}  // namespace occam::kernels
