// The same as kernel_order.cu for longer rows: a block has 16 rows of a map, whose weights lie in shared
// memory; a warp sorts a row at a time in its registers. Rows that f32 cannot decide stay marked.
#include <algorithm>

#include "ops/attention_stats/mma_rows.cuh"
#include "ops/attention_stats/order_row.cuh"

namespace occam::kernels {

using namespace cuda;
using namespace streaming;

namespace {

constexpr int kThreadsHere = 256, kWarpsHere = kThreadsHere / kWarp;
constexpr int kChunk = kWarpsHere * 16;  // keys that come into shared memory together: 16 a warp

/// kN weights of a row in each lane.
template <int kN>
struct Shared {
  static constexpr int kRowStride = kN * kWarp + 8;  // pairs of 8 rows miss each other's banks
  bf16 *rows, *keys;                                 // [16][stride], [2][kChunk][stride]
  float* weights;                                    // [16][kRowStride]
  OCCAM_HD Shared(uint4* room, const Tiling& g) {
    rows = reinterpret_cast<bf16*>(room);
    keys = rows + kWarpRows * g.stride;
    weights = reinterpret_cast<float*>(keys + 2 * kChunk * g.stride);
  }
  static int64_t bytes(const Tiling& g) {
    return int64_t(reinterpret_cast<uintptr_t>(Shared(nullptr, g).weights + kWarpRows * kRowStride));
  }
};

template <int kN>
__global__ void __launch_bounds__(kThreadsHere)
    stats_order_long(MapSource<bf16> s, MapLayout m, Records records, Tiling tiling) {
  extern __shared__ uint4 room[];
  const Shared<kN> shared(room, tiling);
  const Place place = place_of_block(s, m.t, tiling);
  const int t = int(m.t), chunks = div_up(t, kChunk), first = int(place.first);
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  float* record = records.values + (place.map * t + first) * kStats;
  const auto stream = [&](int c) {
    if (c < chunks)
      load_rows(shared.keys + c % 2 * kChunk * tiling.stride, place.keys + c * kChunk * place.stride,
                place.stride, t - c * kChunk, kChunk, s.d, tiling.stride);
    copies_commit();
  };
  load_rows(shared.rows, place.queries + first * place.stride, place.stride, t - first, kWarpRows, s.d,
            tiling.stride);
  stream(0);
  for (int i = int(threadIdx.x); i < kWarpRows * (kN * kWarp - t); i += kThreadsHere) {
    const int width = kN * kWarp - t;
    shared.weights[i / width * Shared<kN>::kRowStride + t + i % width] = 0;
  }
  const float factor = float(s.scale) * kLog2;
  float base[2];
#pragma unroll
  for (int half = 0; half < 2; ++half)
    base[half] = record[min(lane / 4 + half * 8, t - 1 - first) * kStats + kTopMass1];
#pragma unroll 1
  for (int c = 0; c < chunks; ++c) {
    stream(c + 1);
    copies_wait<1>();
    __syncthreads();
    const int key = c * kChunk + warp * 16 + lane % 4 * 2;
    float e[2][4];
    scores(e, shared.rows, shared.keys + (c % 2 * kChunk + warp * 16) * tiling.stride, tiling.stride,
           tiling.steps);
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (key + n * 8 + i % 2 < t)
          shared.weights[(lane / 4 + i / 2 * 8) * Shared<kN>::kRowStride + key + n * 8 + i % 2] =
              exp2_fast(fmaf(e[n][i], factor, -base[i / 2]));
    __syncthreads();
  }
#pragma unroll 1
  for (int i = warp; i < min(kWarpRows, t - first); i += kWarpsHere) {
    float v[kN], *to = record + i * kStats;
#pragma unroll
    for (int k = 0; k < kN; ++k) v[k] = shared.weights[i * Shared<kN>::kRowStride + k * kWarp + lane];
    const OrderedRow<kWarp> row(v, t, to[kGini]);
    if (lane > 0 || isnan(to[kEffectiveSupport])) continue;
    row.store(to);
    if (row.undecided) to[kSinkMassMax] = marked(to[kSinkMassMax]);
  }
}

template <int kN>
void launch_order_long(const MapSource<bf16>& s, const MapLayout& m, const Records& records,
                       const Tiling& tiling, cudaStream_t stream) {
  const int64_t bytes = Shared<kN>::bytes(tiling);
  allow_shared(stats_order_long<kN>, "stats_order_long", bytes);
  stats_order_long<kN><<<grid_of_blocks(s.b * s.h * tiling.parts), kThreadsHere, size_t(bytes), stream>>>(
      s, m, records, tiling);
  check_launch("stats_order_long", stream);
}

}  // namespace

bool order_long_takes(const MapSource<bf16>& s, const MapLayout& m) {
  return s.maps == nullptr && m.t <= 64 * kWarp && s.d % 8 == 0 && s.d <= kMostHead && aligned16(s.qkv) &&
         device_limits().shared_bytes_opt_in >= Shared<64>::bytes(tiling_of(1, kMostHead));
}

void order_long_records(const MapSource<bf16>& s, const MapLayout& m, const Records& records, void* stream_) {
  Tiling tiling = tiling_of(m.t, s.d);
  tiling.parts = div_up<int64_t>(m.t, kWarpRows), tiling.warps = 1;
  cudaStream_t stream = as_stream(stream_);
  if (m.t <= 20 * kWarp)
    launch_order_long<20>(s, m, records, tiling, stream);
  else if (m.t <= 36 * kWarp)
    launch_order_long<36>(s, m, records, tiling, stream);
  else
    launch_order_long<64>(s, m, records, tiling, stream);
}

}  // namespace occam::kernels
