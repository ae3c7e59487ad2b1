// Statistics of attention maps, a row at a time: scores and probabilities of a row live in shared memory in
// f64, so that counts against thresholds are those of exact arithmetic (op.h). Sums have a fixed order: a
// block adds its rows in order into its own part of the scratch, a second kernel adds the parts in order.
#include "core/cuda/launch.h"
#include "core/cuda/reduce.cuh"
#include "core/cuda/vec.cuh"
#include "ops/attention_stats/kernel.h"

namespace occam::kernels {

using namespace cuda;

namespace {

constexpr int kThreads = 128;
constexpr int64_t kWarpRow = 1024;            // rows up to this length are a warp's, longer ones a block's
constexpr int64_t kRowsOfBlock = 32;          // at least
constexpr int64_t kMostParts = 16;            // blocks of one map, beyond kRowsOfBlock rows each
constexpr int kStats = kAttentionStatCount;   // at most a warp
constexpr int64_t kTeams = kThreads / kWarp;  // at most, in a block
constexpr int64_t kTeamNumbers = 2 * kStats + 1;  // of a team: sums over prefix rows, patch rows, a count

int64_t rows_of_block(int64_t t) {
  return div_up(t, kRowsOfBlock) <= kMostParts ? kRowsOfBlock : div_up(t, kMostParts);
}

/// The scratch of a map: for each part column sums [2,t] over prefix rows and over patch rows and the teams'
/// numbers; then the values of row 0.
struct Scratch {
  int64_t t, parts;
  double* base;
  __host__ __device__ int64_t part_numbers() const { return 2 * t + kTeams * kTeamNumbers; }
  __host__ __device__ int64_t map_numbers() const { return parts * part_numbers() + kStats; }
  __device__ double* columns(int64_t map, int64_t part) const {
    return base + map * map_numbers() + part * part_numbers();
  }
  __device__ double* teams(int64_t map, int64_t part) const { return columns(map, part) + 2 * t; }
  __device__ double* cls(int64_t map) const { return base + (map + 1) * map_numbers() - kStats; }
};

Scratch scratch_of(int64_t t, double* base) { return {t, div_up(t, rows_of_block(t)), base}; }

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

/// A block is some rows of one map. Dynamic shared memory: rows [kCount, padded], q [kCount, d].
template <bool kByWarp, bool kPacked, class T>
__global__ void __launch_bounds__(kThreads)
    stats_rows(MapSource<T> s, MapLayout m, Scratch scratch, int padded, int64_t block_rows) {
  using Owner = Team<kByWarp>;
  extern __shared__ double shared[];
  __shared__ double values[Owner::kCount][kStats];
  const int64_t map = blockIdx.x / scratch.parts, part = blockIdx.x % scratch.parts;
  const int64_t begin = part * block_rows, end = min(begin + block_rows, m.t);
  const int team = Owner::index(), rank = Owner::rank();
  double *a = shared + int64_t(team) * padded, *q = shared + int64_t(Owner::kCount) * padded + team * s.d;
  double* columns = scratch.columns(map, part);
  for (int64_t j = threadIdx.x; j < 2 * m.t; j += kThreads) columns[j] = 0;
  double prefix_sum = 0, patch_sum = 0, with_distance = 0;  // of statistic `rank`
  for (int64_t first = begin; first < end; first += Owner::kCount) {
    const int64_t i = first + team;
    double entropy = 0, largest = 0;
    if (i < end) {
      entropy = make_row<Owner, kPacked>(s, m.t, map / s.h, map % s.h, i, q, a);
      for (int64_t j = m.t + rank; j < padded; j += Owner::kSize) a[j] = 0;
    }
    __syncthreads();
    // Column j belongs to one thread, which adds the rows in order.
    for (int64_t j = threadIdx.x; j < m.t; j += kThreads)
      for (int r = 0; r < Owner::kCount && first + r < end; ++r)
        columns[(first + r < m.prefix ? 0 : m.t) + j] += shared[int64_t(r) * padded + j];
    __syncthreads();
    if (i < end) {
      const bool finite = isfinite(entropy);
      if (i == 0 && m.prefix > 0) {
        for (int64_t j = rank; j < m.t; j += Owner::kSize) largest = max_(largest, a[j]);
        largest = Owner::max(largest);
      }
      double* v = values[team];
      row_values<Owner>(a, padded, entropy, i, m, v);
      if (rank < kStats) {
        double value = v[rank];
        if (i == 0 && m.prefix > 0) scratch.cls(map)[rank] = rank == kSinkMassMax && finite ? largest : value;
        // A patch row without mass on patches has no distance and is left out of that mean.
        bool counts = rank != kAttentionDistance || i < m.prefix || !finite || !isnan(value);
        if (counts) (i < m.prefix ? prefix_sum : patch_sum) += value;
        if (counts && i >= m.prefix) ++with_distance;
      }
    }
    __syncthreads();
  }
  double* mine = scratch.teams(map, part) + team * kTeamNumbers;
  if (rank < kStats) mine[rank] = prefix_sum, mine[kStats + rank] = patch_sum;
  if (rank == kAttentionDistance) mine[2 * kStats] = with_distance;
}

/// A block is a map: adds the parts in order.
__global__ void __launch_bounds__(kThreads)
    stats_finish(MapLayout m, Scratch scratch, int teams, float* out) {
  const int64_t map = blockIdx.x;
  double all_max = 0, patch_max = 0;
  for (int64_t j = threadIdx.x; j < m.t; j += kThreads) {
    double prefix = 0, patch = 0;
    for (int64_t part = 0; part < scratch.parts; ++part) {
      prefix += scratch.columns(map, part)[j];
      patch += scratch.columns(map, part)[m.t + j];
    }
    all_max = fmax(all_max, prefix + patch);
    patch_max = fmax(patch_max, patch);
  }
  all_max = block_max(all_max);
  patch_max = block_max(patch_max);
  const int k = int(threadIdx.x);
  if (k >= kStats) return;
  double prefix = 0, patch = 0, prefix_finite = 0, patch_finite = 0, with_distance = 0;
  for (int64_t part = 0; part < scratch.parts; ++part)
    for (int team = 0; team < teams; ++team) {
      const double* from = scratch.teams(map, part) + team * kTeamNumbers;
      prefix += from[k];
      patch += from[kStats + k];
      prefix_finite += from[kEffectiveSupport];
      patch_finite += from[kStats + kEffectiveSupport];
      with_distance += from[2 * kStats];
    }
  const double all_rows = double(m.t), patch_rows = double(m.t - m.prefix);
  const bool spatial = k == kAttentionDistance || k == kWindowMass3 || k == kWindowMass5;
  double of_patch = patch / (k == kAttentionDistance ? with_distance : patch_rows);
  double of_all = spatial ? of_patch : (patch + prefix) / all_rows;
  if (k == kSinkMassMax) {  // NaN when a row was not finite, as for the other keys
    of_all = isfinite(patch_finite + prefix_finite) ? all_max / all_rows : nan_();
    of_patch = isfinite(patch_finite) ? patch_max / patch_rows : nan_();
  }
  float* to = out + map * 3 * kStats + k;
  to[0] = float(of_all);
  to[kStats] = float(m.prefix > 0 ? scratch.cls(map)[k] : nan_());
  to[2 * kStats] = float(of_patch);
}

/// A block is row i of head h, over the batch. Thread x owns the columns x, x + kThreads, ... Dynamic shared
/// memory: a row, its sums and squares [3,t], q [d].
template <bool kPacked, class T>
__global__ void __launch_bounds__(kThreads) moments_rows(MapSource<T> s, int64_t t, float* out) {
  using Block = Team<false>;
  extern __shared__ double shared[];
  double *a = shared, *sum = a + t, *squares = sum + t, *q = squares + t;
  const int64_t h = blockIdx.x / t, i = blockIdx.x % t;
  for (int64_t j = threadIdx.x; j < t; j += kThreads) sum[j] = squares[j] = 0;
  for (int64_t b = 0; b < s.b; ++b) {
    make_row<Block, kPacked>(s, t, b, h, i, q, a);
    for (int64_t j = threadIdx.x; j < t; j += kThreads) {
      sum[j] += a[j];
      squares[j] += a[j] * a[j];
    }
    __syncthreads();  // q is written anew
  }
  float* to = out + (h * t + i) * t;
  for (int64_t j = threadIdx.x; j < t; j += kThreads) {
    to[j] = float(sum[j]);
    to[s.h * t * t + j] = float(squares[j]);
  }
}

/// Can a key be read in packs of 16 bytes?
template <class T>
bool packed(const MapSource<T>& s) {
  return s.maps == nullptr && aligned16(s.qkv) && s.d % kPack<T> == 0;
}

template <bool kByWarp, class T>
void launch_stats(const MapSource<T>& s, const MapLayout& m, const Scratch& scratch, float* out,
                  cudaStream_t stream) {
  constexpr int64_t kTeamCount = Team<kByWarp>::kCount;
  int64_t padded = 1;
  while (padded < m.t) padded *= 2;
  const int64_t bytes = kTeamCount * (padded + s.d) * int64_t(sizeof(double)), maps = s.b * s.h;
  auto* kernel = packed(s) ? stats_rows<kByWarp, true, T> : stats_rows<kByWarp, false, T>;
  allow_shared(kernel, "attention_stats", bytes);
  kernel<<<unsigned(maps * scratch.parts), kThreads, size_t(bytes), stream>>>(s, m, scratch, int(padded),
                                                                              rows_of_block(m.t));
  check_launch("stats_rows", stream);
  stats_finish<<<unsigned(maps), kThreads, 0, stream>>>(m, scratch, int(kTeamCount), out);
  check_launch("stats_finish", stream);
}

}  // namespace

int64_t attention_stats_scratch(int64_t maps, const MapLayout& layout) {
  return maps * scratch_of(layout.t, nullptr).map_numbers();
}

template <class T>
void attention_stats(const MapSource<T>& source, const MapLayout& layout, double* scratch, float* out,
                     void* stream) {
  Scratch parts = scratch_of(layout.t, scratch);
  if (layout.t <= kWarpRow)
    launch_stats<true>(source, layout, parts, out, as_stream(stream));
  else
    launch_stats<false>(source, layout, parts, out, as_stream(stream));
}

template <class T>
void attention_moments(const MapSource<T>& source, int64_t t, float* out, void* stream) {
  const int64_t bytes = (3 * t + source.d) * int64_t(sizeof(double));
  auto* kernel = packed(source) ? moments_rows<true, T> : moments_rows<false, T>;
  allow_shared(kernel, "attention_map_moments", bytes);
  kernel<<<unsigned(source.h * t), kThreads, size_t(bytes), as_stream(stream)>>>(source, t, out);
  check_launch("moments_rows", stream);
}

template void attention_stats(const MapSource<float>&, const MapLayout&, double*, float*, void*);
template void attention_stats(const MapSource<bf16>&, const MapLayout&, double*, float*, void*);
template void attention_moments(const MapSource<float>&, int64_t, float*, void*);
template void attention_moments(const MapSource<bf16>&, int64_t, float*, void*);

}  // namespace occam::kernels
