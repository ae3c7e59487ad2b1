// Statistics of bf16 rows: scores by tensor cores, the rest in f32 registers, 16 rows a warp. A block owns
// some rows of a map and streams the keys through shared memory twice: the first pass finds each row's
// maximum and sum, the second knows the probabilities and adds up everything that needs no order. What needs
// order is a second kernel, which sorts each row in the registers of four lanes. A lane's scores are those of
// mma.cuh: rows g and g+8, of every 8 keys those at 2q and 2q+1.
#include <algorithm>

#include "core/cuda/launch.h"
#include "core/cuda/mma.cuh"
#include "core/cuda/reduce.cuh"
#include "core/cuda/vec.cuh"
#include "ops/attention_stats/quad_sort.cuh"
#include "ops/attention_stats/records.h"

namespace occam::kernels {

using namespace cuda;

namespace {

constexpr int kStats = kAttentionStatCount;
constexpr int kWarpRows = 16, kMostWarps = 7;
constexpr int kBlocksStreaming = 3, kBlocksOrder = 2;  // of a multiprocessor: what bounds the registers
constexpr int kChunk = 64;                             // keys that come into shared memory together
constexpr int kUnit = 32;                              // keys that a warp treats together, at most
constexpr int kWorkStride = kUnit + 8;  // of column sums; 8 rows of a lane's pairs miss each other's banks
constexpr int kWorkFloats = 8 * kWorkStride;  // of a warp
constexpr int64_t kMostHead = 128, kMostSorted = 264;
constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
constexpr float kLowest = -1e20f;  // of a maximum, as an exponent
constexpr float kHidden = -1e30f;  // a score or exponent of a key that does not exist
constexpr float kUnitF32 = 0x1p-24f;

/// Rows of a block: 16 a warp, the last block may have fewer.
struct Tiling {
  int64_t parts;
  int warps, stride, steps;  // stride: of a row in shared memory; steps: of 16 along the head
  OCCAM_HD int64_t rows() const { return int64_t(warps) * kWarpRows; }
};
Tiling tiling_of(int64_t t, int64_t d) {
  int64_t tiles = div_up<int64_t>(t, kWarpRows), parts = div_up<int64_t>(tiles, kMostWarps);
  int64_t width = d <= 32 ? 32 : d <= 64 ? 64 : kMostHead;
  return {parts, int(div_up(tiles, parts)), int(width) + 8, int(width / 16)};
}

/// Where a block works.
struct Place {
  const bf16 *queries, *keys;  // of the map, from its row 0
  int64_t stride;              // from token to token
  int64_t map, part, first;    // first row of the block
};
__device__ __forceinline__ Place place_of_block(const MapSource<bf16>& s, int64_t t, const Tiling& tiling) {
  const int64_t map = blockIdx.x / tiling.parts, part = blockIdx.x % tiling.parts, width = s.h * s.d;
  const bf16* queries = s.qkv + map / s.h * t * 3 * width + map % s.h * s.d;
  return {queries, queries + width, 3 * width, map, part, part * tiling.rows()};
}

/// `count` rows to shared memory; rows from `valid` on and columns from d on become 0.
__device__ __forceinline__ void load_rows(bf16* to, const bf16* from, int64_t from_stride, int64_t valid,
                                          int count, int64_t d, int stride) {
  const int packs = (stride - 8) / 8;  // 4, 8 or 16: a thread stays in its column
  const int column = int(threadIdx.x) % packs * 8;
  for (int row = int(threadIdx.x) / packs; row < count; row += int(blockDim.x) / packs) {
    const bool exists = row < valid && column < d;
    copy_async16(to + row * stride + column, exists ? from + row * from_stride + column : from, exists);
  }
}

/// Raw products of the warp's 16 rows with 8 kN keys.
template <int kN>
__device__ __forceinline__ void scores(float (&s)[kN][4], const bf16* rows, const bf16* keys, int stride,
                                       int steps) {
  const int lane = int(threadIdx.x) % kWarp;
  const bf16* a_at = rows + lane % 16 * stride + lane / 16 * 8;
  const bf16* b_at = keys + (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8;
#pragma unroll
  for (int n = 0; n < kN; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) s[n][e] = 0;
#pragma unroll
  for (int k = 0; k < steps; ++k) {
    uint32_t a[4];
    ldmatrix(a, a_at + k * 16);
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      uint32_t b[4];
      ldmatrix(b, b_at + n * 8 * stride + k * 16);
      mma_bf16(s[n], a, b[0], b[1]);
      if (n + 1 < kN) mma_bf16(s[n + 1], a, b[2], b[3]);
    }
  }
}

/// f(n, e) for the lane's numbers of keys from `limit` on, counted from the first key of s.
template <int kN, class F>
__device__ __forceinline__ void beyond(int limit, F f) {
  const int column = int(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int n = 0; n < kN; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (n * 8 + column + e % 2 >= limit) f(n, e);
}

__device__ __forceinline__ float quad_sum(float x) { return warp_reduce<4>(x, SumOp{}); }

/// No less than the squared length of any of 16 rows: no product of two of them is larger. 0 or more.
__device__ __forceinline__ float largest_square(const bf16* rows, int stride, int steps) {
  float s[2][4], largest = 0;
  scores(s, rows, rows, stride, steps);
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) largest = fmaxf(largest, s[n][e]);
  return largest;
}

/// Counts numbers below a bound, and knows when rounding could have decided: a number counts 1 well below, 0
/// well above and a fraction within a relative `error` of the bound, so that the sum of the squares is the
/// sum only when no number is that close. `middle` is middle_of(error).
struct Counter {
  float slope, count = 0;
  __device__ __forceinline__ Counter(float bound, float error) : slope(0.5f / (error * bound)) {}
  static __device__ __forceinline__ float middle_of(float error) { return 0.5f + 0.5f / error; }
  __device__ __forceinline__ void add(float x, float middle, float& squares) {
    float below = __saturatef(fmaf(-slope, x, middle));
    count += below;
    squares = fmaf(below, below, squares);
  }
};

/// What a lane adds up of one of its two rows. Exponents and sums are relative to 2^base.
struct Row {
  float base = kLowest, sum = 0;  // maximum of score * factor; of 2^(score * factor - base)
  float weighted = 0, squares = 0, decided = 0, mass = 0, distance = 0, window3 = 0, window5 = 0;
  float first = 0, largest = 0;
};

struct Shared {
  bf16 *rows, *keys;   // [rows][stride], [2][kChunk][stride]
  float *work, *sums;  // [warps][kWorkFloats], [2][2][warps][kChunk]: by chunk parity, by kind of row
  float* key_squares;  // [kMostWarps]: of the longest key that a warp saw
  float* distances;    // [2 grid_h - 1][2 grid_w - 1]
  int* offsets;        // of a key in `distances`, [t] and to the end of its chunk
  __host__ __device__ Shared(uint4* room, const Tiling& g, const MapLayout& m) {
    rows = reinterpret_cast<bf16*>(room);
    keys = rows + g.rows() * g.stride;
    work = reinterpret_cast<float*>(keys + 2 * kChunk * g.stride);
    sums = work + g.warps * kWorkFloats;
    key_squares = sums + 4 * g.warps * kChunk;
    offsets = reinterpret_cast<int*>(key_squares + 8);  // read in pairs
    distances = reinterpret_cast<float*>(offsets + round_up<int64_t>(m.t, kChunk));
  }
  static int64_t bytes(const Tiling& g, const MapLayout& m) {
    Shared s(nullptr, g, m);
    return reinterpret_cast<char*>(s.distances + (2 * m.grid_h - 1) * (2 * m.grid_w - 1)) - (char*)nullptr;
  }
};

template <int kN>
__device__ __forceinline__ void find_sums(Row (&row)[2], float (&s)[kN][4], float factor, int limit) {
  if (limit < 8 * kN) beyond<kN>(limit, [&](int n, int e) { s[n][e] = kHidden; });
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    Row& r = row[half];
    float most = s[0][2 * half], sum = 0;
#pragma unroll
    for (int n = 0; n < kN; ++n) most = fmaxf(most, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
    most = fmaxf(r.base, most * factor);
#pragma unroll
    for (int n = 0; n < kN; ++n)
#pragma unroll
      for (int e = 2 * half; e < 2 * half + 2; ++e) sum += exp2_fast(fmaf(s[n][e], factor, -most));
    r.sum = fmaf(r.sum, exp2_fast(r.base - most), sum);
    r.base = most;
  }
}

/// Sums over the warp's rows of 8 kN columns, weighted by row, to `to`.
template <int kN>
__device__ __forceinline__ void add_columns(const float (&e)[kN][4], float upper, float lower, float* work,
                                            float* to) {
  const int lane = int(threadIdx.x) % kWarp;
  float* mine = work + lane / 4 * kWorkStride + lane % 4 * 2;
#pragma unroll
  for (int n = 0; n < kN; ++n)
    *reinterpret_cast<float2*>(mine + n * 8) =
        make_float2(fmaf(e[n][0], upper, e[n][2] * lower), fmaf(e[n][1], upper, e[n][3] * lower));
  __syncwarp();
  if (lane < 8 * kN) {
    float sum = 0;
#pragma unroll
    for (int g = 0; g < 8; ++g) sum += work[g * kWorkStride + lane];
    to[lane] = sum;
  }
  __syncwarp();
}

template <int kD>
__global__ void __launch_bounds__(kMostWarps* kWarp, kBlocksStreaming)
    stats_streaming(MapSource<bf16> s, MapLayout m, Records records, Tiling tiling) {
  constexpr int kStride = kD + 8;
  extern __shared__ uint4 room[];
  const Shared shared(room, tiling, m);
  const Place at = place_of_block(s, m.t, tiling);
  const int t = int(m.t), prefix = int(m.prefix), gh = int(m.grid_h), gw = int(m.grid_w);
  const int warps = tiling.warps, warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  const int g = lane / 4, q = lane % 4, first = int(at.first) + warp * kWarpRows;  // of the warp
  const int chunks = div_up(t, kChunk), table_width = 2 * gw - 1;
  const float factor = float(s.scale) * kLog2e;
  const bool active = first < t;
  const bf16* own = shared.rows + warp * kWarpRows * kStride;
  auto stream = [&](int step) {  // the chunks twice
    const int key = step % chunks * kChunk;
    if (step < 2 * chunks)
      load_rows(shared.keys + step % 2 * kChunk * kStride, at.keys + key * at.stride, at.stride, t - key,
                kChunk, s.d, kStride);
    copies_commit();
  };
  load_rows(shared.rows, at.queries + at.first * at.stride, at.stride, t - at.first, int(tiling.rows()), s.d,
            kStride);
  stream(0);
  for (int j = int(threadIdx.x); j < chunks * kChunk; j += int(blockDim.x))
    if (j < prefix || j >= t) shared.offsets[j] = 0;
  for (int y = warp; y < gh; y += warps)
    for (int x = lane; x < gw; x += kWarp) shared.offsets[prefix + y * gw + x] = y * table_width + x;
  for (int y = warp; y < 2 * gh - 1; y += warps)
    for (int x = lane; x < table_width; x += kWarp) {
      const float dy = float(y - (gh - 1)), dx = float(x - (gw - 1));
      shared.distances[y * table_width + x] = sqrtf(dy * dy + dx * dx);
    }

  Row row[2];
  float key_square = 0, row_square = 0;
  for (int c = 0; c < chunks; ++c) {
    stream(c + 1);
    copies_wait<1>();
    __syncthreads();
    const bf16* tile = shared.keys + c % 2 * kChunk * kStride;
    const int keys = min(kChunk, t - c * kChunk);
    if (c == 0) row_square = largest_square(own, kStride, kD / 16);
    for (int r = warp * 16; r < keys; r += warps * 16)
      key_square = fmaxf(key_square, largest_square(tile + r * kStride, kStride, kD / 16));
    if (active) {
      int key = 0;
      for (; key + kUnit <= keys; key += kUnit) {
        float e[kUnit / 8][4];
        scores(e, own, tile + key * kStride, kStride, kD / 16);
        find_sums(row, e, factor, kUnit);
      }
      for (; key < keys; key += 16) {
        float e[2][4];
        scores(e, own, tile + key * kStride, kStride, kD / 16);
        find_sums(row, e, factor, keys - key);
      }
    }
    if (c + 1 == chunks) {
      key_square = warp_max(key_square);
      if (lane == 0) shared.key_squares[warp] = key_square;
    }
    __syncthreads();
  }

  row_square = warp_max(row_square);
  for (int w = 0; w < warps; ++w) key_square = fmaxf(key_square, shared.key_squares[w]);
  // How far a probability may be off, relative to itself: README.md, "Counts".
  const float error = 4 * kUnitF32 * sqrtf(float(s.d)) * float(s.scale) * sqrtf(key_square * row_square) +
                      (41 + float(t) / 64) * kUnitF32;
  float inverse[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    Row& r = row[half];
    const float base = warp_reduce<4>(r.base, MaxOp{});
    r.sum = quad_sum(r.sum * exp2_fast(r.base - base));
    r.base = base;
    inverse[half] = 1 / r.sum;
  }
  const float uniform = 1 / float(t), share = float(kShareThreshold), middle = Counter::middle_of(error);
  Counter below[2] = {{share * row[0].sum, error}, {share * row[1].sum, error}};
  Counter below_uniform[2] = {{uniform * row[0].sum, error}, {uniform * row[1].sum, error}};
  float patch_weight[2], prefix_weight[2];
  int from[2];  // of the row in the distances of its map
  int band_begin = t, band_end = 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int i = first + g + half * 8;
    patch_weight[half] = i >= prefix && i < t ? inverse[half] : 0;
    prefix_weight[half] = i < prefix ? inverse[half] : 0;
    const int patch = i < prefix || i >= t ? 0 : i - prefix;
    from[half] = (gh - 1 - patch / gw) * table_width + gw - 1 - patch % gw;
  }
  if (first + kWarpRows > prefix) {  // grid rows up to 2 from those of the warp's patches
    band_begin = prefix + ((max(first, prefix) - prefix) / gw - 2) * gw;
    band_end = prefix + ((first + kWarpRows - 1 - prefix) / gw + 3) * gw;
  }
  const bool has_prefix = first < prefix;
  const int prefix_warps = min(warps, max(0, div_up(prefix - int(at.first), kWarpRows)));
  const int active_warps = min(warps, div_up(t - int(at.first), kWarpRows));

  auto tally = [&]<int kN>(float(&e)[kN][4], int key, int limit, float* patch_sums, float* prefix_sums) {
#pragma unroll
    for (int n = 0; n < kN; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) e[n][i] = fmaf(e[n][i], factor, -row[i / 2].base);
    if (limit < 8 * kN) beyond<kN>(limit, [&](int n, int i) { e[n][i] = kHidden; });
#pragma unroll
    for (int n = 0; n < kN; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        Row& r = row[i / 2];
        const float x = e[n][i], y = exp2_fast(x);
        e[n][i] = y;
        r.weighted = fmaf(y, x, r.weighted);  // -inf * 0 is NaN, as it should: a score was not finite
        r.squares = fmaf(y, y, r.squares);
        below[i / 2].add(y, middle, r.decided);
        below_uniform[i / 2].add(y, middle, r.decided);
      }
    float* work = shared.work + warp * kWorkFloats;
    if (!has_prefix) {
      add_columns(e, patch_weight[0], patch_weight[1], work, patch_sums);
    } else {  // a row that is not finite must not enter the other kind's sums by 0 * NaN
      float of_kind[kN][4];
#pragma unroll
      for (int kind = 0; kind < 2; ++kind) {
        const float(&weight)[2] = kind == 0 ? patch_weight : prefix_weight;
#pragma unroll
        for (int n = 0; n < kN; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            of_kind[n][i] = weight[i / 2] == 0 ? 0 : e[n][i];
            row[i / 2].largest = fmaxf(row[i / 2].largest, e[n][i]);
          }
        add_columns(of_kind, weight[0], weight[1], work, kind == 0 ? patch_sums : prefix_sums);
      }
    }
    if (key < prefix) {  // from here on patches only
      if (key == 0 && q == 0) row[0].first = e[0][0], row[1].first = e[0][2];
#pragma unroll
      for (int n = 0; n < kN; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (key + n * 8 + q * 2 + i % 2 < prefix) e[n][i] = 0;
    }
    float distance[kN][4];
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      const int2 to = *reinterpret_cast<const int2*>(shared.offsets + key + n * 8 + q * 2);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        Row& r = row[i / 2];
        distance[n][i] = shared.distances[from[i / 2] + (i % 2 == 0 ? to.x : to.y)];
        r.mass += e[n][i];
        r.distance = fmaf(e[n][i], distance[n][i], r.distance);
      }
    }
    if (key >= band_end || key + 8 * kN <= band_begin) return;
#pragma unroll
    for (int n = 0; n < kN; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // Within 1 or 2 rows and columns is no farther than sqrt 2 or sqrt 8; farther is 2 or 3 at least.
        Row& r = row[i / 2];
        r.window3 = fmaf(e[n][i], __saturatef(fmaf(distance[n][i], -8.0f, 13.0f)), r.window3);
        r.window5 = fmaf(e[n][i], __saturatef(fmaf(distance[n][i], -16.0f, 47.0f)), r.window5);
      }
  };
  double* columns = records.columns + (at.map * tiling.parts + at.part) * 2 * t;
  for (int c = 0; c < chunks; ++c) {
    const int step = chunks + c;
    stream(step + 1);
    copies_wait<1>();
    __syncthreads();
    const bf16* tile = shared.keys + step % 2 * kChunk * kStride;
    const int begin = c * kChunk, keys = min(kChunk, t - begin);
    float* patch_sums = shared.sums + (c % 2 * 2 * warps + warp) * kChunk;
    float* prefix_sums = patch_sums + warps * kChunk;
    if (active) {
      int key = 0;
      for (; key + kUnit <= keys; key += kUnit) {
        float e[kUnit / 8][4];
        scores(e, own, tile + key * kStride, kStride, kD / 16);
        tally(e, begin + key, kUnit, patch_sums + key, prefix_sums + key);
      }
      for (; key < keys; key += 16) {
        float e[2][4];
        scores(e, own, tile + key * kStride, kStride, kD / 16);
        tally(e, begin + key, keys - key, patch_sums + key, prefix_sums + key);
      }
    }
    __syncthreads();
    // These sums are overwritten two chunks from here, behind another synchronisation.
    for (int j = int(threadIdx.x); j < 2 * keys; j += int(blockDim.x)) {
      const int of_patch = j < keys ? 0 : 1, column = of_patch ? j - keys : j;
      const float* sums = shared.sums + (c % 2 * 2 + 1 - of_patch) * warps * kChunk + column;
      const int count = of_patch ? active_warps : prefix_warps;
      float sum = 0;
      for (int w = 0; w < count; ++w) sum += sums[w * kChunk];
      columns[of_patch * t + begin + column] = sum;
    }
  }
  if (!active) return;

  const int hidden = round_up(t, 16) - t;  // counted as below both bounds
  const float root = sqrtf(float(t)), per_root = 1 / (root - 1), per_log = 1 / logf(float(t));
  const float nan = __int_as_float(0x7fc00000);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    Row& r = row[half];
    const float a = quad_sum(below[half].count), b = quad_sum(below_uniform[half].count);
    const float decided = quad_sum(r.decided), weighted = quad_sum(r.weighted), squares = quad_sum(r.squares);
    const float mass = quad_sum(r.mass), distance = quad_sum(r.distance), window3 = quad_sum(r.window3);
    const float window5 = quad_sum(r.window5), cls = quad_sum(r.first);
    const float largest = warp_reduce<4>(r.largest, MaxOp{});
    const int i = first + g + half * 8;
    if (i >= t) continue;
    const float entropy = kLn2 * (log2f(r.sum) - weighted * inverse[half]);
    const bool finite = fabsf(entropy) < infinity_<float>(), spatial = finite && i >= prefix;
    // A distance needs mass on patches, far above what 2^x loses below 2^-126.
    const bool decides = a + b == decided && !(spatial && mass < 1e-20f);
    float4 v;  // statistics 4q .. 4q+3 (keys.h)
    if (q == 0) {
      v = {(a - float(hidden)) * uniform, (b - float(hidden)) * uniform, entropy * per_log, expf(entropy)};
    } else if (q == 1) {
      // For the kernel that sorts: the error and the base.
      v = {(root - r.sum * rsqrtf(squares)) * per_root, m.order ? error : nan, m.order ? r.base : nan, nan};
    } else if (q == 2) {
      v = {nan, nan, nan, spatial && mass > 0 ? distance / mass : nan};
    } else {
      v = {spatial ? window3 * inverse[half] : nan, spatial ? window5 * inverse[half] : nan,
           prefix > 0 ? cls * inverse[half] : nan, decides ? largest * inverse[half] : kUndecided};
    }
    if (!finite) v = {nan, nan, nan, nan};
    *reinterpret_cast<float4*>(records.values + (at.map * t + i) * kStats + q * 4) = v;
  }
}

/// The statistics that need a row in order, after stats_streaming. A row has kTiles * 8 keys at most.
template <int kTiles>
__global__ void __launch_bounds__(kMostWarps* kWarp, kTiles <= 25 ? kBlocksOrder : 1)
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
  copies_wait<0>();
  __syncthreads();
  const int first = int(at.first) + warp * kWarpRows;
  if (first >= t) return;

  // A lane sorts its upper row, then its lower one, which waits in its own column of shared memory.
  float v[kN];
  float* waiting =
      reinterpret_cast<float*>(keys + round_up(kTiles * 8, 16) * tiling.stride) + warp * kN * kWarp + lane;
  float* record = records.values + (at.map * t + min(first + lane / 4, t - 1)) * kStats;
  {
    float e[kTiles][4];
    scores(e, rows + warp * kWarpRows * tiling.stride, keys, tiling.stride, tiling.steps);
    const float factor = float(s.scale) * kLog2e, base = record[kTopMass1];
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
  const int tenth = (t + 9) / 10;
  constexpr int kMostTenth = (kTiles * 8 + 9) / 10;
  static_assert(kMostTenth <= kN && 10 <= kN, "the first lane holds the largest");
#pragma unroll 1
  for (int half = 0; half < 2; ++half) {
    sort_quad(v);
    float own = 0, ranked = 0;
#pragma unroll
    for (int i = 0; i < kN; ++i) own += v[i], ranked = fmaf(v[i], float(i) + 0.5f, ranked);
    ranked = quad_sum(fmaf(own, float(q * kN), ranked));
    float before = 0;
#pragma unroll
    for (int step = 1; step < 4; ++step) {
      const float left = __shfl_up_sync(0xffffffffu, own, unsigned(step), 4);
      if (q >= step) before += left;
    }
    const float sum = quad_sum(own), inverse = 1 / sum;
    const int i = first + lane / 4 + half * 8;
    float* to = records.values + (at.map * t + min(i, t - 1)) * kStats;
    // A share of 0.9 changes by 2 * 0.9 * 0.1 of what its entries do; then the additions.
    const float error = (0.2f * to[kGini] + float(kN + 8) * kUnitF32) / float(kSupportMass);
    const float middle = Counter::middle_of(error);
    Counter below(float(kSupportMass) * sum, error);
    float decided = 0, mass = before, top5 = 0, top10 = 0, top_tenth = 0;
#pragma unroll
    for (int k = 0; k < kN; ++k) {
      mass += v[k];
      below.add(mass, middle, decided);
      if (k == 4) top5 = mass;
      if (k == 9) top10 = mass;
      if (k < kMostTenth && k + 1 == tenth) top_tenth = mass;
    }
    const float count = quad_sum(below.count);
    decided = quad_sum(decided);
    if (q == 0 && i < t && !isnan(to[kEffectiveSupport])) {
      to[kGini] = 1 - 2 * ranked * inverse / float(t);
      to[kTopMass1] = v[0] * inverse;
      to[kTopMass5] = top5 * inverse;
      to[kTopMass10] = top10 * inverse;
      to[kTopMassTenth] = top_tenth * inverse;
      to[kMassSupport] = (count + 1) / float(t);
      if (count != decided) to[kSinkMassMax] = kUndecided;
    }
#pragma unroll
    for (int k = 0; k < kN; ++k) v[k] = waiting[k * kWarp];
  }
}

template <int kTiles>
void launch_order(const MapSource<bf16>& s, const MapLayout& m, const Records& records, const Tiling& tiling,
                  cudaStream_t stream) {
  const int64_t bytes = (tiling.rows() + round_up(kTiles * 8, 16)) * tiling.stride * int64_t(sizeof(bf16)) +
                        tiling.warps * kWarp * 2 * kTiles * int64_t(sizeof(float));
  allow_shared(stats_order<kTiles>, "stats_order", bytes);
  stats_order<kTiles>
      <<<unsigned(s.b * s.h * tiling.parts), unsigned(tiling.warps * kWarp), size_t(bytes), stream>>>(
          s, m, records, tiling);
  check_launch("stats_order", stream);
}

template <int kD>
void launch_streaming(const MapSource<bf16>& s, const MapLayout& m, const Records& records,
                      const Tiling& tiling, cudaStream_t stream) {
  const int64_t bytes = Shared::bytes(tiling, m);
  allow_shared(stats_streaming<kD>, "stats_streaming", bytes);
  stats_streaming<kD>
      <<<unsigned(s.b * s.h * tiling.parts), unsigned(tiling.warps * kWarp), size_t(bytes), stream>>>(
          s, m, records, tiling);
  check_launch("stats_streaming", stream);
}

}  // namespace

int64_t mma_parts(int64_t t) { return tiling_of(t, 1).parts; }

bool mma_takes(const MapSource<bf16>& s, const MapLayout& m) {
  return s.maps == nullptr && s.d % 8 == 0 && s.d <= kMostHead && aligned16(s.qkv) && s.scale > 1e-6 &&
         s.scale < 1e6 && (!m.order || m.t <= kMostSorted) &&
         Shared::bytes(tiling_of(m.t, s.d), m) <= device_limits().shared_bytes_opt_in;
}

void mma_records(const MapSource<bf16>& s, const MapLayout& m, const Records& records, void* stream_) {
  const Tiling tiling = tiling_of(m.t, s.d);
  cudaStream_t stream = as_stream(stream_);
  if (s.d <= 32)
    launch_streaming<32>(s, m, records, tiling, stream);
  else if (s.d <= 64)
    launch_streaming<64>(s, m, records, tiling, stream);
  else
    launch_streaming<128>(s, m, records, tiling, stream);
  if (!m.order) return;
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
