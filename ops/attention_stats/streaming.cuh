#pragma once
// What a warp does with the scores of its 16 rows to get all statistics that need no order, wherever the
// scores come from. First all that is linear in the weights 2^x of a row is added up, then, their sum being
// known, what needs probabilities; first_pass and second_pass do so for scores that are made twice, 8 or 32
// keys at a time. A lane's scores are those of mma.cuh: rows g and g+8, of every 8 keys those at 2q and 2q+1.
// Derivations: README.md.
#include "ops/attention_stats/counting.cuh"
#include "ops/attention_stats/records.h"

namespace occam::kernels::streaming {

__device__ __forceinline__ float quad_sum(float x) { return warp_reduce<4>(x, SumOp{}); }
__device__ __forceinline__ float nan_f() { return __int_as_float(0x7fc00000); }

/// How far a probability may be off, relative to itself: README.md, "Counts".
__device__ __forceinline__ float error_of(float longest_squares, int d, float scale, int t) {
  return 4 * kUnitF32 * sqrt_fast(float(d)) * scale * sqrt_fast(longest_squares) +
         (36 + float(t) / kUnit) * kUnitF32;
}

/// What a lane adds up of one of its two rows. Weights are relative to 2^base; `sum` is over patch keys.
struct Row {
  float base, sum = 0, prefix = 0, weighted = 0, squares = 0;
  float distance = 0, window3 = 0, window5 = 0, first = 0;
};

/// Scores of keys that do not exist among the 8 kN from `key` on.
template <int kN>
__device__ __forceinline__ void hide(float* s, int key, int t) {
  const int left = t - key - int(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int i = 0; i < 4 * kN; ++i)
    if (i / 4 * 8 + i % 2 >= left) s[i] = kHidden;
}

/// Largest raw product of the row in the quad.
template <int kN>
__device__ __forceinline__ float largest_product(const float* s, int half) {
  float most = s[2 * half];
#pragma unroll
  for (int n = 0; n < kN; ++n) most = fmaxf(most, fmaxf(s[4 * n + 2 * half], s[4 * n + 2 * half + 1]));
  return warp_reduce<4>(most, MaxOp{});
}

/// The same in a lane's own, as bits, and no less than 0: floats above 0, and NaN, are in the order of their
/// bits.
template <int kN>
__device__ __forceinline__ int largest_bits(const float* s, int half) {
  int most = 0;
#pragma unroll
  for (int i = 2 * half; i < 4 * kN; i += 4)
    most = __vimax3_s32(most, __float_as_int(s[i]), __float_as_int(s[i + 1]));
  return most;
}

/// Sums relative to 2^(base + shift).
__device__ __forceinline__ void raise(Row& r, float shift) {
  const float scale = exp2_fast(-shift);
  r.weighted = (r.weighted - shift * (r.sum + r.prefix)) * scale;
  r.squares *= scale * scale;
  r.sum *= scale, r.prefix *= scale, r.first *= scale;
  r.distance *= scale, r.window3 *= scale, r.window5 *= scale;
  r.base += shift;
}

/// Adds what is linear in the weights e [4 kN] of the 8 kN keys from `key` on, kN = 1 or even. Only the
/// first 8 kPrefix may be prefix keys.
template <int kN, int kPrefix>
__device__ __forceinline__ void add_linear(const float* e, const Distances<kN>& distances, Row (&row)[2],
                                           const WarpRows& at, int key) {
  constexpr int kStep = kN < 2 ? kN : 2;  // 16 keys near the warp's rows or not
  float sum[2];
#pragma unroll
  for (int n = 0; n < kN; n += kStep) {
    const int begin = key + n * 8;
    float patch[4 * kStep];
#pragma unroll
    for (int i = 0; i < 4 * kStep; ++i) patch[i] = e[4 * n + i];
    if (n < kPrefix && begin < at.prefix) {
#pragma unroll
      for (int i = 0; i < 4 * kStep; ++i)
        if (begin + i / 4 * 8 + int(threadIdx.x) % 4 * 2 + i % 2 < at.prefix)
          row[i / 2 % 2].prefix += patch[i], patch[i] = 0;
    }
#pragma unroll
    for (int i = 0; i < 4 * kStep; ++i) {
      Row& r = row[i / 2 % 2];
      r.distance = fmaf(patch[i], distances.v[4 * n + i], r.distance);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float* of = patch + 2 * half;
      const float here = kStep == 1 ? of[0] + of[1] : (of[0] + of[1]) + (of[4] + of[5]);
      sum[half] = n == 0 ? here : sum[half] + here;
    }
    if (begin < at.band_end && begin + 8 * kStep > at.band_begin) {
#pragma unroll
      for (int i = 0; i < 4 * kStep; ++i) {
        const float distance = distances.v[4 * n + i];
        Row& r = row[i / 2 % 2];
        r.window3 = fmaf(patch[i], in_window3(distance), r.window3);
        r.window5 = fmaf(patch[i], in_window5(distance), r.window5);
      }
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) row[half].sum += sum[half];
}

/// Raw products s [4 kN] become weights; score = s * factor, to base 2.
template <int kN>
__device__ __forceinline__ void weigh(float* s, Row (&row)[2], float factor) {
#pragma unroll
  for (int i = 0; i < 4 * kN; ++i) {
    Row& r = row[i / 2 % 2];
    const float x = fmaf(s[i], factor, -r.base), e = exp2_fast(x);
    r.weighted = fmaf(e, x, r.weighted);  // 0 * -inf is NaN, as it should: not a finite score
    r.squares = fmaf(e, e, r.squares);
    s[i] = e;
  }
}

/// s [4 kN]: raw products of the warp's rows with the 8 kN keys from `key` on.
/// The base is the maximum of the first keys and is raised only when an exponent grows too large for it.
template <int kN>
__device__ __forceinline__ void first_pass(float* s, Row (&row)[2], const WarpRows& at, float factor,
                                           float inverse_factor, int key) {
  if (at.t - key < 8 * kN) hide<kN>(s, key, at.t);
  if (key == 0) {
#pragma unroll
    for (int half = 0; half < 2; ++half) row[half].base = largest_product<kN>(s, half) * factor;
  }
  bool fits = true;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float limit = (row[half].base + kMostExponent) * inverse_factor;
    fits = fits && limit > 0 && largest_bits<kN>(s, half) <= __float_as_int(limit);
  }
  if (!__all_sync(0xffffffffu, fits)) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      raise(row[half], fmaxf(0, largest_product<kN>(s, half) * factor - row[half].base));
  }
  weigh<kN>(s, row, factor);
  if (key == 0 && int(threadIdx.x) % 4 == 0) row[0].first = s[0], row[1].first = s[2];
  add_linear<kN, kN>(s, Distances<kN>(at, key), row, at, key);
}

/// What the first pass tells of the row that a lane of the quad reports: row g of lanes 0 and 2, g + 8 of
/// lanes 1 and 3.
struct Facts {
  int row;
  float entropy, hoyer, distance, window3, window5, cls;  // entropy: not finite when a score is not
  bool without_mass;                                      // too little on patch keys for their mean distance
};
template <class T>
__device__ __forceinline__ T reported(const T (&of_rows)[2]) {
  return threadIdx.x % 2 == 0 ? of_rows[0] : of_rows[1];
}
/// Sum over the quad for the row that the lane reports.
template <class T>
__device__ __forceinline__ T reported_sum(T upper, T lower) {
  const bool even = threadIdx.x % 2 == 0;
  const T x = (even ? upper : lower) + shuffle_xor(even ? lower : upper, 1);
  return x + shuffle_xor(x, 2);
}

/// Between the passes: what the second one compares with and adds up.
struct Shares {
  float base[2], weight[2];  // 1 / sum of the row; 0 for a row that is none
  Below bounds;
  float largest = 0;  // largest weight of row g, in a warp with prefix rows
  __device__ __forceinline__ Shares(const Row (&row)[2], const WarpRows& at, float error, Facts& facts) {
    const float half_band = 0.5f * reciprocal_fast(error * Below::kWider);
    bounds.middle = 0.5f + half_band;
    float mass[2], total[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      mass[h] = quad_sum(row[h].sum);
      total[h] = mass[h] + quad_sum(row[h].prefix);
      base[h] = row[h].base;
      const float inverse = reciprocal_fast(total[h]);
      weight[h] = at.row(h) < at.t ? inverse : 0;
      bounds.slope[0][h] = half_band * inverse * float(1 / kShareThreshold);
      bounds.slope[1][h] = half_band * inverse * float(at.t);
    }
    const auto sum_of = [&](float Row::*x) { return reported_sum(row[0].*x, row[1].*x); };
    const float sum = reported(total), of_patch = reported(mass), inverse = reciprocal_fast(sum);
    const float root = sqrt_fast(float(at.t));
    facts.row = at.row(0) + int(threadIdx.x) % 2 * 8;
    facts.entropy = kLn * (log2f(sum) - sum_of(&Row::weighted) * inverse);
    facts.hoyer = (root - sum * rsqrtf(sum_of(&Row::squares))) * reciprocal_fast(root - 1);
    facts.distance = sum_of(&Row::distance) * reciprocal_fast(of_patch);
    facts.window3 = sum_of(&Row::window3) * inverse, facts.window5 = sum_of(&Row::window5) * inverse;
    facts.cls = sum_of(&Row::first) * inverse;
    // Far above what 2^x loses below 2^-126.
    facts.without_mass = of_patch < 1e-20f * sum;
  }
};

/// Adds sums over the warp's rows of 8 kN columns, weighted by row, to `to`.
template <int kN>
__device__ __forceinline__ void add_columns(const float* e, float upper, float lower, float* work,
                                            float* to) {
  const int lane = int(threadIdx.x) % kWarp;
  float* mine = work + lane / 4 * kWorkStride + lane % 4 * 2;
#pragma unroll
  for (int n = 0; n < kN; ++n)
    *reinterpret_cast<float2*>(mine + n * 8) = make_float2(fmaf(e[4 * n], upper, e[4 * n + 2] * lower),
                                                           fmaf(e[4 * n + 1], upper, e[4 * n + 3] * lower));
  __syncwarp();
  if (lane < 8 * kN) {
    float sum = to[lane];
#pragma unroll
    for (int g = 0; g < 8; ++g) sum += work[g * kWorkStride + lane];
    to[lane] = sum;
  }
  __syncwarp();
}

/// The same products again. `work`: kWorkFloats of the warp; the sums are those of the 8 kN columns.
template <int kN>
__device__ __forceinline__ void second_pass(float* s, Shares& shares, const WarpRows& at, float factor,
                                            int key, float* work, float* patch_sums, float* prefix_sums) {
  if (at.t - key < 8 * kN) hide<kN>(s, key, at.t);
#pragma unroll
  for (int i = 0; i < 4 * kN; ++i) s[i] = exp2_fast(fmaf(s[i], factor, -shares.base[i / 2 % 2]));
  shares.bounds.add<kN>(s);
  if (at.first >= at.prefix) {
    add_columns<kN>(s, shares.weight[0], shares.weight[1], work, patch_sums);
    return;
  }
  // A row that is not finite must not enter the other kind's sums by 0 * NaN.
#pragma unroll 1
  for (int kind = 0; kind < 2; ++kind) {
    float of_kind[4 * kN];
#pragma unroll
    for (int i = 0; i < 4 * kN; ++i) of_kind[i] = (at.row(i / 2 % 2) < at.prefix) == (kind == 1) ? s[i] : 0;
    const float upper = (at.row(0) < at.prefix) == (kind == 1) ? shares.weight[0] : 0;
    const float lower = (at.row(1) < at.prefix) == (kind == 1) ? shares.weight[1] : 0;
    add_columns<kN>(of_kind, upper, lower, work, kind == 0 ? patch_sums : prefix_sums);
  }
#pragma unroll
  for (int i = 0; i < 4 * kN; ++i)
    if (i / 2 % 2 == 0) shares.largest = fmaxf(shares.largest, s[i]);
}

/// Statistics of the row that a lane reports, for its record (records.h). `hidden`: keys that were counted
/// and do not exist.
struct Statistics {
  float v[kStats];
  bool undecided;
  __device__ __forceinline__ Statistics(const Facts& f, const Shares& s, const Counts& c, const WarpRows& at,
                                        int hidden) {
    const float below = reported_sum(c.below[0], c.below[1]);
    const float below_uniform = reported_sum(c.below_uniform[0], c.below_uniform[1]);
    const float squares = reported_sum(c.squares[0], c.squares[1]);
    const float largest = at.first < at.prefix ? warp_reduce<4>(s.largest, MaxOp{}) : 0;
    const float t = float(at.t), uniform = reciprocal_fast(t);
    const bool finite = fabsf(f.entropy) < infinity_<float>(), spatial = finite && f.row >= at.prefix;
    undecided = finite && ((spatial && f.without_mass) || below + below_uniform != squares);
#pragma unroll
    for (int k = 0; k < kStats; ++k) v[k] = nan_f();
    if (!finite) return;
    v[kThresholdShare] = (below - float(hidden)) * uniform;
    v[kThresholdShareUniform] = (below_uniform - float(hidden)) * uniform;
    if (at.t > 1) v[kEntropy] = f.entropy * reciprocal_fast(__logf(t)), v[kHoyer] = f.hoyer;
    v[kEffectiveSupport] = exp2_fast(f.entropy * kLog2);
    if (spatial) {
      v[kAttentionDistance] = f.without_mass ? kNoMass : f.distance;
      v[kWindowMass3] = f.window3, v[kWindowMass5] = f.window5;
    }
    if (at.prefix > 0) v[kSinkMassCls] = f.cls;
    v[kSinkMassMax] = undecided ? marked(largest * s.weight[0]) : largest * s.weight[0];  // of row 0
  }
  /// With what the kernels that go on with the row want to know.
  __device__ __forceinline__ void tell(float error, float base) {
    if (!isnan(v[kEffectiveSupport])) v[kGini] = error, v[kTopMass1] = base;
  }
  /// All lanes of the quad that report the row.
  __device__ __forceinline__ void store(float* record) const {
    float4* to = reinterpret_cast<float4*>(record);
    if (threadIdx.x % 4 < 2) {
      to[0] = make_float4(v[0], v[1], v[2], v[3]);
      to[1] = make_float4(v[4], v[5], v[6], v[7]);
    } else {
      to[2] = make_float4(v[8], v[9], v[10], v[11]);
      to[3] = make_float4(v[12], v[13], v[14], v[15]);
    }
  }
};

}  // namespace occam::kernels::streaming
