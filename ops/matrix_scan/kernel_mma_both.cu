// Forward on the tensor cores where both directions read the same q, k and v: bf16, n = p = 64. A block has
// one head of a window at a time in shared memory, while the next is on its way; a warp has a tile of 16
// rows, which meets every tile of columns in one direction or the other, so that all warps have as much to
// do. Blocks are as many as multiprocessors and share all heads of all windows between them.
#include "ops/matrix_scan/tile.cuh"
#include "ops/matrix_scan/window.h"

namespace occam::kernels {

namespace {

/// Shared memory: two stages of values, keys, queries and states, then gates of both directions and what the
/// next are made of.
struct Layout {
  int keys, queries, states, stage, gates, next_gates, bytes;
  OCCAM_HD Layout(int step, bool connected) {
    keys = step * kScanWidth * 2, queries = 2 * keys, states = 3 * keys;
    stage = states + (connected ? 2 * kScanWidth * kScanWidth * 2 : 0);
    gates = 2 * stage, next_gates = gates + 2 * int(sizeof(TileGates));
    bytes = next_gates + 2 * int(sizeof(NextGates));
  }
};

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

template <bool kLong>
__global__ void __launch_bounds__(kScanTiles * 32, 1)
    matrix_scan_fwd_both(MatrixScanForward<bf16, float> a, WindowPlan plan) {
  extern __shared__ __align__(1024) unsigned char memory[];
  constexpr int kN = kScanWidth;
  const Layout layout(int(plan.step), kLong);
  const MatrixScanShape s = a.s;
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
  const int heads_of_group = int(s.h / s.g), tile = warp;
  TileGates* gates = reinterpret_cast<TileGates*>(memory + layout.gates);
  NextGates* next_gates = reinterpret_cast<NextGates*>(memory + layout.next_gates);
  // A half warp makes the gates of the warp's tile in a direction.
  const int gate_direction = lane / 16, gate_token = warp * 16 + lane % 16;

  const int windows = int(plan.windows), heads = int(s.h);
  const int64_t all = s.b * windows * heads, first = all * blockIdx.x / gridDim.x;
  const int items = int(all * (blockIdx.x + 1) / gridDim.x - first);
  auto window_at = [&](const Item& item) { return window_of(s, plan.step, item.image, item.window); };
  auto line = [&](const Item& item, int direction) {
    return ((item.image * 2 + direction) * heads + item.head) * windows + item.window;
  };
  auto stage = [&](int n, int offset) {
    return reinterpret_cast<bf16*>(memory + n % 2 * layout.stage + offset);
  };
  auto issue = [&](int n, const Item& item) {
    const ScanWindow w = window_at(item);
    const int head = item.head, group = head / heads_of_group;
    copy_rows<kN>(stage(n, layout.queries), a.q, s, w, 0, group);
    copy_rows<kN>(stage(n, layout.keys), a.k, s, w, 0, group);
    copy_rows<kScanWidth>(stage(n, 0), a.v, s, w, 0, head);
    copy_gate(next_gates[gate_direction], a.log_decay, a.scale, heads, w, gate_direction, head, gate_token);
    if (kLong && w.count > 0)
      for (int r = 0; r < 2; ++r)
        copy_state<kN>(stage(n, layout.states) + r * kScanWidth * kN, plan.before.states, line(item, r));
    copies_commit();
  };

  Item item{first / heads / windows, int(first / heads % windows), int(first % heads)};
  issue(0, item);
#pragma unroll 1
  for (int n = 0; n < items; ++n) {
    const Item current = item;
    const ScanWindow w = window_at(item);
    const int head = item.head;
    copies_wait<0>();
    __syncthreads();  // the item has come, and nobody reads the one before
    store_gate(gates[gate_direction],
               next_gate(next_gates[gate_direction], a.scale != nullptr, w, gate_token), gate_direction,
               gate_token);
    float skip[2] = {};
    if (a.skip != nullptr) skip[0] = a.skip[head], skip[1] = a.skip[s.h + head];
    __syncthreads();
    item.advance(windows, heads);
    if (n + 1 < items) issue(n + 1, item);
    if (tile >= w.tiles) continue;
    const bf16 *values = stage(n, 0), *keys = stage(n, layout.keys);
    uint32_t rows[kN / 16][4];
    load_fragments<kN>(rows, stage(n, layout.queries), tile * 16);
    float sum[8][4], den[4];
#pragma unroll 1
    for (int direction = 0; direction < 2; ++direction) {
      const TileGates& now = gates[direction];
      const bool emits = !s.merge || direction == 1, starts = !s.merge || direction == 0;
      const int64_t e = s.outputs(), out = s.merge ? 0 : direction, row = w.row + tile * 16;
      float floor[2] = {1, 1};
      if (a.floor != nullptr && emits)
#pragma unroll
        for (int low = 0; low < 2; ++low)
          if (tile * 16 + g + low * 8 < w.count)
            floor[low] = a.floor[((row + g + low * 8) * e + out) * s.h + head];
      uint32_t weights[4];
      if (starts) {  // with the diagonal, of both when they are merged
        Tile score, factor = diagonal_factors(now, tile, direction, a.diagonal != nullptr);
        product_rows<kN>(score, rows, keys, tile * 16);
        float own_weight[2] = {skip[direction], skip[direction]};
        if (s.merge) {
          const Tile more = diagonal_factors(gates[1], tile, 1, true);
#pragma unroll
          for (int low = 0; low < 2; ++low) {
            own_weight[low] += skip[1];
            if (a.diagonal != nullptr && tile * 16 + g + low * 8 < w.count)
              own_weight[low] = a.diagonal[(row + g + low * 8) * s.h + head];
          }
#pragma unroll
          for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int k = 0; k < 4; ++k) factor.v[half][k] += more.v[half][k];
        }
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int k = 0; k < 4; ++k)
            if (g + k / 2 * 8 == half * 8 + 2 * q + k % 2)
              score.v[half][k] = score.v[half][k] * factor.v[half][k] + own_weight[k / 2],
              factor.v[half][k] = 1;
        weigh(weights, score, factor);
#pragma unroll
        for (int j = 0; j < 8; ++j)
#pragma unroll
          for (int k = 0; k < 4; ++k) sum[j][k] = 0;
#pragma unroll
        for (int k = 0; k < 4; ++k) den[k] = 0;
        product_columns<kScanWidth>(sum, weights, values, tile * 16);
        if (a.floor != nullptr) add_den(den, weights, {1, 1}, {1, 1});
      }
      float row0 = exp2_fast(now.log_row[tile * 16 + g]), row1 = exp2_fast(now.log_row[tile * 16 + g + 8]);
      auto factor_of = [&](int j) {
        const Tile f = tile_factors(now, j, row0, row1);
        row0 *= now.total[j], row1 *= now.total[j];
        return f;
      };
      auto add = [&](const uint32_t(&weights)[4], int j) {
        product_columns<kScanWidth>(sum, weights, values, j * 16);
        if (a.floor != nullptr) add_den(den, weights, {1, 1}, {1, 1});
      };
      const int on = direction == 0 ? -1 : 1;
      int left = direction == 0 ? tile : w.tiles - 1 - tile, j = tile + on;
#pragma unroll 1
      for (; left >= 2; left -= 2, j += 2 * on) {  // two tiles side by side, to keep a warp busy
        Tile score, other;
        uint32_t others[4];
        product_rows<kN>(score, rows, keys, j * 16);
        product_rows<kN>(other, rows, keys, (j + on) * 16);
        weigh(weights, score, factor_of(j));
        weigh(others, other, factor_of(j + on));
        add(weights, j), add(others, j + on);
      }
      if (left > 0) {
        Tile score;
        product_rows<kN>(score, rows, keys, j * 16);
        weigh(weights, score, factor_of(j));
        add(weights, j);
      }
      if constexpr (kLong) {  // row0 and row1 are now what is left of the state before the window
        const float each[2] = {row0, row1};
        float of_sums[2] = {};
#pragma unroll
        for (int k = 0; k < kN / 16; ++k) {
          uint32_t scaled[4] = {rows[k][0], rows[k][1], rows[k][2], rows[k][3]};
          scale_rows(scaled, each);
          if (a.floor != nullptr)
            dot_rows(of_sums, scaled, plan.before.sums + line(current, direction) * kN + k * 16);
          product_transposed<kN>(sum, scaled, stage(n, layout.states) + direction * kScanWidth * kN, k);
        }
        if (a.floor != nullptr)
#pragma unroll
          for (int low = 0; low < 2; ++low) {
            const float entered = quad_sum(of_sums[low]);
            if (q == 0) den[2 * low] += entered;
          }
      }
      if (!emits) continue;
      if (a.floor != nullptr)
#pragma unroll
        for (int low = 0; low < 2; ++low) {
          const float d = __shfl_sync(0xffffffffu, den[2 * low], lane & ~3);
          if (q == 0 && tile * 16 + g + low * 8 < w.count)
            a.den[((row + g + low * 8) * e + out) * s.h + head] = d;
          const float inverse = 1 / max_(fabsf(d), floor[low]);
#pragma unroll
          for (int j = 0; j < 8; ++j) sum[j][2 * low] *= inverse, sum[j][2 * low + 1] *= inverse;
        }
      store_rows(a.y + ((row * s.h + head) * e + out) * kScanWidth, s.h * e * kScanWidth, w.count - tile * 16,
                 sum);
    }
  }
}

template <bool kLong>
void launch(const MatrixScanForward<bf16, float>& a, const WindowPlan& plan, void* stream) {
  auto* kernel = matrix_scan_fwd_both<kLong>;
  const int bytes = Layout(int(plan.step), kLong).bytes;
  allow_shared(kernel, "matrix_scan_fwd_both", bytes);
  const int64_t blocks = std::min<int64_t>(a.s.b * plan.windows * a.s.h, device_limits().sm_count);
  kernel<<<grid_of_blocks(blocks), int(plan.step) * 2, size_t(bytes), as_stream(stream)>>>(a, plan);
  check_launch("matrix_scan_fwd_both", stream);
}

}  // namespace

void window_fwd_both(const MatrixScanForward<bf16, float>& a, const WindowPlan& plan, void* stream) {
  plan.connected() ? launch<true>(a, plan, stream) : launch<false>(a, plan, stream);
}

}  // namespace occam::kernels
