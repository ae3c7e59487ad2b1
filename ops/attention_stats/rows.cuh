#pragma once
// A row's probabilities and statistics in f64, by a warp or a block, in shared memory: for f32 input, given
// maps and moments, and for the rows of bf16 input whose counts f32 cannot decide.
#include "core/cuda/launch.h"
#include "core/cuda/reduce.cuh"
#include "core/cuda/vec.cuh"
#include "ops/attention_stats/kernel.h"

namespace occam::kernels {

using namespace cuda;

constexpr int kThreads = 128;
constexpr int kStats = kAttentionStatCount;   // at most a warp
constexpr int64_t kTeams = kThreads / kWarp;  // at most, in a block

__device__ __forceinline__ double nan_() { return __longlong_as_double(0x7ff8000000000000ll); }

/// The threads that share a row: a warp, or the block.
template <bool kByWarp>
struct Team {
  static constexpr int kSize = kByWarp ? kWarp : kThreads;
  static constexpr int kCount = kThreads / kSize;  // in a block
  static __device__ int rank() { return int(threadIdx.x) % kSize; }
  static __device__ int index() { return int(threadIdx.x) / kSize; }
  static __device__ void sync() {
    if constexpr (kByWarp)
      __syncwarp();
    else
      __syncthreads();
  }
  template <class Op>
  static __device__ double reduce(double x, double identity, Op op) {
    if constexpr (kByWarp) return warp_reduce<kWarp>(x, op);
    return block_reduce(x, identity, op);
  }
  static __device__ double sum(double x) { return reduce(x, 0.0, SumOp{}); }
  static __device__ double max(double x) { return reduce(x, -infinity_<double>(), MaxOp{}); }
  static __device__ double min(double x) { return reduce(x, infinity_<double>(), MinOp{}); }
  /// Sum of x over the lower ranks.
  static __device__ double sum_before(double x) {
    const int lane = threadIdx.x % kWarp;
    double through = x;
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      double left = __shfl_up_sync(0xffffffffu, through, step);
      if (lane >= step) through += left;
    }
    double before = __shfl_up_sync(0xffffffffu, through, 1);
    if (lane == 0) before = 0;
    if constexpr (!kByWarp) {
      __shared__ double warps[kTeams];
      __syncthreads();
      if (lane == kWarp - 1) warps[threadIdx.x / kWarp] = through;
      __syncthreads();
      double lower = 0;
      for (int i = 0; i < int(threadIdx.x / kWarp); ++i) lower += warps[i];
      before += lower;
    }
    return before;
  }
};

/// q . k in f64; q is in shared memory.
template <bool kPacked, class T>
__device__ __forceinline__ double dot(const double* q, const T* k, int64_t d) {
  double sum = 0;
  if constexpr (kPacked) {
    for (int64_t c = 0; c < d; c += kPack<T>) {
      Pack<T> pack = load_pack(k + c);
#pragma unroll
      for (int j = 0; j < kPack<T>; ++j) sum = fma(q[c + j], double(float(pack.v[j])), sum);
    }
  } else {
    for (int64_t c = 0; c < d; ++c) sum = fma(q[c], double(float(k[c])), sum);
  }
  return sum;
}

/// Row i of map (b, h) as probabilities in a [t]; `q` is room for d numbers. Returns the entropy in nats, not
/// finite when a score is not. The caller's team is in step before, and must synchronise after.
template <class Team, bool kPacked, class T>
__device__ double make_row(const MapSource<T>& s, int64_t t, int64_t b, int64_t h, int64_t i, double* q,
                           double* a) {
  if (s.maps != nullptr) {
    const T* from = s.maps + ((b * s.h + h) * t + i) * t;
    double sum = 0, entropy = 0;
    for (int64_t j = Team::rank(); j < t; j += Team::kSize) sum += a[j] = fabs(double(float(from[j])));
    sum = Team::sum(sum);
    for (int64_t j = Team::rank(); j < t; j += Team::kSize) {
      double x = a[j] / sum;
      a[j] = x;
      if (x != 0) entropy -= x * log(x);
    }
    return Team::sum(entropy);
  }
  const T* own = s.qkv + (((b * t + i) * 3) * s.h + h) * s.d;
  const T* keys = s.qkv + ((b * t * 3 + 1) * s.h + h) * s.d;
  for (int64_t c = Team::rank(); c < s.d; c += Team::kSize) q[c] = double(float(own[c]));
  Team::sync();
  double largest = -infinity_<double>(), sum = 0, weighted = 0;
  for (int64_t j = Team::rank(); j < t; j += Team::kSize) {
    double score = s.scale * dot<kPacked>(q, keys + j * 3 * s.h * s.d, s.d);
    a[j] = score;
    largest = max_(largest, score);
  }
  largest = Team::max(largest);
  for (int64_t j = Team::rank(); j < t; j += Team::kSize) {
    double u = a[j] - largest, e = exp(u);
    a[j] = e;
    sum += e;
    weighted += e * u;  // -inf * 0 is NaN, as it should: a score was not finite
  }
  sum = Team::sum(sum);
  weighted = Team::sum(weighted);
  double inverse = 1 / sum;
  for (int64_t j = Team::rank(); j < t; j += Team::kSize) a[j] *= inverse;
  // With a = e^u / Z: -sum a ln a = ln Z - sum a u.
  return log(sum) - weighted * inverse;
}

/// Batcher's bitonic network, largest first; n is a power of two.
template <class Team>
__device__ void sort_descending(double* a, int n) {
  for (int run = 2; run <= n; run *= 2)
    for (int apart = run / 2; apart > 0; apart /= 2) {
      Team::sync();
      for (int i = Team::rank(); i < n / 2; i += Team::kSize) {
        int low = ((i & ~(apart - 1)) << 1) | (i & (apart - 1)), high = low + apart;
        double x = a[low], y = a[high];
        if ((x < y) == ((low & run) == 0)) a[low] = y, a[high] = x;
      }
    }
  Team::sync();
}

template <class Team>
__device__ void spatial_stats(const double* patches, int64_t patch, const MapLayout& m, double* out) {
  const int gh = int(m.grid_h), gw = int(m.grid_w), y = int(patch) / gw, x = int(patch) % gw;
  double mass = 0, weighted = 0;
  for (int j = Team::rank(); j < gh * gw; j += Team::kSize) {
    int dy = j / gw - y, dx = j % gw - x;
    mass += patches[j];
    weighted += patches[j] * sqrt(double(int64_t(dy) * dy + int64_t(dx) * dx));
  }
  mass = Team::sum(mass);
  weighted = Team::sum(weighted);
  double window5 = 0, window3 = 0;
  if (Team::rank() < 25) {
    int dy = Team::rank() / 5 - 2, dx = Team::rank() % 5 - 2, r = y + dy, c = x + dx;
    if (r >= 0 && r < gh && c >= 0 && c < gw) {
      window5 = patches[r * gw + c];
      if (dy * dy <= 1 && dx * dx <= 1) window3 = window5;
    }
  }
  window5 = Team::sum(window5);
  window3 = Team::sum(window3);
  if (Team::rank() == 0) {
    out[kAttentionDistance] = mass > 0 ? weighted / mass : nan_();
    out[kWindowMass3] = window3;
    out[kWindowMass5] = window5;
  }
}

/// The statistics that need the row in order; a [padded] ends in zeros.
template <class Team>
__device__ void order_stats(double* a, int64_t t, int padded, double* out) {
  sort_descending<Team>(a, padded);
  const int64_t each = div_up<int64_t>(t, Team::kSize), first = Team::rank() * each,
                end = min(first + each, t), tenth = (t + 9) / 10;
  double own = 0, ranked = 0;
  for (int64_t k = first; k < end; ++k) {
    own += a[k];
    ranked += a[k] * (double(k) + 0.5);
  }
  double mass = Team::sum_before(own), support = infinity_<double>();
  for (int64_t k = first + 1; k <= end; ++k) {
    mass += a[k - 1];
    if (support > double(k) && mass >= kSupportMass * (1 - kTie)) support = double(k);
    if (k == min(t, int64_t(1))) out[kTopMass1] = mass;
    if (k == min(t, int64_t(5))) out[kTopMass5] = mass;
    if (k == min(t, int64_t(10))) out[kTopMass10] = mass;
    if (k == tenth) out[kTopMassTenth] = mass;
  }
  ranked = Team::sum(ranked);
  support = Team::min(support);
  if (Team::rank() == 0) {
    out[kGini] = 1 - 2 * ranked / double(t);
    out[kMassSupport] = support / double(t);
  }
}

/// All statistics of row i into out [kStats], except sink_mass_max, which is of the whole map. `a` is left
/// sorted. The team is in step before and after.
template <class Team>
__device__ void row_values(double* a, int padded, double entropy, int64_t i, const MapLayout& m,
                           double* out) {
  if (Team::rank() < kStats) out[Team::rank()] = nan_();
  Team::sync();
  if (!isfinite(entropy)) return;
  const double n = double(m.t), threshold = kShareThreshold * (1 - kTie), uniform = 1 / n * (1 - kTie);
  double below = 0, below_uniform = 0, squares = 0;
  for (int64_t j = Team::rank(); j < m.t; j += Team::kSize) {
    below += a[j] < threshold ? 1 : 0;
    below_uniform += a[j] < uniform ? 1 : 0;
    squares += a[j] * a[j];
  }
  below = Team::sum(below);
  below_uniform = Team::sum(below_uniform);
  squares = Team::sum(squares);
  if (Team::rank() == 0) {
    out[kThresholdShare] = below / n;
    out[kThresholdShareUniform] = below_uniform / n;
    out[kEntropy] = entropy / log(n);
    out[kEffectiveSupport] = exp(entropy);
    out[kHoyer] = (sqrt(n) - 1 / sqrt(squares)) / (sqrt(n) - 1);
    if (m.prefix > 0) out[kSinkMassCls] = a[0];
  }
  if (i >= m.prefix) spatial_stats<Team>(a + m.prefix, i - m.prefix, m, out);
  if (m.order) order_stats<Team>(a, m.t, padded, out);
  Team::sync();
}

}  // namespace occam::kernels
