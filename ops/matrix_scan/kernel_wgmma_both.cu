// Forward where both directions read the same q, k and v, by Hopper's warpgroups: bf16, n = p = 64. A block
// has one head of a window at a time in shared memory, while the next is on its way; a warpgroup has 64 rows
// and meets 64 columns at a time. Blocks are as many as multiprocessors and share all heads of all windows
// between them; of few heads each warpgroup is a block.
#include "core/cuda/wgmma.cuh"
#include "ops/matrix_scan/tile.cuh"
#include "ops/matrix_scan/window.h"

namespace occam::kernels {

namespace {

constexpr int kGroupThreads = 128, kGroupTiles = 4,
              kMostGroups = (kScanTiles + kGroupTiles - 1) / kGroupTiles;

/// Tiles that products run over: one, or four at a time.
OCCAM_HD int padded_tiles(int tiles) { return tiles % 4 == 1 ? tiles : (tiles + 3) / 4 * 4; }

/// Shared memory: two stages of values, keys, queries and states, then gates of both directions and what the
/// next are made of. Rows of no tile behind the queries are read, and belong to results that nobody stores.
struct Layout {
  int keys, queries, states, stage, gates, next_gates, bytes;
  OCCAM_HD Layout(int step, bool connected) {
    keys = padded_tiles(step / 16) * 16 * kScanWidth * 2, queries = 2 * keys, states = 3 * keys;
    stage = states + (connected ? 2 * kScanWidth * kScanWidth * 2 : 0);
    gates = 2 * stage, next_gates = gates + 2 * int(sizeof(TileGates));
    bytes = next_gates + 2 * int(sizeof(NextGates));
  }
};

#ifdef OCCAM_WARPGROUP

/// A head of a window.
struct Item {
  int64_t image;
  int window, head;

  __device__ void advance(int windows, int heads) {
    if (++head < heads) return;
    head = 0;
    if (++window == windows) window = 0, ++image;
  }
};

template <int kTiles, bool kOwn>
struct Tiles {};

/// What a warp's 16 rows, those of `tile`, are made of; of a lane two rows.
struct RowSums {
  float o[32], den[4];
  float row[2][2];   // by direction: what a row keeps of what came into its tile
  float between[2];  // and of the tiles met so far
  int tile;
  bool busy;  // else the warp only takes part in products
};

/// Weights of 64 rows and the columns of kTiles tiles from `first` on, and their products with values. kOwn:
/// the columns of the warpgroup's own tokens, with the tile on the diagonal, whose factors are given; of both
/// directions, or (0, 1) of `direction` alone. Else all lie on one side.
template <int kTiles, bool kOwn>
__device__ __forceinline__ void meet(RowSums& r, const TileGates* gates, uint32_t queries, uint32_t keys,
                                     uint32_t values, int first, int direction, const Tile& diagonal,
                                     const float (&own_weight)[2], bool normed) {
  const int lane = int(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
  float s[8 * kTiles] = {};
  const uint32_t on = uint32_t(first) * kStepAcross;
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < 4; ++step)
    wgmma<16 * kTiles, false, false>(s, queries + step * kStepAlong, keys + on + step * kStepAlong, step > 0);
  wgmma_commit();
  wgmma_wait<0>();
  pin(s);
  // Weights of tile t of a side, whose columns the rows keep `left` of.
  auto weigh = [&](int t, const TileGates& of, const float(&left)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float2 c = *reinterpret_cast<const float2*>(of.column + (first + t) * 16 + half * 8 + 2 * q);
#pragma unroll
      for (int k = 0; k < 4; ++k) s[8 * t + 4 * half + k] *= left[k / 2] * (k % 2 == 0 ? c.x : c.y);
    }
  };
  if (r.busy && !kOwn) {
    const int side = first < r.tile ? 0 : 1;
    float left[2] = {side == 0 ? r.row[0][0] * r.between[0] : r.row[1][0] * r.between[1],
                     side == 0 ? r.row[0][1] * r.between[0] : r.row[1][1] * r.between[1]};
    float total[kTiles], all = 1;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) total[t] = gates[side].total[first + t], all *= total[t];
    if (side == 0) {
#pragma unroll
      for (int t = kTiles - 1; t >= 0; --t)
        weigh(t, gates[0], left), left[0] *= total[t], left[1] *= total[t];
      r.between[0] *= all;
    } else {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) weigh(t, gates[1], left), left[0] *= total[t], left[1] *= total[t];
      r.between[1] *= all;
    }
  }
  if (r.busy && kOwn) {
    const int own = r.tile - first;
#pragma unroll
    for (int t = kTiles - 1; t >= 0; --t)
      if (t < own && direction != 1) {
        const float left[2] = {r.row[0][0] * r.between[0], r.row[0][1] * r.between[0]};
        weigh(t, gates[0], left);
        r.between[0] *= gates[0].total[first + t];
      } else if (t == own) {
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            float& weight = s[8 * t + 4 * half + k];
            weight *= diagonal.v[half][k];
            if (g + k / 2 * 8 == half * 8 + 2 * q + k % 2) weight += own_weight[k / 2];
          }
      } else if (t < own || direction == 0) {
#pragma unroll
        for (int k = 0; k < 8; ++k) s[8 * t + k] = 0;
      }
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
      if (t > own && direction != 0) {
        const float left[2] = {r.row[1][0] * r.between[1], r.row[1][1] * r.between[1]};
        weigh(t, gates[1], left);
        r.between[1] *= gates[1].total[first + t];
      }
  }
  uint32_t weights[kTiles][4];
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) weights[t][i] = pack_bf16(s[8 * t + 2 * i], s[8 * t + 2 * i + 1]);
    if (normed) add_den(r.den, weights[t], {1, 1}, {1, 1});
  }
  pin(r.o);
  wgmma_fence();
#pragma unroll
  for (int t = 0; t < kTiles; ++t) wgmma_registers(r.o, weights[t], values + on + t * kStepAcross, true);
  wgmma_commit();
  wgmma_wait<0>();
  pin(r.o);
}

#endif

template <bool kLong>
__global__ void __launch_bounds__(kMostGroups* kGroupThreads, 1)
    matrix_scan_fwd_warpgroups(MatrixScanForward<bf16, float> a, WindowPlan plan) {
#ifdef OCCAM_WARPGROUP
  extern __shared__ __align__(1024) unsigned char memory[];
  constexpr int kN = kScanWidth;
  const Layout layout(int(plan.step), kLong);
  const MatrixScanShape s = a.s;
  const int warp = __shfl_sync(0xffffffffu, int(threadIdx.x) / 32, 0), lane = int(threadIdx.x) % 32,
            g = lane / 4, q = lane % 4;
  const int group = int(blockIdx.y) + warp / 4, heads_of_group = int(s.h / s.g);
  TileGates* gates = reinterpret_cast<TileGates*>(memory + layout.gates);
  NextGates* next_gates = reinterpret_cast<NextGates*>(memory + layout.next_gates);

  const int windows = int(plan.windows), heads = int(s.h);
  const int64_t all = s.b * windows * heads, begin = all * blockIdx.x / gridDim.x;
  const int items = int(all * (blockIdx.x + 1) / gridDim.x - begin);
  // A thread makes the gates of these tokens in both directions; tiles that pad have some too.
  const int tokens = padded_tiles(int(plan.step) / 16) * 16, whole_warps = (tokens + 31) / 32 * 32;
  auto window_at = [&](const Item& item) { return window_of(s, plan.step, item.image, item.window); };
  auto line = [&](const Item& item, int direction) {
    return ((item.image * 2 + direction) * heads + item.head) * windows + item.window;
  };
  auto stage = [&](int n, int offset) {
    return reinterpret_cast<bf16*>(memory + n % 2 * layout.stage + offset);
  };
  auto issue = [&](int n, const Item& item) {
    const ScanWindow w = window_at(item);
    ScanWindow padded = w;
    padded.tiles = padded_tiles(w.tiles);
    const int head = item.head, of_group = head / heads_of_group;
    copy_rows<kN>(stage(n, layout.queries), a.q, s, w, 0, of_group);
    copy_rows<kN>(stage(n, layout.keys), a.k, s, padded, 0, of_group);
    copy_rows<kScanWidth>(stage(n, 0), a.v, s, padded, 0, head);
    for (int i = int(threadIdx.x); i < 2 * whole_warps; i += int(blockDim.x)) {
      const int direction = i / whole_warps;
      copy_gate(next_gates[direction], a.log_decay, a.scale, heads, w, direction, head, i % whole_warps);
    }
    if (kLong && w.count > 0)
      for (int r = 0; r < 2; ++r)
        copy_state<kN>(stage(n, layout.states) + r * kScanWidth * kN, plan.before.states, line(item, r));
    copies_commit();
  };

  Item item{begin / heads / windows, int(begin / heads % windows), int(begin % heads)};
  if (items > 0) issue(0, item);
#pragma unroll 1
  for (int n = 0; n < items; ++n) {
    const Item current = item;
    const ScanWindow w = window_at(item);
    const int head = item.head;
    copies_wait<0>();
    fence_async();
    __syncthreads();  // the item has come, and nobody reads the one before
    for (int i = int(threadIdx.x); i < 2 * whole_warps; i += int(blockDim.x)) {
      const int direction = i / whole_warps, token = i % whole_warps;
      store_gate(gates[direction], next_gate(next_gates[direction], a.scale != nullptr, w, token), direction,
                 token);
    }
    __syncthreads();
    item.advance(windows, heads);
    if (n + 1 < items) issue(n + 1, item);
    if (group * kGroupTiles >= w.tiles) continue;
    const uint32_t values = operand(shared_address(stage(n, 0))),
                   keys = operand(shared_address(stage(n, layout.keys))),
                   queries = operand(shared_address(stage(n, layout.queries))) +
                             uint32_t(group * kGroupTiles) * kStepAcross;
    RowSums r;
    r.tile = group * kGroupTiles + warp % 4;
    const bool busy = r.busy = r.tile < w.tiles;
    const int tile = busy ? r.tile : group * kGroupTiles;
#pragma unroll
    for (int direction = 0; direction < 2; ++direction) {
      r.row[direction][0] = exp2_fast(gates[direction].log_row[tile * 16 + g]);
      r.row[direction][1] = exp2_fast(gates[direction].log_row[tile * 16 + g + 8]);
    }
    const int chunks = padded_tiles(w.tiles) / kGroupTiles;
    const bool tail = padded_tiles(w.tiles) % kGroupTiles == 1;
    const int64_t e = s.outputs(), row = w.row + tile * 16;
#pragma unroll 1
    for (int direction = 0; direction < e; ++direction) {  // both at once when they are merged
      float own_weight[2] = {}, floor[2] = {1, 1};
      Tile diagonal = diagonal_factors(gates[direction], tile, direction, a.diagonal != nullptr);
      if (s.merge) {
        const Tile more = diagonal_factors(gates[1], tile, 1, true);
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int k = 0; k < 4; ++k) diagonal.v[half][k] += more.v[half][k];
      }
#pragma unroll
      for (int low = 0; low < 2; ++low) {
        const bool there = busy && tile * 16 + g + low * 8 < w.count;
        const int64_t at = row + g + low * 8;
        if (a.skip != nullptr)
          own_weight[low] = a.skip[direction * heads + head] + (s.merge ? a.skip[heads + head] : 0);
        if (a.diagonal != nullptr && there) own_weight[low] = a.diagonal[at * heads + head];
        if (a.floor != nullptr && there) floor[low] = a.floor[(at * e + direction) * heads + head];
      }
      r.between[0] = r.between[1] = 1;
#pragma unroll
      for (float& d : r.den) d = 0;
#pragma unroll
      for (float& o : r.o) o = 0;

      auto go = [&]<int kTiles, bool kOwn>(Tiles<kTiles, kOwn>, int chunk) {
        meet<kTiles, kOwn>(r, gates, queries, keys, values, chunk * kGroupTiles, s.merge ? 2 : direction,
                           diagonal, own_weight, a.floor != nullptr);
      };
      // The columns of its own tokens, earlier ones, later ones; a tile by itself is the last.
      if (group < chunks)
        go(Tiles<kGroupTiles, true>{}, group);
      else
        go(Tiles<1, true>{}, chunks);
      const int down = s.merge || direction == 0 ? min(group, chunks) : 0,
                up = s.merge || direction == 1 ? max(chunks - group - 1, 0) : 0;
#pragma unroll 1
      for (int step = 0; step < down + up; ++step)
        go(Tiles<kGroupTiles, false>{}, step < down ? down - 1 - step : group + 1 + step - down);
      if (tail && group < chunks && (s.merge || direction == 1)) go(Tiles<1, false>{}, chunks);
      if constexpr (kLong) {  // `between` is now of all tiles on the side that a state comes from
#pragma unroll
        for (int from = 0; from < 2; ++from) {
          if (!s.merge && from != direction) continue;
          float part[32] = {};
          const uint32_t state = operand(shared_address(stage(n, layout.states) + from * kScanWidth * kN));
          const float each[2] = {r.row[from][0] * r.between[from], r.row[from][1] * r.between[from]};
          if (a.floor != nullptr && busy) {
            float of_sums[2] = {};
            uint32_t rows[kN / 16][4];
            load_fragments<kN>(rows, stage(n, layout.queries), tile * 16);
#pragma unroll
            for (int k = 0; k < kN / 16; ++k)
              dot_rows(of_sums, rows[k], plan.before.sums + line(current, from) * kN + k * 16);
#pragma unroll
            for (int low = 0; low < 2; ++low) {
              const float entered = quad_sum(each[low] * of_sums[low]);
              if (q == 0) r.den[2 * low] += entered;
            }
          }
          wgmma_fence();
#pragma unroll
          for (int step = 0; step < 4; ++step)
            wgmma<64, false, false>(part, queries + step * kStepAlong, state + step * kStepAlong, step > 0);
          wgmma_commit();
          wgmma_wait<0>();
          pin(part);
#pragma unroll
          for (int i = 0; i < 32; ++i) r.o[i] += each[i / 2 % 2] * part[i];
        }
      }
      if (!busy) continue;
      float inverse[2] = {1, 1};
      if (a.floor != nullptr)
#pragma unroll
        for (int low = 0; low < 2; ++low) {
          const float d = __shfl_sync(0xffffffffu, r.den[2 * low], lane & ~3);
          if (q == 0 && tile * 16 + g + low * 8 < w.count)
            a.den[((row + g + low * 8) * e + direction) * heads + head] = d;
          inverse[low] = 1 / max_(fabsf(d), floor[low]);
        }
      float sum[8][4];
#pragma unroll
      for (int i = 0; i < 32; ++i) sum[i / 4][i % 4] = r.o[i] * inverse[i / 2 % 2];
      store_rows(a.y + ((row * heads + head) * e + direction) * kScanWidth, heads * e * kScanWidth,
                 w.count - tile * 16, sum);
    }
  }
#endif
}

/// Empty; its launch bound tells whether the code in use was built for warpgroups (sm_90a).
#ifdef OCCAM_WARPGROUP
constexpr int kMark = 128;
#else
constexpr int kMark = 64;
#endif
__global__ void __launch_bounds__(kMark) matrix_scan_warpgroup_mark() {}

template <bool kLong>
void launch(const MatrixScanForward<bf16, float>& a, const WindowPlan& plan, void* stream) {
  auto* kernel = matrix_scan_fwd_warpgroups<kLong>;
  const int bytes = Layout(int(plan.step), kLong).bytes, groups = int(div_up<int64_t>(plan.step, 64));
  allow_shared(kernel, "matrix_scan_fwd_warpgroups", bytes);
  const int64_t all = a.s.b * plan.windows * a.s.h;
  const bool split = all * groups <= device_limits().sm_count;
  const dim3 grid(unsigned(std::min<int64_t>(all, device_limits().sm_count)), split ? unsigned(groups) : 1);
  kernel<<<grid, (split ? 1 : groups) * kGroupThreads, size_t(bytes), as_stream(stream)>>>(a, plan);
  check_launch("matrix_scan_fwd_warpgroups", stream);
}

}  // namespace

bool has_warpgroups() {
  if (device_limits().capability != 90) return false;
  static const bool built = [] {
    cudaFuncAttributes attributes;
    OCCAM_CUDA_CHECK(cudaFuncGetAttributes(&attributes, matrix_scan_warpgroup_mark));
    return attributes.maxThreadsPerBlock == 128;
  }();
  return built;
}

void window_fwd_both_warpgroups(const MatrixScanForward<bf16, float>& a, const WindowPlan& plan,
                                void* stream) {
  plan.connected() ? launch<true>(a, plan, stream) : launch<false>(a, plan, stream);
}

}  // namespace occam::kernels
