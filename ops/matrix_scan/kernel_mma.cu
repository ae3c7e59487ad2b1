// Forward on the tensor cores where directions read their own q, k and v: bf16, p = 64, n = 64 or 128. A
// block has a window of one image in shared memory; a warp has two tiles of 16 rows, the one with the most
// columns and the one with the fewest, and so on, so that all warps have as much to do. One window is the
// whole sequence at 224 px; longer sequences have states between windows (window.cu).
#include "ops/matrix_scan/tile.cuh"
#include "ops/matrix_scan/window.h"

namespace occam::kernels {

namespace {

constexpr int kMostWarps = (kScanTiles + 1) / 2;
/// Shared memory: two stages of values (the keys of the group lie there before), gates and what the next are
/// made of, the scores of a group, and the state that a head begins with.
template <int kN>
struct Layout {
  int stage, gates, next_gates, scores, states, bytes;
  OCCAM_HD Layout(int step, bool connected) {
    const int tiles = step / 16, keys = step * kN * 2;
    stage = step * kScanWidth * 2;
    gates = 2 * stage > keys ? 2 * stage : keys;
    next_gates = gates + int(sizeof(TileGates));
    scores = next_gates + int(sizeof(NextGates));
    states = (scores + tiles * (tiles + 1) / 2 * 512 + 255) / 256 * 256;
    bytes = states + (connected ? kScanWidth * kN * 2 : 0);
  }
};

/// A block has one direction of a group, whose heads share queries and keys: scores are made once, kept as
/// bf16 tiles in the layout of an operand, and every head weighs them by the decays of rows; those of columns
/// are in the values by then. Merged directions share a block.
template <int kN, bool kLong, bool kMerged>
__global__ void __launch_bounds__(kMostWarps * 32, 2)
    matrix_scan_fwd_group(MatrixScanForward<bf16, float> a, WindowPlan plan) {
  extern __shared__ __align__(1024) unsigned char memory[];
  const Layout<kN> layout(int(plan.step), kLong);
  const MatrixScanShape s = a.s;
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, g = lane / 4, q = lane % 4;

  int64_t block = blockIdx.x;
  const int part = int(block % plan.parts);
  block /= plan.parts;
  const int group = int(block % s.g);
  block /= s.g;
  // Merged directions follow one another, and the second adds to what the first has stored.
  const int first_direction = kMerged ? 0 : int(block % 2), end_direction = kMerged ? 2 : first_direction + 1;
  if (!kMerged) block /= 2;
  const int window = int(block % plan.windows), heads = int(s.h / s.g), each = int(plan.heads);
  const ScanWindow w = window_of(s, plan.step, block / plan.windows, window);
  if (w.count == 0) return;
  const int first_head = group * heads + part * each;
  const int items = heads - part * each < each ? heads - part * each : each;
  // Of a half warp; neighbouring ones have the first and the last tile, and so on.
  const int last_tile = w.tiles - 1 - warp;
  const bool works = warp <= last_tile;
  const int gate_token = works ? (lane < 16 ? warp : last_tile) * 16 + lane % 16 : kScanWindow;
  auto tile_of = [&](int n) { return n == 0 ? warp : last_tile; };
  const int own_tiles = !works ? 0 : warp == last_tile ? 1 : 2;

  uint4* scores = reinterpret_cast<uint4*>(memory + layout.scores);
  TileGates& gates = *reinterpret_cast<TileGates*>(memory + layout.gates);
  NextGates& next_gates = *reinterpret_cast<NextGates*>(memory + layout.next_gates);
  bf16* state = reinterpret_cast<bf16*>(memory + layout.states);
  auto stage = [&](int item) { return reinterpret_cast<bf16*>(memory + item % 2 * layout.stage); };
#pragma unroll 1
  for (int direction = first_direction; direction < end_direction; ++direction) {
    const bool adds = kMerged && direction == 1, exclusive = adds || (kMerged && a.diagonal != nullptr);
    if (adds) __syncthreads();  // nobody reads the direction before
    auto score_at = [&](int i, int j) {
      if (direction == 1) i = w.tiles - 1 - i, j = w.tiles - 1 - j;
      return (i * (i + 1) / 2 + j) * 32 + lane;
    };
    const bf16* queries = rows_of(a.q, s, w, direction, group);
    {
      copy_rows<kN>(stage(0), a.k, s, w, direction, group);
      copies_commit();
      uint32_t rows[kN / 16][4];
      if (own_tiles > 0) load_fragments<kN>(rows, queries, a.q.t, w.count, warp * 16);
      copies_wait<0>();
      __syncthreads();
#pragma unroll 1
      for (int n = 0; n < own_tiles; ++n) {
        const int tile = tile_of(n);
        if (n > 0) load_fragments<kN>(rows, queries, a.q.t, w.count, tile * 16);
        const int end = direction == 0 ? tile + 1 : w.tiles;
        for (int j = direction == 0 ? 0 : tile; j < end; ++j) {
          Tile score;
          product_rows<kN>(score, rows, stage(0), j * 16);
          uint32_t packed[4];
          fragment_a(packed, score.v[0], score.v[1]);
          scores[score_at(tile, j)] = make_uint4(packed[0], packed[1], packed[2], packed[3]);
        }
      }
      __syncthreads();
    }

    // Values of a head, and what its gates are made of, on the way to shared memory.
    auto issue = [&](int item) {
      copy_rows<kScanWidth>(stage(item), a.v, s, w, direction, first_head + item);
      copy_gate(next_gates, a.log_decay, a.scale, s.h, w, direction, first_head + item, gate_token);
      copies_commit();
    };

    issue(0);
#pragma unroll 1
    for (int item = 0; item < items; ++item) {
      const int head = first_head + item;
      const int64_t line = ((w.image * 2 + direction) * s.h + head) * plan.windows + window;
      bf16* values = stage(item);
      copies_wait<0>();
      __syncthreads();  // the item has come, and nobody reads the one before
      store_gate(gates, next_gate(next_gates, a.scale != nullptr, w, gate_token), direction, gate_token);
      if constexpr (kLong) {
        copy_state<kN>(state, plan.before.states, line);
        copies_commit();
      }
      if (item + 1 < items)
        issue(item + 1);
      else
        copies_commit();
      const float skip = a.skip != nullptr ? a.skip[direction * s.h + head] : 0.0f;
      // Values of a warp's own tiles, as they are and then times the decays of columns.
      uint32_t own[4][4], other[4][4];
      load_columns(own, values, warp * 16);
      if (own_tiles == 2) load_columns(other, values, last_tile * 16);
      __syncwarp();
      for (int n = 0; n < own_tiles; ++n) scale_tile(values, gates.column, tile_of(n) * 16);
      if (kLong) copies_wait<1>();
      __syncthreads();
#pragma unroll 1
      for (int n = 0; n < own_tiles; ++n) {
        const int tile = tile_of(n);
        const int64_t row = w.row + tile * 16;
        float floor[2] = {1, 1}, own_weight[2] = {skip, skip};
        if (kMerged && a.diagonal != nullptr && direction == 0)
#pragma unroll
          for (int low = 0; low < 2; ++low)
            if (tile * 16 + g + low * 8 < w.count)
              own_weight[low] = a.diagonal[(row + g + low * 8) * s.h + head];
        if (a.floor != nullptr)
#pragma unroll
          for (int low = 0; low < 2; ++low)
            if (tile * 16 + g + low * 8 < w.count)
              floor[low] = a.floor[((row + g + low * 8) * 2 + direction) * s.h + head];
        float sum[8][4] = {}, den[4] = {};
        auto score_of = [&](int j) { return unpack_tile(scores[score_at(tile, j)]); };
        uint32_t weights[4];
        {
          Tile score = score_of(tile);
          const Tile factor = diagonal_factors(gates, tile, direction, exclusive);
#pragma unroll
          for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int k = 0; k < 4; ++k) {
              score.v[half][k] *= factor.v[half][k];
              if (g + k / 2 * 8 == half * 8 + 2 * q + k % 2) score.v[half][k] += own_weight[k / 2];
            }
          fragment_a(weights, score.v[0], score.v[1]);
          product_fragments(sum, weights, own);
          if (a.floor != nullptr) add_den(den, weights, {1, 1}, {1, 1});
        }
        float row0 = exp2_fast(gates.log_row[tile * 16 + g]),
              row1 = exp2_fast(gates.log_row[tile * 16 + g + 8]);
        // Weights of a tile away from the diagonal, and their product with values and with decays of columns.
        auto weigh_rows = [&](uint32_t(&weights)[4], const Tile& score, int j) {
          Tile factor;
#pragma unroll
          for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int k = 0; k < 4; ++k) factor.v[half][k] = k < 2 ? row0 : row1;
          row0 *= gates.total[j], row1 *= gates.total[j];
          weigh(weights, score, factor);
        };
        auto add = [&](const uint32_t(&weights)[4], int j) {
          product_columns<kScanWidth>(sum, weights, values, j * 16);
          const float* column = gates.column + j * 16 + 2 * q;
          if (a.floor != nullptr) add_den(den, weights, {column[0], column[1]}, {column[8], column[9]});
        };
        const int on = direction == 0 ? -1 : 1;
        int left = direction == 0 ? tile : w.tiles - 1 - tile, j = tile + on;
#pragma unroll 1
        for (; left >= 2; left -= 2, j += 2 * on) {  // two tiles side by side, to keep a warp busy
          const Tile first = score_of(j), second = score_of(j + on);
          uint32_t others[4];
          weigh_rows(weights, first, j), weigh_rows(others, second, j + on);
          add(weights, j), add(others, j + on);
        }
        if (left > 0) {
          weigh_rows(weights, score_of(j), j);
          add(weights, j);
        }
        if constexpr (kLong) {  // row0 and row1 are now what is left of the state before the window
          const float left_of[2] = {row0, row1};
          float of_sums[2] = {};
#pragma unroll
          for (int part = 0; part < kN / 64; ++part) {
            uint32_t some[4][4];
#pragma unroll
            for (int k = 0; k < 4; ++k)
              load_fragment(some[k], queries, a.q.t, w.count, tile * 16, part * 4 + k);
#pragma unroll
            for (int k = 0; k < 4; ++k) {
              scale_rows(some[k], left_of);
              if (a.floor != nullptr)
                dot_rows(of_sums, some[k], plan.before.sums + line * kN + (part * 4 + k) * 16);
              product_transposed<kN>(sum, some[k], state, part * 4 + k);
            }
          }
          if (a.floor != nullptr)
#pragma unroll
            for (int low = 0; low < 2; ++low) {
              const float entered = quad_sum(of_sums[low]);
              if (q == 0) den[2 * low] += entered;
            }
        }
        if (a.floor != nullptr)
#pragma unroll
          for (int low = 0; low < 2; ++low) {
            const float d = __shfl_sync(0xffffffffu, den[2 * low], lane & ~3);
            if (q == 0 && tile * 16 + g + low * 8 < w.count)
              a.den[((row + g + low * 8) * 2 + direction) * s.h + head] = d;
            const float inverse = 1 / max_(fabsf(d), floor[low]);
#pragma unroll
            for (int j = 0; j < 8; ++j) sum[j][2 * low] *= inverse, sum[j][2 * low + 1] *= inverse;
          }
        const int64_t e = kMerged ? 1 : 2, y_row = s.h * e * kScanWidth;
        bf16* y = a.y + ((row * s.h + head) * e + (kMerged ? 0 : direction)) * kScanWidth;
        if (adds) add_rows(sum, y, y_row, w.count - tile * 16);
        store_rows(y, y_row, w.count - tile * 16, sum);
#pragma unroll
        for (int k = 0; k < 4; ++k)
#pragma unroll
          for (int i = 0; i < 4; ++i) own[k][i] = other[k][i];
      }
    }
  }
}

template <int kN, bool kLong, bool kMerged>
void launch(const MatrixScanForward<bf16, float>& a, const WindowPlan& plan, void* stream) {
  auto* kernel = matrix_scan_fwd_group<kN, kLong, kMerged>;
  const int bytes = Layout<kN>(int(plan.step), kLong).bytes;
  allow_shared(kernel, "matrix_scan_fwd_group", bytes);
  const int64_t blocks = a.s.b * plan.windows * plan.parts * a.s.outputs() * a.s.g;
  const int threads = int(div_up<int64_t>(plan.step, 32)) * 32;
  kernel<<<grid_of_blocks(blocks), threads, size_t(bytes), as_stream(stream)>>>(a, plan);
  check_launch("matrix_scan_fwd_group", stream);
}

template <int kN>
void launch(const MatrixScanForward<bf16, float>& a, const WindowPlan& plan, void* stream) {
  auto* one = plan.connected() ? a.s.merge ? launch<kN, true, true> : launch<kN, true, false>
              : a.s.merge ? launch<kN, false, true>
                               : launch<kN, false, false>;
  one(a, plan, stream);
}

}  // namespace

bool fits_windows(const MatrixScanForward<bf16, float>& a) {
  const MatrixScanShape& s = a.s;
  auto whole_pieces = [](const ScanView<bf16>& x) {
    return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && (x.b | x.t | x.r | x.h) % 8 == 0;
  };
  if (device_limits().capability < 80 || device_limits().shared_bytes_opt_in < 160 * 1024) return false;
  if (s.p != kScanWidth || !whole_pieces(a.q) || !whole_pieces(a.k) || !whole_pieces(a.v)) return false;
  if (reads_both(a)) return s.n == 64;
  return (s.n == 64 || s.n == 128) && (!s.merge || a.floor == nullptr);
}

int64_t window_fwd_scratch(const MatrixScanForward<bf16, float>& a) {
  const WindowPlan plan = window_plan(a.s, reads_both(a));
  return window_state_floats(a.s, plan, false);
}

void window_fwd(const MatrixScanForward<bf16, float>& a, float* scratch, void* stream) {
  WindowPlan plan = window_plan(a.s, reads_both(a));
  if (plan.connected()) window_states(a, plan, scratch, stream);
  if (plan.both && has_warpgroups())
    window_fwd_both_warpgroups(a, plan, stream);
  else if (plan.both)
    window_fwd_both(a, plan, stream);
  else if (a.s.n == 128)
    launch<128>(a, plan, stream);
  else
    launch<64>(a, plan, stream);
}

}  // namespace occam::kernels
