// Statistics of attention maps in f64, a row at a time, and the means of the rows' values. Sums have a fixed
// order: a block adds its rows in order into its own part of the columns, a second kernel adds the parts in
// order. Rows of bf16 are measured by other kernels, which may leave some undecided.
#include <algorithm>
#include <type_traits>

#include "ops/attention_stats/finish.cuh"
#include "ops/attention_stats/records.h"
#include "ops/attention_stats/rows.cuh"

namespace occam::kernels {

namespace {

constexpr int64_t kWarpRow = 1024;    // rows up to this length are a warp's, longer ones a block's
constexpr int64_t kRowsOfBlock = 32;  // at least
constexpr int64_t kMostParts = 16;    // blocks of one map, beyond kRowsOfBlock rows each
constexpr int kFinishThreads = 512;
constexpr int64_t kRowsOfChecker = 16;  // rows that a block looks at for undecided ones

int64_t rows_of_block(int64_t t) {
  return div_up(t, kRowsOfBlock) <= kMostParts ? kRowsOfBlock : div_up(t, kMostParts);
}
int64_t parts_of(int64_t t) { return div_up(t, rows_of_block(t)); }

/// Statistics of row i into its record. `v` is room for kStats numbers.
template <class Team>
__device__ void write_record(double* a, int padded, double entropy, int64_t i, const MapLayout& m, double* v,
                             float* record) {
  double largest = 0;
  if (i == 0) {
    for (int64_t j = Team::rank(); j < m.t; j += Team::kSize) largest = max_(largest, a[j]);
    largest = isfinite(entropy) ? Team::max(largest) : nan_();
  }
  row_values<Team>(a, padded, entropy, i, m, v);
  const int k = Team::rank();
  if (k < kStats) record[k] = float(k == kSinkMassMax ? largest : v[k]);
}

/// A block is some rows of one map. Dynamic shared memory: rows [kCount, padded], q [kCount, d].
template <bool kByWarp, bool kPacked, class T>
__global__ void __launch_bounds__(kThreads)
    stats_rows(MapSource<T> s, MapLayout m, Records records, int padded, int64_t block_rows) {
  using Owner = Team<kByWarp>;
  extern __shared__ double shared[];
  __shared__ double values[Owner::kCount][kStats];
  const int64_t map = blockIdx.x / records.parts, part = blockIdx.x % records.parts;
  const int64_t begin = part * block_rows, end = min(begin + block_rows, m.t);
  const int team = Owner::index(), rank = Owner::rank();
  double *a = shared + int64_t(team) * padded, *q = shared + int64_t(Owner::kCount) * padded + team * s.d;
  double* columns = records.columns + (map * records.parts + part) * 2 * m.t;
  for (int64_t j = threadIdx.x; j < 2 * m.t; j += kThreads) columns[j] = 0;
  for (int64_t first = begin; first < end; first += Owner::kCount) {
    const int64_t i = first + team;
    double entropy = 0;
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
    if (i < end)
      write_record<Owner>(a, padded, entropy, i, m, values[team], records.values + (map * m.t + i) * kStats);
    __syncthreads();
  }
}

/// The undecided rows anew. Neighbouring rows go to different teams: they tend to be undecided together.
template <bool kByWarp, bool kPacked, class T>
__global__ void __launch_bounds__(kThreads)
    stats_undecided(MapSource<T> s, MapLayout m, Records records, int padded, int64_t rows) {
  using Owner = Team<kByWarp>;
  extern __shared__ double shared[];
  __shared__ double values[Owner::kCount][kStats];
  const int team = Owner::index(), rank = Owner::rank();
  const int64_t teams = int64_t(gridDim.x) * Owner::kCount;
  double *a = shared + int64_t(team) * padded, *q = shared + int64_t(Owner::kCount) * padded + team * s.d;
  for (int64_t first = int64_t(blockIdx.x) * Owner::kCount + team; first < rows; first += teams * kWarp) {
    const int64_t mine = first + int64_t(threadIdx.x % kWarp) * teams;
    // Every warp of a block that is one team sees the same rows.
    unsigned left =
        __ballot_sync(0xffffffffu, mine < rows && is_marked(records.values[mine * kStats + kSinkMassMax]));
    Owner::sync();
    for (; left != 0; left &= left - 1) {
      const int64_t row = first + int64_t(__ffs(int(left)) - 1) * teams, map = row / m.t, i = row % m.t;
      double entropy = make_row<Owner, kPacked>(s, m.t, map / s.h, map % s.h, i, q, a);
      for (int64_t j = m.t + rank; j < padded; j += Owner::kSize) a[j] = 0;
      Owner::sync();
      write_record<Owner>(a, padded, entropy, i, m, values[team], records.values + row * kStats);
      Owner::sync();
    }
  }
}

/// A block is a map: means over its rows.
__global__ void __launch_bounds__(kFinishThreads) stats_finish(MapLayout m, Records records, float* out) {
  __shared__ double room[kMeansBytes<kFinishThreads> / 8];
  __shared__ unsigned most[2][kFinishThreads / kWarp];
  const int64_t map = blockIdx.x;
  const double* columns = records.columns + map * records.parts * 2 * m.t;
  float all_most = 0, patch_most = 0;
  for (int64_t j = threadIdx.x; j < m.t; j += kFinishThreads) {
    double over_prefix = 0, over_patch = 0;
    for (int64_t part = 0; part < records.parts; ++part) {
      over_prefix += columns[part * 2 * m.t + j];
      over_patch += columns[(part * 2 + 1) * m.t + j];
    }
    all_most = max_(all_most, float(over_prefix + over_patch));
    patch_most = max_(patch_most, float(over_patch));
  }
  all_most = most_of_block<kFinishThreads>(all_most, most[0]);
  patch_most = most_of_block<kFinishThreads>(patch_most, most[1]);
  write_means<kFinishThreads>(records.values + map * m.t * kStats, kStats, m, all_most, patch_most, room,
                              out + map * 3 * kStats);
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

/// Shared memory of the f64 kernels for rows of t and d.
struct RowRoom {
  int padded = 1;
  int64_t bytes = 0;
};
template <bool kByWarp>
RowRoom room_of(int64_t t, int64_t d) {
  RowRoom room;
  while (room.padded < t) room.padded *= 2;
  room.bytes = Team<kByWarp>::kCount * (room.padded + d) * int64_t(sizeof(double));
  return room;
}

template <bool kByWarp, class T>
void launch_rows(const MapSource<T>& s, const MapLayout& m, const Records& records, cudaStream_t stream) {
  const RowRoom room = room_of<kByWarp>(m.t, s.d);
  auto* kernel = packed(s) ? stats_rows<kByWarp, true, T> : stats_rows<kByWarp, false, T>;
  allow_shared(kernel, "stats_rows", room.bytes);
  kernel<<<grid_of_blocks(s.b * s.h * records.parts), kThreads, size_t(room.bytes), stream>>>(
      s, m, records, room.padded, rows_of_block(m.t));
  check_launch("stats_rows", stream);
}

void launch_undecided(const MapSource<bf16>& s, const MapLayout& m, const Records& records,
                      cudaStream_t stream) {
  // By block: they are few, so what counts is how long one takes.
  const RowRoom room = room_of<false>(m.t, s.d);
  const int64_t rows = s.b * s.h * m.t;
  auto* kernel = stats_undecided<false, true, bf16>;  // what streaming_takes is packed
  allow_shared(kernel, "stats_undecided", room.bytes);
  kernel<<<grid_of_rows(div_up(rows, kRowsOfChecker)), kThreads, size_t(room.bytes), stream>>>(
      s, m, records, room.padded, rows);
  check_launch("stats_undecided", stream);
}

/// What is left to do for bf16.
enum class Left { rows, means, nothing };
Left measure_on_tensor_cores(const MapSource<bf16>& source, const MapLayout& m, Records& records, float* out,
                             void* stream) {
  const bool sorts = order_takes(source, m);
  if (m.order && !sorts && !order_long_takes(source, m)) return Left::rows;
  if (short_takes(source, m)) {
    records.parts = 1;
    short_records(source, m, records, out, stream);
    if (!m.order) return Left::nothing;
  } else if (streaming_takes(source, m)) {
    records.parts = streaming_parts(m.t);
    streaming_records(source, m, records, stream);
  } else {
    return Left::rows;
  }
  if (m.order && sorts) {
    order_records(source, m, records, stream);
    return Left::means;
  }
  if (m.order) order_long_records(source, m, records, stream);
  launch_undecided(source, m, records, as_stream(stream));
  return Left::means;
}

}  // namespace

int64_t attention_stats_scratch(int64_t maps, const MapLayout& m) {
  static_assert(kStats % 2 == 0);
  return maps * m.t * (kStats / 2 + 2 * std::max(parts_of(m.t), streaming_parts(m.t)));
}

template <class T>
void attention_stats(const MapSource<T>& source, const MapLayout& m, double* scratch, float* out,
                     void* stream) {
  const int64_t maps = source.b * source.h;
  Records records{m.t, parts_of(m.t), reinterpret_cast<float*>(scratch), scratch + maps * m.t * kStats / 2};
  Left left = Left::rows;
  if constexpr (std::is_same_v<T, bf16>) left = measure_on_tensor_cores(source, m, records, out, stream);
  if (left == Left::nothing) return;
  if (left == Left::rows)
    (m.t <= kWarpRow ? launch_rows<true, T> : launch_rows<false, T>)(source, m, records, as_stream(stream));
  stats_finish<<<grid_of_blocks(maps), kFinishThreads, 0, as_stream(stream)>>>(m, records, out);
  check_launch("stats_finish", as_stream(stream));
}

template <class T>
void attention_moments(const MapSource<T>& source, int64_t t, float* out, void* stream) {
  const int64_t bytes = (3 * t + source.d) * int64_t(sizeof(double));
  auto* kernel = packed(source) ? moments_rows<true, T> : moments_rows<false, T>;
  allow_shared(kernel, "attention_map_moments", bytes);
  kernel<<<grid_of_blocks(source.h * t), kThreads, size_t(bytes), as_stream(stream)>>>(source, t, out);
  check_launch("moments_rows", stream);
}

template void attention_stats(const MapSource<float>&, const MapLayout&, double*, float*, void*);
template void attention_stats(const MapSource<bf16>&, const MapLayout&, double*, float*, void*);
template void attention_moments(const MapSource<float>&, int64_t, float*, void*);
template void attention_moments(const MapSource<bf16>&, int64_t, float*, void*);

}  // namespace occam::kernels
