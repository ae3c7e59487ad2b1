// Statistics without order of rows of at most 256 tokens and d = 64 on Hopper: a block is a warpgroup and has
// a whole map, its queries and keys in shared memory, 64 whole rows of scores in registers at a time. What is
// left then, rows that f32 cannot decide and the means over the rows, is done by the same block, unless rows
// are still to be sorted.
#include "ops/attention/head.cuh"
#include "ops/attention_stats/decide.cuh"
#include "ops/attention_stats/finish.cuh"
#include "ops/attention_stats/records.h"
#include "ops/attention_stats/streaming.cuh"

namespace occam::kernels {

using namespace cuda;
using namespace streaming;

namespace {

constexpr int kWarps = kGroup / kWarp;
constexpr int64_t kMostTokensHere = 256, kMostPrefix = 16;
constexpr int kSlot = kSwizzleColumns / 2;  // floats from one row's record to the next: its query's place
constexpr int kBox = 16;                    // rows that are copied together
constexpr int kColumnStride = 12;           // of a column's 8 parts: misses other columns' banks

/// Blocks of a multiprocessor: what bounds the registers.
template <int kTokens>
constexpr int kBlocks = kTokens <= 80    ? 4
                        : kTokens <= 208 ? 3
                                         : 2;

/// Shared memory of a block, from a multiple of 1024 on.
template <int kTokens>
struct Room {
  bf16 *q, *k;            // tiles of kTokens rows; the record of row i takes the place of query i
  float *work, *columns;  // [warps][kUnit][kColumnStride]; [warps + 1][kTokens], sums over patch, prefix rows
  Tables tables;
  OCCAM_HD Room(unsigned char* room, const MapLayout& m) {
    q = reinterpret_cast<bf16*>(room);
    k = q + kTokens * kSwizzleColumns;
    work = reinterpret_cast<float*>(k + kTokens * kSwizzleColumns);
    columns = work + kWarps * kUnit * kColumnStride;
    tables.offsets = reinterpret_cast<int*>(columns + (kWarps + 1) * kTokens);
    tables.keys = round_up(kTokens, kUnit);
    tables.distances = reinterpret_cast<float*>(tables.offsets + tables.keys);
  }
  static int64_t bytes(const MapLayout& m) {
    const Room room(nullptr, m);
    return int64_t(reinterpret_cast<uintptr_t>(room.tables.distances + Tables::floats(m))) + 1024;
  }
};
static_assert(kMeansBytes<kGroup> <= kWarps * kUnit * kColumnStride * 4);

#ifdef OCCAM_WARPGROUP

/// Products of 16 rows of one tile with 8 kN rows of another, by a warp.
template <int kN>
__device__ __forceinline__ void products_of_warp(float (&s)[kN][4], const bf16* a_tile, int a_row,
                                                 const bf16* b_tile, int b_row) {
  const int lane = int(threadIdx.x) % kWarp;
  a_row += lane % 16, b_row += lane % 8 + lane / 16 * 8;
#pragma unroll
  for (int n = 0; n < kN; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) s[n][e] = 0;
#pragma unroll
  for (int step = 0; step < kSwizzleColumns / 16; ++step) {
    uint32_t a[4];
    ldmatrix(a, a_tile + tile_at(a_row, step * 2 + lane / 16));
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      uint32_t b[4];
      ldmatrix(b, b_tile + tile_at(b_row + n * 8, step * 2 + lane / 8 % 2));
      mma_bf16(s[n], a, b[0], b[1]);
      mma_bf16(s[n + 1], a, b[2], b[3]);
    }
  }
}

/// No less than the squared length of any of the 16 rows of a tile from `row` on: no product of two of them
/// is larger. 0 or more.
__device__ __forceinline__ float largest_square(const bf16* tile, int row) {
  float s[2][4], largest = 0;
  products_of_warp(s, tile, row, tile, row);
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) largest = fmaxf(largest, s[n][e]);
  return warp_max(largest);
}

/// Copies of queries (side 0) and keys, 64 rows to a barrier.
template <int kTokens>
struct Loads {
  static constexpr int kBoxes = kTokens / kBox, kChunks = div_up(kTokens, 64);
  static constexpr int kLead = kBoxes < 4 ? kBoxes : 4;  // boxes of the first queries
  const Room<kTokens>& room;
  const TensorMap* qkv;
  int image, head, heads;
  uint64_t* barriers;  // [2][kChunks]
  __device__ __forceinline__ uint32_t barrier(int side, int chunk) const {
    return shared_address(barriers + side * kChunks + chunk);
  }
  __device__ __forceinline__ void load(int side, int box) const {
    load_box(shared_address((side == 0 ? room.q : room.k) + box * kBox * kSwizzleColumns), qkv,
             (side * heads + head) * kSwizzleColumns, box * kBox, image, barrier(side, box / 4));
  }
  /// What the first rows need. By a warp; all threads synchronise before they wait.
  __device__ __forceinline__ void begin() const {
    const int lane = int(threadIdx.x) % kWarp;
    if (lane < 2 * kChunks) {
      barrier_init(barrier(0, lane), 1);
      barrier_init_fence();
      barrier_expect(barrier(0, lane), min(64, kTokens - lane % kChunks * 64) * kSwizzleRow);
    }
    __syncwarp();
    if (lane < kLead + kBoxes) load(lane < kLead ? 0 : 1, lane < kLead ? lane : lane - kLead);
  }
  /// The rest, once that is there.
  __device__ __forceinline__ void rest() const {
    const int box = int(threadIdx.x) % kWarp + kLead;
    if (box < kBoxes) load(0, box);
  }
};

/// Begins products of the 64 rows at q with all keys, a part of the rows in each warp.
template <int kTokens>
__device__ __forceinline__ void begin_products(float (&s)[kTokens / 2], uint32_t q, uint32_t k) {
  constexpr int kRest = kTokens % 64;
#pragma unroll
  for (float& x : s) x = 0;  // the first product overwrites it
  wgmma_fence();
#pragma unroll
  for (int key = 0; key < kTokens - kRest; key += 64)
#pragma unroll
    for (int step = 0; step < kSwizzleColumns / 16; ++step)
      wgmma<64, false, false>(s + key / 2, q + step * kStepAlong,
                              k + key / 16 * kStepAcross + step * kStepAlong, step > 0);
  if constexpr (kRest > 0) {
    static_assert(kRest == 16);
#pragma unroll
    for (int step = 0; step < kSwizzleColumns / 16; ++step)
      wgmma<16, false, false>(s + (kTokens - kRest) / 2, q + step * kStepAlong,
                              k + (kTokens - kRest) / 16 * kStepAcross + step * kStepAlong, step > 0);
  }
  wgmma_commit();
}

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
#pragma unroll
  for (int key = 0; key < kTokens; key += kUnit) {
    constexpr int kLeast = kTokens <= 80 ? 0 : kTokens - 64;  // less than t
    constexpr int kRest = kTokens % kUnit == 0 ? kUnit / 8 : kTokens % kUnit / 8;
    const auto unit = [&]<int kN>() {
      float* of = s + key / 2;
      if (key + 8 * kN > kLeast && at.t - key < 8 * kN) hide<kN>(of, key, at.t);
      const Distances<kN> distances(at, key);  // under way meanwhile
      weigh<kN>(of, row, factor);
      if (key == 0) {
        if (threadIdx.x % 4 == 0) row[0].first = of[0], row[1].first = of[2];
        add_linear<kN, div_up(int(kMostPrefix), 8)>(of, distances, row, at, 0);
      } else {
        add_linear<kN, 0>(of, distances, row, at, key);
      }
    };
    if (key + kUnit > kTokens) {
      unit.template operator()<kRest>();
    } else {
      unit.template operator()<kUnit / 8>();
    }
  }
}

/// Sum of column `lane` of 8 kN over the warp's rows, weighted by row. `work`: [kUnit][kColumnStride] of the
/// warp.
template <int kN>
__device__ __forceinline__ float sum_columns(const float* e, float upper, float lower, float* work) {
  const int lane = int(threadIdx.x) % kWarp;
  float* mine = work + lane % 4 * 2 * kColumnStride + lane / 4;
  __syncwarp();
#pragma unroll
  for (int n = 0; n < kN; ++n) {
    const float* of = e + n * 4;
    mine[n * 8 * kColumnStride] = fmaf(of[0], upper, of[2] * lower);
    mine[(n * 8 + 1) * kColumnStride] = fmaf(of[1], upper, of[3] * lower);
  }
  __syncwarp();
  const float4* from = reinterpret_cast<const float4*>(work + lane * kColumnStride);
  const float4 a = from[0], b = from[1];
  return ((a.x + a.y) + (a.z + a.w)) + ((b.x + b.y) + (b.z + b.w));
}
/// Adds the sums of all columns to `to`.
template <int kTokens>
__device__ __forceinline__ void add_columns(const float (&e)[kTokens / 2], float upper, float lower,
                                            float* work, float* to) {
  constexpr int kRest = kTokens % kUnit == 0 ? kUnit / 8 : kTokens % kUnit / 8;
  const int lane = int(threadIdx.x) % kWarp;
#pragma unroll
  for (int key = 0; key < kTokens; key += kUnit) {
    if (key + kUnit <= kTokens) {
      to[key + lane] += sum_columns<kUnit / 8>(e + key / 2, upper, lower, work);
    } else {
      const float sum = sum_columns<kRest>(e + key / 2, upper, lower, work);
      if (lane < 8 * kRest) to[key + lane] += sum;
    }
  }
}

/// Rows that are not finite are left out of the sums of columns, whose largest nobody then asks for.
template <int kCount>
__device__ __forceinline__ void leave_out_not_finite(float* e, Shares& shares) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const bool finite = shares.weight[half] < infinity_<float>();
    if (__all_sync(0xffffffffu, finite)) continue;
    if (!finite) shares.weight[half] = 0;
#pragma unroll
    for (int i = 2 * half; i < kCount; i += i % 2 == 0 ? 1 : 3)
      if (!finite) e[i] = 0;
  }
}

/// The warps of the block add up numbers [kCount] of their 16 rows: a lane has parts of those of rows g and
/// g+8, afterwards others of the same sums. `room`: [kWarps][16][kCount].
template <int kCount>
__device__ __forceinline__ void share_sums(float (&of_rows)[2][kCount], float* room) {
  static_assert(kCount % 4 == 0);
  const int warp = warp_here(), lane = int(threadIdx.x) % kWarp;
  __syncthreads();
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float sum = quad_sum(of_rows[half][i]);
      if (lane % 4 == 0) room[(warp * kWarpRows + lane / 4 + half * 8) * kCount + i] = sum;
    }
  __syncthreads();
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int i = 0; i < kCount; ++i)  // lane q of four has what warp q found
      of_rows[half][i] = room[(lane % 4 * kWarpRows + lane / 4 + half * 8) * kCount + i];
}

/// The last 16 rows or fewer, from row `first` on, by all warps: each has every fourth 32 keys, and adds to
/// its own sums of columns. store(facts, shares, at, error, hidden) is for one warp.
template <int kTokens, class Store>
__device__ __forceinline__ void measure_together(const Room<kTokens>& room, const MapLayout& m, int first,
                                                 float factor, float key_square, float scale, Store store) {
  constexpr int kMine = div_up(div_up(kTokens, kUnit), kWarps);
  const int warp = warp_here(), lane = int(threadIdx.x) % kWarp, t = int(m.t);
  const WarpRows at(m, room.tables, first);
  float e[kMine][kUnit / 8][4], largest[2] = {-infinity_<float>(), -infinity_<float>()};
  const auto for_units = [&](auto f) {
#pragma unroll
    for (int u = 0; u < kMine; ++u)
      if (const int key = (u * kWarps + warp) * kUnit; key < t) f(e[u], &e[u][0][0], key);
  };
  for_units([&](float(&s)[kUnit / 8][4], float* flat, int key) {
    products_of_warp(s, room.q, first, room.k, key);
    if (t - key < kUnit) hide<kUnit / 8>(flat, key, t);
#pragma unroll
    for (int half = 0; half < 2; ++half)
      largest[half] = max_(largest[half], largest_product<kUnit / 8>(flat, half));
  });
  __syncthreads();
#pragma unroll
  for (int half = 0; half < 2; ++half)
    if (lane % 4 == 0) room.work[warp * kWarpRows + lane / 4 + half * 8] = largest[half];
  __syncthreads();
  Row row[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float of_warp = room.work[lane % 4 * kWarpRows + lane / 4 + half * 8];
    row[half].base = warp_reduce<4>(of_warp, MaxOp{}) * factor;
  }
  for_units([&](auto&, float* flat, int key) {
    const Distances<kUnit / 8> distances(at, key);
    weigh<kUnit / 8>(flat, row, factor);
    if (key == 0 && lane % 4 == 0) row[0].first = flat[0], row[1].first = flat[2];
    add_linear<kUnit / 8, div_up(int(kMostPrefix), 8)>(flat, distances, row, at, key);
  });
  float Row::*const sums[] = {&Row::sum,      &Row::prefix,  &Row::weighted, &Row::squares,
                              &Row::distance, &Row::window3, &Row::window5,  &Row::first};
  float parts[2][8];
#pragma unroll
  for (int i = 0; i < 16; ++i) parts[i / 8][i % 8] = row[i / 8].*sums[i % 8];
  share_sums(parts, room.work);
#pragma unroll
  for (int i = 0; i < 16; ++i) row[i / 8].*sums[i % 8] = parts[i / 8][i % 8];
  const float error = error_of(key_square * largest_square(room.q, first), kSwizzleColumns, scale, t);
  Facts facts;
  Shares shares(row, at, error, facts);
  for_units([&](auto&, float* flat, int) { count<kUnit / 8>(flat, shares); });
  float counts[2][4];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    counts[half][0] = shares.below[half].count, counts[half][1] = shares.below_uniform[half].count;
    counts[half][2] = shares.decided[half], counts[half][3] = 0;
  }
  share_sums(counts, room.work);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    shares.below[half].count = counts[half][0], shares.below_uniform[half].count = counts[half][1];
    shares.decided[half] = counts[half][2];
  }
  __syncthreads();
  leave_out_not_finite<kMine * kUnit / 2>(&e[0][0][0], shares);
  for_units([&](auto&, float* flat, int key) {
    const float sum = sum_columns<kUnit / 8>(flat, shares.weight[0], shares.weight[1],
                                             room.work + warp * kUnit * kColumnStride);
    if (key + lane < kTokens) room.columns[warp * kTokens + key + lane] += sum;
  });
  if (warp == 0) store(facts, shares, at, error, round_up(t, kUnit) - t);
}

/// The marked rows in their records: a warp has every fourth one.
template <int kTokens>
__device__ __forceinline__ void decide_rows(const MapSource<bf16>& s, const MapLayout& m,
                                            const Room<kTokens>& room, const unsigned* marks) {
  const int warp = warp_here();
  const int64_t width = s.h * kSwizzleColumns;
  const bf16* queries =
      s.qkv + int64_t(blockIdx.x) / s.h * m.t * 3 * width + int64_t(blockIdx.x) % s.h * kSwizzleColumns;
  int found = 0;
#pragma unroll 1
  for (int first = 0; first < int(m.t); first += kWarpRows) {
#pragma unroll 1
    for (unsigned left = marks[first / kWarpRows]; left != 0; left &= left - 1) {
      if (found++ % kWarps != warp) continue;
      const int lane = __ffs(int(left)) - 1, i = first + lane / 4 + lane % 4 * 8;
      decide_by_warp<div_up(kTokens, kWarp)>(
          [&](int j, int c) { return *reinterpret_cast<const uint4*>(room.k + tile_at(j, c)); },
          queries + i * 3 * width, s.scale, i, m, reinterpret_cast<float*>(room.q) + i * kSlot);
    }
  }
}

#endif

/// A block is a map. With rows to be sorted it leaves records, else statistics [3][kStats] of every map.
template <int kTokens>
__global__ void __launch_bounds__(kGroup, kBlocks<kTokens>)
    stats_short(MapSource<bf16> s, MapLayout m, Records records, float* out,
                const __grid_constant__ TensorMap qkv) {
#ifdef OCCAM_WARPGROUP
  const Room<kTokens> room(aligned_room(), m);
  __shared__ uint64_t barriers[2 * Loads<kTokens>::kChunks];
  __shared__ float key_squares[kWarps];
  __shared__ unsigned most[2][kWarps],
      marks[kTokens / kWarpRows];  // marks: a bit for the lane that reports a row
  const int t = int(m.t), warp = warp_here(), lane = int(threadIdx.x) % kWarp;
  const int map = int(blockIdx.x), image = map / int(s.h), head = map - image * int(s.h);
  const Loads<kTokens> loads{room, &qkv, image, head, int(s.h), barriers};
  if (warp == 0) loads.begin();
  room.tables.fill(m);
  for (int j = int(threadIdx.x); j < (kWarps + 1) * kTokens; j += kGroup) room.columns[j] = 0;
  float *patch_sums = room.columns + warp * kTokens, *prefix_sums = room.columns + kWarps * kTokens;
  __syncthreads();

  const float factor = float(s.scale) * kLog2;
  float* work = room.work + warp * kUnit * kColumnStride;
  const int tiles = div_up(t, kWarpRows);
  const bool shared_tile = tiles > kWarps && tiles % kWarps == 1;  // the last one, by all warps
  const auto key_square = [&] {
    return fmaxf(fmaxf(key_squares[0], key_squares[1]), fmaxf(key_squares[2], key_squares[3]));
  };
  static_assert(kWarps == 4);
  const auto store = [&](const Facts& facts, const Shares& shares, const WarpRows& at, float error,
                         int hidden) {
    Statistics r(facts, shares, at, hidden);
    // A kernel that sorts goes on with the row, or decide_by_warp.
    if (m.order || r.undecided) r.tell(error, reported(shares.base));
    const unsigned undecided = __ballot_sync(0xffffffffu, r.undecided && facts.row < t && lane % 4 < 2);
    if (lane == 0) marks[at.first / kWarpRows] = undecided;
    if (facts.row < t)
      r.store(m.order ? records.values + (int64_t(map) * t + facts.row) * kStats
                      : reinterpret_cast<float*>(room.q) + facts.row * kSlot);
  };
#pragma unroll 1
  for (int tile = 0; tile < tiles - shared_tile; tile += kWarps) {
    const int first = (tile + warp) * kWarpRows;
    const bool active = first < t;
    if (tile == 0) {
#pragma unroll 1
      for (int c = 0; c < loads.kChunks; ++c) barrier_wait(loads.barrier(1, c), 0);
      if (warp == 0) loads.rest();
    }
    barrier_wait(loads.barrier(0, tile / kWarps), 0);
    float e[kTokens / 2];
    begin_products<kTokens>(e, operand(shared_address(room.q + tile * kWarpRows * kSwizzleColumns)),
                            operand(shared_address(room.k)));
    const float row_square = active ? largest_square(room.q, first) : 0;
    if (tile == 0) {
      float square = 0;
#pragma unroll 1
      for (int row = warp * kWarpRows; row < t; row += kWarps * kWarpRows)
        square = fmaxf(square, largest_square(room.k, row));
      if (lane == 0) key_squares[warp] = square;
    }
    wgmma_wait<0>();
    pin(e);
    __syncthreads();  // no warp reads queries any more: records take their place
    if (!active) continue;
    const WarpRows at(m, room.tables, first);
    Row row[2];
    measure<kTokens>(e, row, at, factor);
    const float error = error_of(key_square() * row_square, kSwizzleColumns, float(s.scale), t);
    Facts facts;
    Shares shares(row, at, error, facts);
    count<kTokens / 8>(e, shares);
    leave_out_not_finite<kTokens / 2>(e, shares);
    if (first >= int(m.prefix)) {
      add_columns<kTokens>(e, shares.weight[0], shares.weight[1], work, patch_sums);
    } else {
#pragma unroll 1
      for (int kind = 0; kind < 2; ++kind) {
        const auto weight = [&](int half) {
          return (at.row(half) < at.prefix) == (kind == 1) ? shares.weight[half] : 0;
        };
        add_columns<kTokens>(e, weight(0), weight(1), work, kind == 0 ? patch_sums : prefix_sums);
      }
#pragma unroll
      for (int i = 0; i < kTokens / 2; ++i)
        if (i / 2 % 2 == 0) shares.largest = fmaxf(shares.largest, e[i]);
    }
    store(facts, shares, at, error, kTokens - t);
  }
  if (shared_tile) {
    barrier_wait(loads.barrier(0, tiles / kWarps), 0);
    measure_together(room, m, (tiles - 1) * kWarpRows, factor, key_square(), float(s.scale), store);
  }
  __syncthreads();
  if (!m.order) decide_rows(s, m, room, marks);
  __syncthreads();

  float all_most = 0, patch_most = 0;
  for (int j = int(threadIdx.x); j < t; j += kGroup) {
    const float prefix = prefix_sums[j];
    float patch = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) patch += room.columns[w * kTokens + j];
    if (m.order) {
      double* to = records.columns + int64_t(map) * 2 * t;
      to[j] = double(prefix), to[t + j] = double(patch);
    }
    all_most = fmaxf(all_most, patch + prefix), patch_most = fmaxf(patch_most, patch);
  }
  if (m.order) return;
  all_most = most_of_block<kGroup>(all_most, most[0]);
  patch_most = most_of_block<kGroup>(patch_most, most[1]);
  write_means<kGroup>(reinterpret_cast<const float*>(room.q), kSlot, m, all_most, patch_most,
                      reinterpret_cast<double*>(room.work), out + int64_t(map) * 3 * kStats);
#endif
}

template <int kTokens>
void launch_short(const MapSource<bf16>& s, const MapLayout& m, const Records& records, float* out,
                  void* stream) {
  const int64_t bytes = Room<kTokens>::bytes(m);
  allow_shared(stats_short<kTokens>, "stats_short", bytes);
  stats_short<kTokens><<<unsigned(s.b * s.h), kGroup, size_t(bytes), as_stream(stream)>>>(
      s, m, records, out, tensor_map(s.qkv, s.b, m.t, 3 * s.h * s.d, kBox));
  check_launch("stats_short", stream);
}

}  // namespace

bool short_takes(const MapSource<bf16>& s, const MapLayout& m) {
  return s.maps == nullptr && m.t <= kMostTokensHere && m.prefix <= kMostPrefix && s.d == kSwizzleColumns &&
         s.scale > 1e-6 && s.scale < 1e6 && attention_fits_warpgroups({.d = s.d, .qkv = s.qkv}) &&
         Room<kMostTokensHere>::bytes(m) <= device_limits().shared_bytes_opt_in;
}

void short_records(const MapSource<bf16>& s, const MapLayout& m, const Records& records, float* out,
                   void* stream) {
  if (m.t <= 80) return launch_short<80>(s, m, records, out, stream);
  if (m.t <= 144) return launch_short<144>(s, m, records, out, stream);
  if (m.t <= 208) return launch_short<208>(s, m, records, out, stream);
  launch_short<256>(s, m, records, out, stream);
}

}  // namespace occam::kernels
