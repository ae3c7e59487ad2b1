// The statistics that need a row in order, of bf16 rows that kernel_short.cu or kernel_streaming.cu measured:
// 16 rows a warp, scores by tensor cores, each row sorted in the registers of four lanes. Then the block does
// again, in f64, those of its rows that f32 cannot decide.
#include <algorithm>

#include "ops/attention_stats/decide.cuh"
#include "ops/attention_stats/mma_rows.cuh"
#include "ops/attention_stats/order_row.cuh"

namespace occam::kernels {

using namespace cuda;
using namespace streaming;

namespace {

constexpr int kBlocks = 2;  // of a multiprocessor: what bounds the registers
constexpr int64_t kMostSorted = 264;

/// The statistics that need a row in order, after stats_streaming. A row has kTiles * 8 keys at most.
template <int kTiles>
__global__ void __launch_bounds__(kMostWarps* kWarp, kTiles <= 25 ? kBlocks : 1)
    stats_order(MapSource<bf16> s, MapLayout m, Records records, Tiling tiling) {
  constexpr int kN = 2 * kTiles;  // of a row in a lane
  extern __shared__ uint4 room[];
  const Place at = place_of_block(s, m.t, tiling);
  const int t = int(m.t), warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp, q = lane % 4;
  bf16 *rows = reinterpret_cast<bf16*>(room), *keys = rows + tiling.rows() * tiling.stride;
  load_rows(rows, at.queries + at.first * at.stride, at.stride, t - at.first, int(tiling.rows()), s.d,
            tiling.stride);
  load_rows(keys, at.keys, at.stride, t, round_up(kTiles * 8, 16), s.d, tiling.stride);
  copies_commit();
  float* bases = reinterpret_cast<float*>(keys + round_up(kTiles * 8, 16) * tiling.stride);
  const int64_t first_record = (at.map * t + at.first) * kStats;
  // Of rows to be decided the base, NaN for the others.
  if (int(threadIdx.x) < kMostWarps * kWarpRows) bases[threadIdx.x] = nan_f();
  copies_wait<0>();
  __syncthreads();
  const int first = int(at.first) + warp * kWarpRows;
  float* all_waiting = bases + kMostWarps * kWarpRows;
  if (first < t) {
    // A lane sorts its upper row, then its lower one, which waits in its own column of shared memory.
    float v[kN];
    float* waiting = all_waiting + warp * kN * kWarp + lane;
    float* record = records.values + (at.map * t + min(first + lane / 4, t - 1)) * kStats;
    {
      float e[kTiles][4];
      scores(e, rows + warp * kWarpRows * tiling.stride, keys, tiling.stride, tiling.steps);
      const float factor = float(s.scale) * kLog2, base = record[kTopMass1];
      const float lower_base =
          records.values[(at.map * t + min(first + lane / 4 + 8, t - 1)) * kStats + kTopMass1];
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const bool exists = n * 8 + q * 2 + i < t;
          v[2 * n + i] = exists ? exp2_fast(fmaf(e[n][i], factor, -base)) : 0;
          waiting[(2 * n + i) * kWarp] = exists ? exp2_fast(fmaf(e[n][i + 2], factor, -lower_base)) : 0;
        }
    }
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      const int i = first + lane / 4 + half * 8;
      float* to = records.values + (at.map * t + min(i, t - 1)) * kStats;
      const float error = to[kGini], base = to[kTopMass1];
      const OrderedRow<4> row(v, t, error);
      if (q == 0 && i < t && !isnan(to[kEffectiveSupport])) {
        row.store(to);
        if (row.undecided || is_marked(to[kSinkMassMax])) bases[i - at.first] = base;
      }
#pragma unroll
      for (int k = 0; k < kN; ++k) v[k] = waiting[k * kWarp];
    }
  }
  __syncthreads();
  const auto pack = [&](int j, int c) {
    return *reinterpret_cast<const uint4*>(keys + j * tiling.stride + c * 8);
  };
  for_wanted(int(threadIdx.x) < tiling.rows() && !isnan(bases[threadIdx.x]), [&](int i) {
    decide_row(pack, at.queries + (at.first + i) * at.stride, int(s.d), s.scale, double(bases[i]),
               int(at.first) + i, m, reinterpret_cast<double*>(all_waiting),
               records.values + first_record + i * kStats);
  });
}

template <int kTiles>
void launch_order(const MapSource<bf16>& s, const MapLayout& m, const Records& records, const Tiling& tiling,
                  cudaStream_t stream) {
  const int64_t bytes =
      (tiling.rows() + round_up(kTiles * 8, 16)) * tiling.stride * int64_t(sizeof(bf16)) +
      kMostWarps * kWarpRows * int64_t(sizeof(float)) +
      std::max(tiling.warps * kWarp * 2 * kTiles * int64_t(sizeof(float)), decide_bytes(m.t, s.d));
  allow_shared(stats_order<kTiles>, "stats_order", bytes);
  stats_order<kTiles>
      <<<grid_of_blocks(s.b * s.h * tiling.parts), unsigned(tiling.warps * kWarp), size_t(bytes), stream>>>(
          s, m, records, tiling);
  check_launch("stats_order", stream);
}

}  // namespace

bool order_takes(const MapSource<bf16>& s, const MapLayout& m) {
  return s.maps == nullptr && m.t <= kMostSorted && s.d % 8 == 0 && s.d <= kMostHead && aligned16(s.qkv);
}

void order_records(const MapSource<bf16>& s, const MapLayout& m, const Records& records, void* stream_) {
  const Tiling tiling = tiling_of(m.t, s.d);
  cudaStream_t stream = as_stream(stream_);
  if (m.t <= 72)
    launch_order<9>(s, m, records, tiling, stream);
  else if (m.t <= 136)
    launch_order<17>(s, m, records, tiling, stream);
  else if (m.t <= 200)
    launch_order<25>(s, m, records, tiling, stream);
  else
    launch_order<33>(s, m, records, tiling, stream);
}

}  // namespace occam::kernels
