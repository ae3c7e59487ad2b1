// Statistics of bf16 rows that need no order, for rows and heads that kernel_short.cu does not take: 16 rows
// a warp, scores by tensor cores. A block owns some rows of a map and streams the keys through shared memory
// twice, once for each pass of streaming.cuh.
#include "ops/attention_stats/mma_rows.cuh"

namespace occam::kernels {

using namespace cuda;
using namespace streaming;

namespace {

constexpr int kBlocks = 3;  // of a multiprocessor: what bounds the registers
constexpr int kChunk = 64;  // keys that come into shared memory together

struct Shared {
  bf16 *rows, *keys;   // [rows][stride], [2][kChunk][stride]
  float *work, *sums;  // [warps][kWorkFloats]; [2][2][warps][kChunk]: by chunk parity, by kind of row
  float* key_squares;  // [8]: of the longest key that a warp saw
  Tables tables;
  OCCAM_HD Shared(uint4* room, const Tiling& g, const MapLayout& m) {
    rows = reinterpret_cast<bf16*>(room);
    keys = rows + g.rows() * g.stride;
    work = reinterpret_cast<float*>(keys + 2 * kChunk * g.stride);
    sums = work + g.warps * kWorkFloats;
    key_squares = sums + 4 * g.warps * kChunk;
    tables.offsets = reinterpret_cast<int*>(key_squares + 8);  // read in pairs
    tables.keys = int(round_up<int64_t>(m.t, kUnit));
    tables.distances = reinterpret_cast<float*>(tables.offsets + tables.keys);
  }
  static int64_t bytes(const Tiling& g, const MapLayout& m) {
    const Shared s(nullptr, g, m);
    return int64_t(reinterpret_cast<uintptr_t>(s.tables.distances + Tables::floats(m)));
  }
};

/// f.operator()<kN>(s, key) for `keys` keys of a chunk, 8 kN at a time.
template <int kD, class F>
__device__ __forceinline__ void for_keys(const bf16* own, const bf16* chunk, int keys, F f) {
  constexpr int kStride = kD + 8;
  int key = 0;
#pragma unroll 1
  for (; key + kUnit <= keys; key += kUnit) {
    float s[kUnit / 8][4];
    scores(s, own, chunk + key * kStride, kStride, kD / 16);
    f.template operator()<kUnit / 8>(&s[0][0], key);
  }
#pragma unroll 1
  for (; key < keys; key += 8) {
    float s[1][4];
    scores(s, own, chunk + key * kStride, kStride, kD / 16);
    f.template operator()<1>(&s[0][0], key);
  }
}

template <int kD>
__global__ void __launch_bounds__(kMostWarps* kWarp, kBlocks)
    stats_streaming(MapSource<bf16> s, MapLayout m, Records records, Tiling tiling) {
  constexpr int kStride = kD + 8;
  extern __shared__ uint4 room[];
  const Shared shared(room, tiling, m);
  const Place place = place_of_block(s, m.t, tiling);
  const int t = int(m.t), prefix = int(m.prefix), chunks = div_up(t, kChunk);
  const int warps = tiling.warps, warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  const int first = int(place.first) + warp * kWarpRows;
  const float factor = float(s.scale) * kLog2, inverse_factor = 1 / factor;
  const bool active = first < t;
  const bf16* own = shared.rows + warp * kWarpRows * kStride;
  auto stream = [&](int step) {  // the chunks twice
    const int key = step % chunks * kChunk;
    if (step < 2 * chunks)
      load_rows(shared.keys + step % 2 * kChunk * kStride, place.keys + key * place.stride, place.stride,
                t - key, kChunk, s.d, kStride);
    copies_commit();
  };
  load_rows(shared.rows, place.queries + place.first * place.stride, place.stride, t - place.first,
            int(tiling.rows()), s.d, kStride);
  stream(0);
  shared.tables.fill(m);
  for (int j = int(threadIdx.x); j < 4 * warps * kChunk; j += int(blockDim.x)) shared.sums[j] = 0;

  const WarpRows at(m, shared.tables, first);
  Row row[2];
  float key_square = 0, row_square = 0;
  for (int c = 0; c < chunks; ++c) {
    stream(c + 1);
    copies_wait<1>();
    __syncthreads();
    const bf16* chunk = shared.keys + c % 2 * kChunk * kStride;
    const int begin = c * kChunk, keys = min(kChunk, t - begin);
    if (c == 0) row_square = largest_square(own, kStride, kD / 16);
    for (int r = warp * 16; r < keys; r += warps * 16)
      key_square = fmaxf(key_square, largest_square(chunk + r * kStride, kStride, kD / 16));
    if (active)
      for_keys<kD>(own, chunk, keys, [&]<int kN>(float* e, int key) {
        first_pass<kN>(e, row, at, factor, inverse_factor, begin + key);
      });
    if (c + 1 == chunks) {
      key_square = warp_max(key_square);
      if (lane == 0) shared.key_squares[warp] = key_square;
    }
    __syncthreads();
  }
  row_square = warp_max(row_square);
  for (int w = 0; w < warps; ++w) key_square = fmaxf(key_square, shared.key_squares[w]);
  const float error = error_of(key_square * row_square, int(s.d), float(s.scale), t);
  Facts facts;
  Shares shares(row, at, error, facts);

  float* work = shared.work + warp * kWorkFloats;
  const int prefix_warps = min(warps, max(0, div_up(prefix - int(place.first), kWarpRows)));
  const int active_warps = min(warps, div_up(t - int(place.first), kWarpRows));
  double* columns = records.columns + (place.map * tiling.parts + place.part) * 2 * t;
  for (int c = 0; c < chunks; ++c) {
    const int step = chunks + c;
    stream(step + 1);
    copies_wait<1>();
    __syncthreads();
    const int begin = c * kChunk, keys = min(kChunk, t - begin);
    float* patch_sums = shared.sums + (c % 2 * 2 * warps + warp) * kChunk;
    float* prefix_sums = patch_sums + warps * kChunk;
    if (active)
      for_keys<kD>(own, shared.keys + step % 2 * kChunk * kStride, keys, [&]<int kN>(float* e, int key) {
        second_pass<kN>(e, shares, at, factor, begin + key, work, patch_sums + key, prefix_sums + key);
      });
    __syncthreads();
    // These sums are added to two chunks from here, behind another synchronisation.
    for (int j = int(threadIdx.x); j < 2 * keys; j += int(blockDim.x)) {
      const int of_patch = j < keys ? 0 : 1, column = of_patch ? j - keys : j;
      float* sums = shared.sums + (c % 2 * 2 + 1 - of_patch) * warps * kChunk + column;
      const int count = of_patch ? active_warps : prefix_warps;
      float sum = 0;
      for (int w = 0; w < count; ++w) {
        sum += sums[w * kChunk];
        sums[w * kChunk] = 0;
      }
      columns[of_patch * t + begin + column] = sum;
    }
  }
  if (!active) return;
  Statistics r(facts, shares, Counts(shares.bounds), at, round_up(t, 8) - t);
  if (facts.row >= t) return;
  if (m.order) r.tell(error, reported(shares.base));
  r.store(records.values + (place.map * t + facts.row) * kStats);
}

template <int kD>
void launch_streaming(const MapSource<bf16>& s, const MapLayout& m, const Records& records,
                      const Tiling& tiling, cudaStream_t stream) {
  const int64_t bytes = Shared::bytes(tiling, m);
  allow_shared(stats_streaming<kD>, "stats_streaming", bytes);
  stats_streaming<kD>
      <<<grid_of_blocks(s.b * s.h * tiling.parts), unsigned(tiling.warps * kWarp), size_t(bytes), stream>>>(
          s, m, records, tiling);
  check_launch("stats_streaming", stream);
}

}  // namespace

int64_t streaming_parts(int64_t t) { return tiling_of(t, 1).parts; }

bool streaming_takes(const MapSource<bf16>& s, const MapLayout& m) {
  return s.maps == nullptr && s.d % 8 == 0 && s.d <= kMostHead && aligned16(s.qkv) && s.scale > 1e-6 &&
         s.scale < 1e6 && Shared::bytes(tiling_of(m.t, s.d), m) <= device_limits().shared_bytes_opt_in;
}

void streaming_records(const MapSource<bf16>& s, const MapLayout& m, const Records& records, void* stream_) {
  const Tiling tiling = tiling_of(m.t, s.d);
  cudaStream_t stream = as_stream(stream_);
  if (s.d <= 32)
    launch_streaming<32>(s, m, records, tiling, stream);
  else if (s.d <= 64)
    launch_streaming<64>(s, m, records, tiling, stream);
  else
    launch_streaming<128>(s, m, records, tiling, stream);
}

}  // namespace occam::kernels
