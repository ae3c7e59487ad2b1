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
    tables.keys = kTokens;
    tables.distances = reinterpret_cast<float*>(tables.offsets + kTokens);
  }
  static int64_t bytes(const MapLayout& m) {
    const Room room(nullptr, m);
    return int64_t(reinterpret_cast<uintptr_t>(room.tables.distances + Tables::floats(m))) + 1024;
  }
};
static_assert(kMeansBytes<kGroup> <= kWarps * kUnit * kColumnStride * 4);

#ifdef OCCAM_WARPGROUP

/// The largest over the warp is no less than the squared length of any of the 16 rows of a tile from `row`
/// on: no product of two of them is larger. 0 or more.
__device__ __forceinline__ float largest_square(const bf16* tile, int row) {
  const int lane = int(threadIdx.x) % kWarp, b_row = row + lane % 8 + lane / 16 * 8;
  float s[2][4] = {}, largest = 0;
#pragma unroll
  for (int step = 0; step < kSwizzleColumns / 16; ++step) {
    uint32_t a[4], b[4];
    ldmatrix(a, tile + tile_at(row + lane % 16, step * 2 + lane / 16));
    ldmatrix(b, tile + tile_at(b_row, step * 2 + lane / 8 % 2));
    mma_bf16(s[0], a, b[0], b[1]);
    mma_bf16(s[1], a, b[2], b[3]);
  }
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) largest = fmaxf(largest, s[n][e]);
  return largest;
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
      weigh<kN>(of, row, factor);
      if (key == 0) {
        if (threadIdx.x % 4 == 0) row[0].first = of[0], row[1].first = of[2];
        add_linear<2, true>(of, row, at, 0);
        add_linear<kN - 2, false>(of + 8, row, at, 16);
      } else {
        add_linear<kN, false>(of, row, at, key);
      }
    };
    if (key + kUnit > kTokens) {
      unit.template operator()<kRest>();
    } else {
      unit.template operator()<kUnit / 8>();
    }
  }
}

/// take(n, x): x is the sum of column 32 n + lane over the warp's rows, weighted by row. `work`:
/// [kUnit][kColumnStride] of the warp.
template <int kTokens, class F>
__device__ __forceinline__ void sum_columns(const float (&e)[kTokens / 2], float upper, float lower,
                                            float* work, F take) {
  const int lane = int(threadIdx.x) % kWarp;
  float* mine = work + lane % 4 * 2 * kColumnStride + lane / 4;
#pragma unroll
  for (int key = 0; key < kTokens; key += kUnit) {
    const int octets = min(kUnit, kTokens - key) / 8;
    __syncwarp();
#pragma unroll
    for (int o = 0; o < octets; ++o) {
      const float* of = e + key / 2 + o * 4;
      mine[o * 8 * kColumnStride] = fmaf(of[0], upper, of[2] * lower);
      mine[(o * 8 + 1) * kColumnStride] = fmaf(of[1], upper, of[3] * lower);
    }
    __syncwarp();
    const float4* from = reinterpret_cast<const float4*>(work + lane * kColumnStride);
    const float4 a = from[0], b = from[1];
    take(key / kUnit, ((a.x + a.y) + (a.z + a.w)) + ((b.x + b.y) + (b.z + b.w)));
  }
}

/// Marked rows of the 16-row tiles [first, last) in their records, every `workers`-th by this warp.
template <int kTokens>
__device__ __forceinline__ void decide_rows(const MapSource<bf16>& s, const MapLayout& m,
                                            const Room<kTokens>& room, const unsigned* marks, int first,
                                            int last, int worker, int workers) {
  const int64_t width = s.h * kSwizzleColumns;
  const bf16* queries =
      s.qkv + int64_t(blockIdx.x) / s.h * m.t * 3 * width + int64_t(blockIdx.x) % s.h * kSwizzleColumns;
  int found = 0;
#pragma unroll 1
  for (int tile = first; tile < last; ++tile) {
#pragma unroll 1
    for (unsigned left = marks[tile]; left != 0; left &= left - 1) {
      if (found++ % workers != worker) continue;
      const int lane = __ffs(int(left)) - 1, i = tile * kWarpRows + lane / 4 + lane % 4 * 8;
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
    stats_short(MapSource<bf16> s, MapLayout m, Records records, float* out, int multiprocessors,
                const __grid_constant__ TensorMap qkv) {
#ifdef OCCAM_WARPGROUP
  constexpr int kColumns = div_up(kTokens, kUnit);
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
  float* prefix_sums = room.columns + kWarps * kTokens;
  for (int j = int(threadIdx.x); j < kTokens; j += kGroup) prefix_sums[j] = 0;
  __syncthreads();

  // The last rows may leave warps without any. Which of them is not the same in every block, as warps of
  // equal number share a part of the multiprocessor: this is likely the block's place there.
  const int place = map / multiprocessors;
  const float factor = float(s.scale) * kLog2;
  float* work = room.work + warp * kUnit * kColumnStride;
  float columns[kColumns] = {};  // 32 n + lane: sums over patch rows
  const int tiles = div_up(t, kWarpRows),
            last = (tiles - 1) / kWarps * kWarps;  // `last`: of the last 64 rows
  const int idle = last + kWarps - tiles, shift_of_last = last > 0 ? min(idle, place % kWarps) : 0;
#pragma unroll 1
  for (int tile = 0; tile < tiles; tile += kWarps) {
    const int shift = tile == last ? shift_of_last : 0;
    const int first = (tile + warp - shift) * kWarpRows;
    const bool active = warp >= shift && first < t;
    if (tile == 0) {
#pragma unroll 1
      for (int c = 0; c < loads.kChunks; ++c) barrier_wait(loads.barrier(1, c), 0);
      if (warp == 0) loads.rest();
    }
    barrier_wait(loads.barrier(0, tile / kWarps), 0);
    float e[kTokens / 2];
    begin_products<kTokens>(e, operand(shared_address(room.q + (tile - shift) * kWarpRows * kSwizzleColumns)),
                            operand(shared_address(room.k)));
    const float row_square = active ? warp_max(largest_square(room.q, first)) : 0;
    if (tile == 0) {
      float square = 0;
#pragma unroll 1
      for (int row = warp * kWarpRows; row < t; row += kWarps * kWarpRows)
        square = fmaxf(square, largest_square(room.k, row));
      square = warp_max(square);
      if (lane == 0) key_squares[warp] = square;
    }
    wgmma_wait<0>();
    pin(e);
    __syncthreads();  // no warp reads queries any more: records take their place
    if (!active) continue;
    const WarpRows at(m, room.tables, first);
    Row row[2];
    measure<kTokens>(e, row, at, factor);
    float key_square = key_squares[0];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) key_square = fmaxf(key_square, key_squares[w]);
    const float error = error_of(key_square * row_square, kSwizzleColumns, float(s.scale), t);
    Facts facts;
    Shares shares(row, at, error, facts);
    count<kTokens / 8>(e, shares);
    // Rows that are not finite are left out of the sums of columns, whose largest nobody then asks for.
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bool finite = shares.weight[half] < infinity_<float>();
      if (__any_sync(0xffffffffu, !finite)) {
        if (!finite) shares.weight[half] = 0;
#pragma unroll
        for (int i = 0; i < kTokens / 2; ++i)
          if (i / 2 % 2 == half && !finite) e[i] = 0;
      }
    }
    if (first >= int(m.prefix)) {
      sum_columns<kTokens>(e, shares.weight[0], shares.weight[1], work,
                           [&](int n, float x) { columns[n] += x; });
    } else {
#pragma unroll 1
      for (int kind = 0; kind < 2; ++kind) {
        const auto weight = [&](int half) {
          return (at.row(half) < at.prefix) == (kind == 1) ? shares.weight[half] : 0;
        };
        sum_columns<kTokens>(e, weight(0), weight(1), work, [&](int n, float x) {
          if (kind == 0) columns[n] += x;
          if (kind == 1 && n * kUnit + lane < kTokens) prefix_sums[n * kUnit + lane] += x;
        });
      }
#pragma unroll
      for (int i = 0; i < kTokens / 2; ++i)
        if (i / 2 % 2 == 0) shares.largest = fmaxf(shares.largest, e[i]);
    }
    Statistics r(facts, shares, at, kTokens - t);
    // A kernel that sorts goes on with the row, or decide_by_warp.
    if (m.order || r.undecided) r.tell(error, reported(shares.base));
    const unsigned undecided = __ballot_sync(0xffffffffu, r.undecided && facts.row < t && lane % 4 < 2);
    if (lane == 0) marks[first / kWarpRows] = undecided;
    if (facts.row < t)
      r.store(m.order ? records.values + (int64_t(map) * t + facts.row) * kStats
                      : reinterpret_cast<float*>(room.q) + facts.row * kSlot);
  }
#pragma unroll
  for (int n = 0; n < kColumns; ++n)
    if (n * kUnit + lane < kTokens) room.columns[warp * kTokens + n * kUnit + lane] = columns[n];
  // Warps that have none of the last rows decide those before meanwhile; then all decide the last ones.
  const bool meanwhile = idle > 0 && last > 0;
  const int of_idle = warp < shift_of_last ? warp : warp - (kWarps - idle);
  const bool is_idle = warp < shift_of_last || warp >= shift_of_last + kWarps - idle;
#pragma unroll 1
  for (int step = 0; step < 2; ++step) {
    const bool early = meanwhile && step == 0;
    if (step == 1) __syncthreads();
    if (!m.order && (early ? is_idle : step == 1))
      decide_rows<kTokens>(s, m, room, marks, early || !meanwhile ? 0 : last, early ? last : tiles,
                           early ? of_idle : warp, early ? idle : kWarps);
  }
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
      s, m, records, out, device_limits().sm_count, tensor_map(s.qkv, s.b, m.t, 3 * s.h * s.d, kBox));
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
