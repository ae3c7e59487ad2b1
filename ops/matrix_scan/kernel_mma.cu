// Forward on the tensor cores, bf16, p = 64, n = 64 or 128. A block has a window of up to 208 tokens of one
// image, in shared memory; a warp has two tiles of 16 rows, the one with the most columns and the one with
// the fewest, and so on, so that all warps have as much to do. One window is the whole sequence at 224 px;
// longer sequences have states between windows (window.cu).
#include "ops/matrix_scan/tile.cuh"
#include "ops/matrix_scan/window.h"

namespace occam::kernels {

namespace {

constexpr int kMostWarps = (kScanTiles + 1) / 2;
/// Shared memory: two stages of values (and keys, when heads have their own; else the keys of the group lie
/// where the stages come later), gates of the directions and what the next are made of, the scores of a
/// group, and the states that a head begins with in each direction.
template <int kN, bool kBoth>
struct Layout {
  int stage, gates, next_gates, scores, states, bytes;
  OCCAM_HD Layout(int step, bool connected) {
    const int tiles = step / 16, directions = kBoth ? 2 : 1;
    stage = step * (kBoth ? kScanWidth + kN : kScanWidth) * 2;
    const int keys = kBoth ? 0 : step * kN * 2;
    gates = 2 * stage > keys ? 2 * stage : keys;
    next_gates = gates + directions * int(sizeof(TileGates));
    scores = next_gates + directions * int(sizeof(NextGates));
    states = (scores + (kBoth ? 0 : tiles * (tiles + 1) / 2 * 512) + 255) / 256 * 256;
    bytes = states + (connected ? directions * kScanWidth * kN * 2 : 0);
  }
};

/// Rows of a warp's tile times decays, rounded, by the values: an operand of 16 x 16 weights.
__device__ __forceinline__ void weigh(uint32_t (&weights)[4], const Tile& score, const Tile& factor) {
  Tile p;
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int k = 0; k < 4; ++k) p.v[half][k] = score.v[half][k] * factor.v[half][k];
  fragment_a(weights, p.v[0], p.v[1]);
}
/// The sums of a den: the product with a column of numbers (u, decayed, or 1), in column 0 of `den`.
__device__ __forceinline__ void add_den(float (&den)[4], const uint32_t (&weights)[4], float2 low,
                                        float2 high) {
  const bool mine = threadIdx.x % 32 < 4;
  mma_bf16(den, weights, mine ? pack_bf16(low.x, low.y) : 0, mine ? pack_bf16(high.x, high.y) : 0);
}

/// kBoth: a block goes through heads, each in both directions, which read the same q, k and v. Else it has
/// one direction of a group, whose heads share queries and keys: scores are made once, kept as bf16 tiles in
/// the layout of an operand, and every head weighs them by the decays of rows; those of columns are in the
/// values by then.
template <int kN, bool kBoth, bool kLong>
__global__ void __launch_bounds__(kMostWarps * 32, 2)
    matrix_scan_fwd_window(MatrixScanForward<bf16, float> a, WindowPlan plan) {
  extern __shared__ __align__(1024) unsigned char memory[];
  constexpr int kDirections = kBoth ? 2 : 1;
  const Layout<kN, kBoth> layout(int(plan.step), kLong);
  const MatrixScanShape s = a.s;
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, g = lane / 4, q = lane % 4;

  int64_t block = blockIdx.x;
  const int part = int(block % plan.parts);
  block /= plan.parts;
  int group = 0, own_direction = 0;
  if (!kBoth) {
    group = int(block % s.g), block /= s.g;
    own_direction = int(block % 2), block /= 2;
  }
  const int window = int(block % plan.windows), heads_of_group = int(s.h / s.g);
  const ScanWindow w = window_of(s, plan.step, block / plan.windows, window);
  if (w.count == 0) return;
  const int heads = kBoth ? int(s.h) : heads_of_group, each = int(plan.heads);
  const int first_head = group * heads_of_group + part * each;
  const int items = heads - part * each < each ? heads - part * each : each;
  auto direction_of = [&](int r) { return kBoth ? r : own_direction; };
  // Of a half warp; neighbouring ones have the first and the last tile, and so on.
  const int last_tile = w.tiles - 1 - warp;
  const bool works = warp <= last_tile;
  const int gate_token = works ? (lane < 16 ? warp : last_tile) * 16 + lane % 16 : kScanWindow;

  uint4* scores = reinterpret_cast<uint4*>(memory + layout.scores);
  TileGates* gates = reinterpret_cast<TileGates*>(memory + layout.gates);
  NextGates* next_gates = reinterpret_cast<NextGates*>(memory + layout.next_gates);
  bf16* states = reinterpret_cast<bf16*>(memory + layout.states);
  auto stage = [&](int item) { return reinterpret_cast<bf16*>(memory + item % 2 * layout.stage); };
  auto score_at = [&](int i, int j) {
    if (own_direction == 1) i = w.tiles - 1 - i, j = w.tiles - 1 - j;
    return (i * (i + 1) / 2 + j) * 32 + lane;
  };
  auto tile_of = [&](int n) { return n == 0 ? warp : last_tile; };
  const int own_tiles = !works ? 0 : warp == last_tile ? 1 : 2;
  if constexpr (!kBoth) {
    copy_rows<kN>(stage(0), a.k, s, w, own_direction, group);
    copies_commit();
    copies_wait<0>();
    __syncthreads();
#pragma unroll 1
    for (int n = 0; n < own_tiles; ++n) {
      const int tile = tile_of(n);
      uint32_t rows[kN / 16][4];
      load_fragments<kN>(rows, rows_of(a.q, s, w, own_direction, group), a.q.t, w.count, tile * 16);
      const int end = own_direction == 0 ? tile + 1 : w.tiles;
      for (int j = own_direction == 0 ? 0 : tile; j < end; ++j) {
        Tile score;
        product_rows<kN>(score, rows, stage(0), j * 16);
        uint32_t packed[4];
        fragment_a(packed, score.v[0], score.v[1]);
        scores[score_at(tile, j)] = make_uint4(packed[0], packed[1], packed[2], packed[3]);
      }
    }
    __syncthreads();
  }

  // Values and keys of a head, and what its gates are made of, on the way to shared memory.
  auto issue = [&](int item) {
    const int head = first_head + item;
    copy_rows<kScanWidth>(stage(item), a.v, s, w, own_direction, head);
    if (kBoth) copy_rows<kN>(stage(item) + plan.step * kScanWidth, a.k, s, w, 0, head / heads_of_group);
#pragma unroll
    for (int r = 0; r < kDirections; ++r)
      copy_gate(next_gates[r], a.log_decay, a.scale, s.h, w, direction_of(r), head, gate_token);
    copies_commit();
  };
  auto line = [&](int head, int direction) {
    return ((w.image * 2 + direction) * s.h + head) * plan.windows + window;
  };
  auto load_queries = [&](uint32_t(&rows)[kBoth ? kN / 16 : 1][4], int item, int n) {
    if constexpr (kBoth)
      load_fragments<kN>(rows, rows_of(a.q, s, w, 0, (first_head + item) / heads_of_group), a.q.t, w.count,
                         tile_of(n) * 16);
  };

  issue(0);
  uint32_t rows[kBoth ? kN / 16 : 1][4];
  load_queries(rows, 0, 0);
#pragma unroll 1
  for (int item = 0; item < items; ++item) {
    const int head = first_head + item;
    bf16* values = stage(item);
    copies_wait<0>();
    __syncthreads();  // the item has come, and nobody reads the one before
#pragma unroll
    for (int r = 0; r < kDirections; ++r)
      store_gate(gates[r], next_gate(next_gates[r], a.scale != nullptr, w, gate_token), direction_of(r),
                 gate_token);
    if constexpr (kLong) {
      for (int r = 0; r < kDirections; ++r)
        copy_state<kN>(states + r * kScanWidth * kN, plan.before.states, line(head, direction_of(r)));
      copies_commit();
    }
    if (item + 1 < items)
      issue(item + 1);
    else
      copies_commit();
    // Values of a warp's own tiles, as they are and then times the decays of columns.
    uint32_t own[kBoth ? 1 : 4][4], other[kBoth ? 1 : 4][4];
    if constexpr (!kBoth) {
      load_columns(own, values, warp * 16);
      if (own_tiles == 2) load_columns(other, values, last_tile * 16);
      __syncwarp();
      for (int n = 0; n < own_tiles; ++n) scale_tile(values, gates[0].column, tile_of(n) * 16);
    }
    if (kLong) copies_wait<1>();
    __syncthreads();
#pragma unroll 1
    for (int n = 0; n < own_tiles; ++n) {
      const int tile = tile_of(n);
      float sum[8][4], den[4];
#pragma unroll 1
      for (int r = 0; r < kDirections; ++r) {
        const int direction = direction_of(r);
        const TileGates& now = gates[r];
        if (!s.merge || r == 0) {
#pragma unroll
          for (int j = 0; j < 8; ++j)
#pragma unroll
            for (int k = 0; k < 4; ++k) sum[j][k] = 0;
#pragma unroll
          for (int k = 0; k < 4; ++k) den[k] = 0;
        }
        auto score_of = [&](int j) {
          Tile score;
          if constexpr (kBoth) {
            product_rows<kN>(score, rows, values + plan.step * kScanWidth, j * 16);
          } else {
            const uint4 packed = scores[score_at(tile, j)];
            score = unpack_tile(packed);
          }
          return score;
        };
        uint32_t weights[4];
        {
          const Tile decay = diagonal_decays<false>(now, tile, direction, s.merge && direction == 1);
          Tile score = score_of(tile);
          const float skip = a.skip != nullptr ? a.skip[direction * s.h + head] : 0.0f;
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const float2 u = *reinterpret_cast<const float2*>(now.scale + tile * 16 + half * 8 + 2 * q);
#pragma unroll
            for (int k = 0; k < 4; ++k) {
              score.v[half][k] *= decay.v[half][k] * (k % 2 == 0 ? u.x : u.y);
              if (g + k / 2 * 8 == half * 8 + 2 * q + k % 2) score.v[half][k] += skip;
            }
          }
          fragment_a(weights, score.v[0], score.v[1]);
          if constexpr (kBoth)
            product_columns<kScanWidth>(sum, weights, values, tile * 16);
          else
            product_fragments(sum, weights, own);
          if (a.floor != nullptr) add_den(den, weights, {1, 1}, {1, 1});
        }
        float row0 = exp2_fast(now.log_row[tile * 16 + g]), row1 = exp2_fast(now.log_row[tile * 16 + g + 8]);
        // Weights of a tile away from the diagonal, times its values.
        auto factor_of = [&](int j) {
          Tile f;
          if constexpr (kBoth)
            f = tile_factors(now, j, row0, row1);
          else
#pragma unroll
            for (int half = 0; half < 2; ++half)
#pragma unroll
              for (int k = 0; k < 4; ++k) f.v[half][k] = k < 2 ? row0 : row1;
          row0 *= now.total[j], row1 *= now.total[j];
          return f;
        };
        auto add = [&](const uint32_t(&weights)[4], int j) {
          product_columns<kScanWidth>(sum, weights, values, j * 16);
          if (a.floor != nullptr) {
            // In the weights, or else in the values.
            const float* column = now.column + j * 16 + 2 * q;
            if constexpr (kBoth)
              add_den(den, weights, {1, 1}, {1, 1});
            else
              add_den(den, weights, {column[0], column[1]}, {column[8], column[9]});
          }
        };
        const int on = direction == 0 ? -1 : 1;
        int left = direction == 0 ? tile : w.tiles - 1 - tile, j = tile + on;
#pragma unroll 1
        for (; left >= 2; left -= 2, j += 2 * on) {
          const Tile first = score_of(j), second = score_of(j + on);
          uint32_t others[4];
          weigh(weights, first, factor_of(j));
          weigh(others, second, factor_of(j + on));
          add(weights, j), add(others, j + on);
        }
        if (left > 0) {
          const Tile score = score_of(j);
          weigh(weights, score, factor_of(j));
          add(weights, j);
        }
        if constexpr (kLong) {  // row0 and row1 are now what is left of the state before the window
          const float row[2] = {row0, row1};
          float of_sums[2] = {};
          const bf16* queries = rows_of(a.q, s, w, own_direction, head / heads_of_group);
#pragma unroll
          for (int k = 0; k < kN / 16; ++k) {
            uint32_t scaled[4];
            if constexpr (kBoth)
#pragma unroll
              for (int i = 0; i < 4; ++i) scaled[i] = rows[k][i];
            else
              load_fragment(scaled, queries, a.q.t, w.count, tile * 16, k);
            scale_rows(scaled, row);
            if (a.floor != nullptr)
              dot_rows(of_sums, scaled, plan.before.sums + line(head, direction) * kN + k * 16);
            product_transposed<kN>(sum, scaled, states + r * kScanWidth * kN, k);
          }
          if (a.floor != nullptr)
#pragma unroll
            for (int low = 0; low < 2; ++low) {
              const float all = quad_sum(of_sums[low]);
              if (q == 0) den[2 * low] += all;
            }
        }
        if (s.merge && r == 0) continue;
        if (r == kDirections - 1) {
          if (n + 1 < own_tiles)
            load_queries(rows, item, n + 1);
          else if (item + 1 < items)
            load_queries(rows, item + 1, 0);
        }
        const int64_t e = s.outputs(), out = s.merge ? 0 : direction, row = w.row + tile * 16;
        if (a.floor != nullptr)
#pragma unroll
          for (int low = 0; low < 2; ++low) {
            const float d = __shfl_sync(0xffffffffu, den[2 * low], lane & ~3);
            float inverse = 0;
            if (tile * 16 + g + low * 8 < w.count) {
              const int64_t at = ((row + g + low * 8) * e + out) * s.h + head;
              if (q == 0) a.den[at] = d;
              inverse = 1 / max_(fabsf(d), a.floor[at]);
            }
#pragma unroll
            for (int j = 0; j < 8; ++j) sum[j][2 * low] *= inverse, sum[j][2 * low + 1] *= inverse;
          }
        store_rows(a.y + ((row * s.h + head) * e + out) * kScanWidth, s.h * e * kScanWidth,
                   w.count - tile * 16, sum);
      }
      if constexpr (!kBoth)
#pragma unroll
        for (int k = 0; k < 4; ++k)
#pragma unroll
          for (int i = 0; i < 4; ++i) own[k][i] = other[k][i];
    }
  }
}

template <int kN, bool kBoth, bool kLong>
void launch(const MatrixScanForward<bf16, float>& a, const WindowPlan& plan, void* stream) {
  auto* kernel = matrix_scan_fwd_window<kN, kBoth, kLong>;
  const int bytes = Layout<kN, kBoth>(int(plan.step), kLong).bytes;
  allow_shared(kernel, "matrix_scan_fwd_window", bytes);
  const int64_t blocks = a.s.b * plan.windows * plan.parts * (kBoth ? 1 : 2 * a.s.g);
  const int threads = int(div_up<int64_t>(plan.step, 32)) * 32;
  kernel<<<grid_of_blocks(blocks), threads, size_t(bytes), as_stream(stream)>>>(a, plan);
  check_launch("matrix_scan_fwd_window", stream);
}

template <int kN, bool kBoth>
void launch(const MatrixScanForward<bf16, float>& a, WindowPlan plan, float* scratch, void* stream) {
  if (!plan.connected()) return launch<kN, kBoth, false>(a, plan, stream);
  window_states(a, plan, scratch, stream);
  launch<kN, kBoth, true>(a, plan, stream);
}

}  // namespace

bool fits_windows(const MatrixScanForward<bf16, float>& a) {
  const MatrixScanShape& s = a.s;
  auto whole_pieces = [](const ScanView<bf16>& x) {
    return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && (x.b | x.t | x.r | x.h) % 8 == 0;
  };
  if (device_limits().capability < 80 || device_limits().shared_bytes_opt_in < 160 * 1024) return false;
  if (s.p != kScanWidth || !whole_pieces(a.q) || !whole_pieces(a.k) || !whole_pieces(a.v)) return false;
  return reads_both(a) ? s.n == 64 : !s.merge && (s.n == 64 || s.n == 128);
}

int64_t window_fwd_scratch(const MatrixScanForward<bf16, float>& a) {
  const WindowPlan plan = window_plan(a.s, reads_both(a));
  return window_state_floats(a.s, plan, false);
}

void window_fwd(const MatrixScanForward<bf16, float>& a, float* scratch, void* stream) {
  const WindowPlan plan = window_plan(a.s, reads_both(a));
  if (plan.both)
    launch<64, true>(a, plan, scratch, stream);
  else if (a.s.n == 128)
    launch<128, false>(a, plan, scratch, stream);
  else
    launch<64, false>(a, plan, scratch, stream);
}

}  // namespace occam::kernels
