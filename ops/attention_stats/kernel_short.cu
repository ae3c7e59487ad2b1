// Statistics without order of rows of at most 256 tokens and d = 64 on Hopper: a block is a warpgroup and has
// a whole map, its queries and keys in shared memory, 64 whole rows of scores in registers at a time. What is
// left then, rows that f32 cannot decide and the means over the rows, is done by the same block, unless rows
// are still to be sorted.
#include "ops/attention_stats/records.h"
#include "ops/attention_stats/short_rows.cuh"

namespace occam::kernels {

using namespace short_maps;

namespace {

/// A block is a map. With rows to be sorted it leaves records, else statistics [3][kStats] of every map.
template <int kTokens>
__global__ void __launch_bounds__(kGroup, kBlocks<kTokens>)
    stats_short(MapSource<bf16> s, MapLayout m, Records records, float* out,
                const __grid_constant__ TensorMap qkv) {
#ifdef OCCAM_WARPGROUP
  const Room<kTokens> room(aligned_room(), m);
  __shared__ uint64_t barriers[2 * Loads<kTokens>::kChunks];
  __shared__ float key_squares[kWarps], row_squares[kWarps];
  __shared__ unsigned most[2][kWarps];
  __shared__ int undecided_rows;
  __shared__ uint8_t undecided[kTokens];
  const int t = int(m.t), warp = warp_here(), lane = int(threadIdx.x) % kWarp;
  const int map = int(blockIdx.x), image = map / int(s.h), head = map - image * int(s.h);
  const Loads<kTokens> loads{room, &qkv, image, head, int(s.h), barriers};
  if (warp == 0) loads.begin();
  room.tables.fill(m);
  for (int j = int(threadIdx.x); j < (kWarps + 1) * kTokens; j += kGroup) room.columns[j] = 0;
  if (threadIdx.x == 0) undecided_rows = 0;
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
  const auto store = [&](const Facts& facts, const Shares& shares, const Counts& counts, const WarpRows& at,
                         float error, int hidden) {
    Statistics r(facts, shares, counts, at, hidden);
    // A kernel that sorts goes on with the row, or the decision.
    if (m.order || r.undecided) r.tell(error, reported(shares.base));
    if (facts.row >= t) return;
    if (r.undecided && !m.order && lane % 4 < 2)  // in any order: rows are decided each by itself
      undecided[atomicAdd(&undecided_rows, 1)] = uint8_t(facts.row);
    r.store(m.order ? records.values + (map * m.t + facts.row) * kStats
                    : reinterpret_cast<float*>(room.q) + facts.row * kSlot);
  };
#pragma unroll 1
  for (int tile = 0; tile < tiles - shared_tile; tile += kWarps) {
    const int first = (tile + warp) * kWarpRows;
    const bool active = first < t;
    float* const other = reinterpret_cast<float*>(room.q + first * kSwizzleColumns);
    if (tile == 0) {
#pragma unroll 1
      for (int c = 0; c < loads.kChunks; ++c) barrier_wait(loads.barrier(1, c), 0);
      if (warp == 0) loads.rest();
    }
    barrier_wait(loads.barrier(0, tile / kWarps), 0);
    float e[kTokens / 2];
    begin_products<kTokens>(e, operand(shared_address(room.q + tile * kWarpRows * kSwizzleColumns)),
                            operand(shared_address(room.k)));
    if (active) {
      const float square = largest_square(room.q, first);
      if (lane == 0) row_squares[warp] = square;  // a register less while products are under way
    }
    if (tile == 0) {
      float square = 0;
#pragma unroll 1
      for (int row = int(threadIdx.x); row < t; row += kGroup)
        square = fmaxf(square, square_of_row<8>(room.k, row, 0));
      square = most_of_warp(square);
      if (lane == 0) key_squares[warp] = square;
    }
    wgmma_wait<0>();
    pin(e);
    __syncthreads();  // no warp reads queries any more: records take their place
    if (!active) continue;
    const WarpRows at(m, room.tables, first);
    Row row[2];
    measure<kTokens>(e, row, at, factor);
    const float error = error_of(key_square() * row_squares[warp], kSwizzleColumns, float(s.scale), at.t);
    Facts facts;
    Shares shares(row, at, error, facts);
    shares.bounds.add<kTokens / 8>(e);
    leave_out_not_finite<kTokens / 2>(e, shares);
    const auto of_patch = [&](int half) { return at.row(half) < at.prefix ? 0 : shares.weight[half]; };
    add_columns<kTokens>(e, of_patch(0), of_patch(1), work, other, patch_sums);
    if (first < int(m.prefix)) {
      add_prefix_rows<kTokens>(e, shares.weight[0], at, prefix_sums);
#pragma unroll
      for (int i = 0; i < kTokens / 2; ++i)
        if (i / 2 % 2 == 0) shares.largest = fmaxf(shares.largest, e[i]);
    }
    store(facts, shares, Counts(shares.bounds), at, error, kTokens - at.t);
  }
  if (shared_tile) {
    barrier_wait(loads.barrier(0, tiles / kWarps), 0);
    measure_last(room, m, (tiles - 1) * kWarpRows, factor, key_square(), float(s.scale), store);
  }
  __syncthreads();
  if (!m.order) {
    const int64_t query_stride = 3 * s.h * kSwizzleColumns;
    const bf16* queries = s.qkv + image * m.t * query_stride + head * kSwizzleColumns;
    const Decision<kTokens> decision{queries,
                                     query_stride,
                                     s.scale,
                                     m,
                                     reinterpret_cast<double*>(room.work),
                                     reinterpret_cast<float*>(room.q),
                                     kSlot};
    decision.rows(undecided_rows, undecided,
                  [&](int j, int c) { return *reinterpret_cast<const uint4*>(room.k + tile_at(j, c)); });
  }

  float all_most = 0, patch_most = 0;
#pragma unroll 1
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
  stats_short<kTokens><<<grid_of_blocks(s.b * s.h), kGroup, size_t(bytes), as_stream(stream)>>>(
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
