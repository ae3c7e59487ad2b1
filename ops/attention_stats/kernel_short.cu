// Statistics without order of rows of at most 256 tokens and d = 64 on Hopper: a block has a whole map, its
// queries and keys in shared memory, products by warpgroups. What is left then, rows that f32 cannot decide
// and the means over the rows, is done by the same block, unless rows are still to be sorted.
#include "ops/attention/head.cuh"
#include "ops/attention_stats/decide.cuh"
#include "ops/attention_stats/finish.cuh"
#include "ops/attention_stats/records.h"
#include "ops/attention_stats/streaming.cuh"

namespace occam::kernels {

using namespace cuda;
using namespace streaming;

namespace {

constexpr int kGroupsHere = 2, kThreadsHere = kGroupsHere * kGroup, kWarpsHere = kThreadsHere / kWarp;
constexpr int kBlocks = 3;  // of a multiprocessor: 80 registers a thread
constexpr int64_t kMostTokensHere = kThreadsHere;
constexpr int kSlot = kSwizzleColumns / 2;  // floats from one row's record to the next: its query's place

/// Shared memory of a block, from a multiple of 1024 on.
struct Room {
  bf16 *q, *k;            // tiles of `rows`; the record of row i takes the place of query i
  float *work, *columns;  // [warps][kWorkFloats]; [warps + prefix_warps][rows], sums over patch, prefix rows
  Tables tables;
  int rows, prefix_warps;
  OCCAM_HD Room(unsigned char* room, const MapLayout& m) {
    rows = int(round_up<int64_t>(m.t, 16));
    prefix_warps = int(m.prefix < kWarpsHere * kWarpRows ? div_up<int64_t>(m.prefix, kWarpRows) : kWarpsHere);
    q = reinterpret_cast<bf16*>(room);
    k = q + rows * kSwizzleColumns;
    work = reinterpret_cast<float*>(k + rows * kSwizzleColumns);
    columns = work + kWarpsHere * kWorkFloats;
    tables.offsets = reinterpret_cast<int*>(columns + (kWarpsHere + prefix_warps) * rows);
    tables.distances = reinterpret_cast<float*>(tables.offsets + Tables::ints(m));
  }
  static int64_t bytes(const MapLayout& m) {
    const Room room(nullptr, m);
    return int64_t(reinterpret_cast<uintptr_t>(room.tables.distances + Tables::floats(m))) + 1024;
  }
};

#ifdef OCCAM_WARPGROUP

/// Which of the blocks that share a multiprocessor this one is, to spread work; nothing depends on it.
__device__ __forceinline__ int place_on_multiprocessor() {
  int warp;
  asm("mov.u32 %0, %%warpid;" : "=r"(warp));
  return warp / kWarpsHere;
}

/// No less than the squared length of any of the 16 rows of a tile from `row` on: no product of two of them
/// is larger. 0 or more.
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
  return warp_max(largest);
}

/// Products of the 64 rows at q with kCount keys at k, a part of them in each warp.
template <int kCount>
__device__ __forceinline__ void products_of_rows(float (&s)[kCount / 2], uint32_t q, uint32_t k) {
#pragma unroll
  for (float& x : s) x = 0;  // the first product overwrites it
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < kSwizzleColumns / 16; ++step)
    wgmma<kCount, false, false>(s, q + step * kStepAlong, k + step * kStepAlong, step > 0);
  wgmma_commit();
  wgmma_wait<0>();
  pin(s);
}

/// f.operator()<kN>(s, key) for all keys of the rows at q, 8 kN at a time, in a warp that is active.
template <class F>
__device__ __forceinline__ void for_keys(uint32_t q, uint32_t k, int t, bool active, F f) {
  const int rest = t % kUnit, whole = rest <= 16 ? t - rest : t;
#pragma unroll 1
  for (int key = 0; key < whole; key += kUnit) {
    float s[kUnit / 2];
    products_of_rows<kUnit>(s, q, k + key / 16 * kStepAcross);
    if (active) f.template operator()<kUnit / 8>(s, key);
  }
  if (whole == t) return;
  float s[8];
  products_of_rows<16>(s, q, k + whole / 16 * kStepAcross);
  if (!active) return;
  f.template operator()<1>(s, whole);
  if (whole + 8 < t) f.template operator()<1>(s + 4, whole + 8);
}

/// The last rows may leave warps without any: which of them is not the same in every block, as warps of equal
/// number share a part of the multiprocessor.
__device__ __forceinline__ int shift_of(int begin, int t, int place) {
  const int busy = div_up(t - begin, kWarpRows);
  return begin > 0 && busy < 4 ? min(4 - busy, place % 4) : 0;
}

/// The marked ones of the warp's rows, in their records.
__device__ __forceinline__ void decide_rows(const MapSource<bf16>& s, const MapLayout& m, const Room& room,
                                            int place) {
  const int t = int(m.t), warp = warp_here(), lane = int(threadIdx.x) % kWarp;
  const int64_t width = s.h * kSwizzleColumns;
  const bf16* queries =
      s.qkv + int64_t(blockIdx.x) / s.h * t * 3 * width + int64_t(blockIdx.x) % s.h * kSwizzleColumns;
  float* records = reinterpret_cast<float*>(room.q);
  __syncwarp();
#pragma unroll 1
  for (int begin = warp / 4 * 64; begin < t; begin += kGroupsHere * 64) {
    const int first = begin + (warp % 4 - shift_of(begin, t, place)) * kWarpRows, own = first + lane;
    if (first < begin) continue;
    unsigned left = __ballot_sync(
        0xffffffffu, lane < kWarpRows && own < t && is_marked(records[own * kSlot + kSinkMassMax]));
#pragma unroll 1
    for (; left != 0; left &= left - 1) {
      const int i = first + __ffs(int(left)) - 1;
      decide_by_warp<kThreadsHere / kWarp>(
          [&](int j, int c) { return *reinterpret_cast<const uint4*>(room.k + tile_at(j, c)); },
          queries + i * 3 * width, s.scale, i, m, records + i * kSlot);
    }
  }
}

#endif

/// A block is a map. With rows to be sorted it leaves records, else statistics [3][kStats] of every map.
__global__ void __launch_bounds__(kThreadsHere, kBlocks)
    stats_short(MapSource<bf16> s, MapLayout m, Records records, float* out,
                const __grid_constant__ TensorMap qkv) {
#ifdef OCCAM_WARPGROUP
  const Room room(aligned_room(), m);
  __shared__ uint64_t barrier;
  __shared__ float key_squares[kWarpsHere];
  __shared__ unsigned most[2][kWarpsHere];
  __shared__ int shared_place;
  const int t = int(m.t), warp = warp_here(), group = warp / 4, lane = int(threadIdx.x) % kWarp;
  const int map = int(blockIdx.x), image = map / int(s.h), head = map - image * int(s.h);
  const uint32_t full = shared_address(&barrier);
  if (threadIdx.x == 0) {
    barrier_init(full, 1);
    barrier_init_fence();
    barrier_expect(full, 2 * room.rows * kSwizzleColumns * 2);
    load_box(shared_address(room.k), &qkv, (int(s.h) + head) * kSwizzleColumns, 0, image, full);
    load_box(shared_address(room.q), &qkv, head * kSwizzleColumns, 0, image, full);
    shared_place = place_on_multiprocessor();
  }
  room.tables.fill(m);
#pragma unroll 1
  for (int j = int(threadIdx.x); j < (kWarpsHere + room.prefix_warps) * room.rows / 4; j += kThreadsHere)
    reinterpret_cast<float4*>(room.columns)[j] = make_float4(0, 0, 0, 0);
  __syncthreads();
  barrier_wait(full, 0);
  float key_square = 0;
#pragma unroll 1
  for (int row = warp * 16; row < t; row += kWarpsHere * 16)
    key_square = fmaxf(key_square, largest_square(room.k, row));
  if (lane == 0) key_squares[warp] = key_square;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kWarpsHere; ++w) key_square = fmaxf(key_square, key_squares[w]);

  const int place = same_for_warp(shared_place);
  const float factor = float(s.scale) * kLog2, inverse_factor = 1 / factor;
  float* work = room.work + warp * kWorkFloats;
  float* patch_sums = room.columns + warp * room.rows;
  float* prefix_sums = room.columns + (kWarpsHere + warp) * room.rows;
#pragma unroll 1
  for (int begin = group * 64; begin < t; begin += kGroupsHere * 64) {
    const int shift = shift_of(begin, t, place), first = begin + (warp % 4 - shift) * kWarpRows;
    const bool active = first >= begin && first < t;
    const uint32_t q = operand(shared_address(room.q + (begin - shift * kWarpRows) * kSwizzleColumns));
    const uint32_t k = operand(shared_address(room.k));
    const WarpRows at(m, room.tables, first);
    Row row[2];
    for_keys(q, k, t, active,
             [&]<int kN>(float* s, int key) { first_pass<kN>(s, row, at, factor, inverse_factor, key); });
    const float row_square = active ? largest_square(room.q, first) : 0;
    const float error = error_of(key_square * row_square, kSwizzleColumns, float(s.scale), t);
    Facts facts;
    Shares shares(row, at, error, facts);
    for_keys(q, k, t, active, [&]<int kN>(float* s, int key) {
      second_pass<kN>(s, shares, at, factor, key, work, patch_sums + key, prefix_sums + key);
    });
    named_sync(group + 1, kGroup);  // no warp reads queries any more: records take their place
    if (!active) continue;
    Statistics r(facts, shares, at, round_up(t, t % kUnit <= 16 ? 8 : kUnit) - t);
    // A kernel that sorts goes on with the row, or decide_by_warp.
    if (m.order || r.undecided) r.tell(error, reported(shares.base));
    if (facts.row < t)
      r.store(m.order ? records.values + (int64_t(map) * t + facts.row) * kStats
                      : reinterpret_cast<float*>(room.q) + facts.row * kSlot);
  }
  if (!m.order) decide_rows(s, m, room, place);
  __syncthreads();

  float prefix = 0, patch = 0;  // sums of the thread's column
  if (int(threadIdx.x) < t) {
#pragma unroll
    for (int w = 0; w < kWarpsHere; ++w) patch += room.columns[w * room.rows + threadIdx.x];
    for (int w = kWarpsHere; w < kWarpsHere + room.prefix_warps; ++w)
      prefix += room.columns[w * room.rows + threadIdx.x];
  }
  if (m.order) {
    double* columns = records.columns + int64_t(map) * 2 * t;
    if (int(threadIdx.x) < t) columns[threadIdx.x] = double(prefix), columns[t + threadIdx.x] = double(patch);
    return;
  }
  const float all_most = most_of_block<kThreadsHere>(patch + prefix, most[0]);
  const float patch_most = most_of_block<kThreadsHere>(patch, most[1]);
  write_means<kThreadsHere>(reinterpret_cast<const float*>(room.q), kSlot, m, all_most, patch_most,
                            reinterpret_cast<double*>(room.work), out + int64_t(map) * 3 * kStats);
#endif
}

}  // namespace

bool short_takes(const MapSource<bf16>& s, const MapLayout& m) {
  return s.maps == nullptr && m.t <= kMostTokensHere && s.d == kSwizzleColumns && s.scale > 1e-6 &&
         s.scale < 1e6 && attention_fits_warpgroups({.d = s.d, .qkv = s.qkv}) &&
         Room::bytes(m) + 1024 <= device_limits().shared_bytes_opt_in;
}

void short_records(const MapSource<bf16>& s, const MapLayout& m, const Records& records, float* out,
                   void* stream) {
  const int64_t bytes = Room::bytes(m);
  allow_shared(stats_short, "stats_short", bytes);
  stats_short<<<unsigned(s.b * s.h), kThreadsHere, size_t(bytes), as_stream(stream)>>>(
      s, m, records, out, tensor_map(s.qkv, s.b, m.t, 3 * s.h * s.d, int(round_up<int64_t>(m.t, 16))));
  check_launch("stats_short", stream);
}

}  // namespace occam::kernels
