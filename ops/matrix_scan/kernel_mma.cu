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
/// where the stages come later), gates of the directions, and the scores of a group.
template <int kN, bool kBoth>
struct Layout {
  int stage, gates, scores, bytes;
  OCCAM_HD explicit Layout(int step) {
    const int tiles = step / 16;
    stage = step * (kBoth ? kScanWidth + kN : kScanWidth) * 2;
    const int keys = kBoth ? 0 : step * kN * 2;
    gates = 2 * stage > keys ? 2 * stage : keys;
    scores = gates + (kBoth ? 2 : 1) * int(sizeof(TileGates));
    bytes = scores + (kBoth ? 0 : tiles * (tiles + 1) / 2 * 512);
  }
};

/// kBoth: a block goes through heads, each in both directions, which read the same q, k and v. Else it has
/// one direction of a group, whose heads share queries and keys: scores are made once, kept as bf16 tiles in
/// the layout of an operand, and every head weighs them.
template <int kN, bool kBoth, bool kLong>
__global__ void __launch_bounds__(kMostWarps * 32, 2)
    matrix_scan_fwd_window(MatrixScanForward<bf16, float> a, WindowPlan plan) {
  extern __shared__ __align__(128) unsigned char memory[];
  const Layout<kN, kBoth> layout(int(plan.step));
  const MatrixScanShape s = a.s;
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, g = lane / 4, q = lane % 4;

  int64_t block = blockIdx.x;
  const int part = int(block % plan.parts);
  block /= plan.parts;
  int64_t group = 0;
  int own_direction = 0;
  if (!kBoth) {
    group = block % s.g, block /= s.g;
    own_direction = int(block % 2), block /= 2;
  }
  const int64_t window = block % plan.windows, heads_of_group = s.h / s.g;
  const ScanWindow w = window_of(s.t, plan.step, block / plan.windows, window);
  const int64_t heads = kBoth ? s.h : heads_of_group, first_head = group * heads_of_group + part * plan.heads;
  const int items = int(heads - part * plan.heads < plan.heads ? heads - part * plan.heads : plan.heads);

  uint4* scores = reinterpret_cast<uint4*>(memory + layout.scores);
  TileGates* gates = reinterpret_cast<TileGates*>(memory + layout.gates);
  auto stage = [&](int item) { return reinterpret_cast<bf16*>(memory + item % 2 * layout.stage); };
  auto score_at = [&](int i, int j) {
    if (own_direction == 1) i = w.tiles - 1 - i, j = w.tiles - 1 - j;
    return (i * (i + 1) / 2 + j) * 32 + lane;
  };
  if constexpr (!kBoth) {
    copy_rows<kN>(stage(0), a.k, w, own_direction, group);
    copies_commit();
    copies_wait<0>();
    __syncthreads();
#pragma unroll 1
    for (int n = 0; n < 2; ++n) {
      const int tile = n == 0 ? warp : w.tiles - 1 - warp;
      if (n == 0 ? 2 * warp >= w.tiles : tile <= warp) continue;
      uint32_t rows[kN / 16][4];
      load_fragments<kN>(rows, a.q, w, own_direction, group, tile * 16);
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

  // Values and keys of a head on the way to shared memory.
  auto issue = [&](int item) {
    const int64_t head = first_head + item;
    copy_rows<kScanWidth>(stage(item), a.v, w, own_direction, head);
    if (kBoth) copy_rows<kN>(stage(item) + plan.step * kScanWidth, a.k, w, 0, head / heads_of_group);
    copies_commit();
  };
  auto gate = [&](int item, int direction) {
    return load_gate(a.log_decay, a.scale, s.h, w, s.t, direction, first_head + item, int(threadIdx.x));
  };

  issue(0);
  TokenGate next[kBoth ? 2 : 1];
#pragma unroll
  for (int r = 0; r < (kBoth ? 2 : 1); ++r) next[r] = gate(0, kBoth ? r : own_direction);
#pragma unroll 1
  for (int item = 0; item < items; ++item) {
    const int64_t head = first_head + item;
    copies_wait<0>();
    __syncthreads();  // the item has come, and nobody reads the one before
#pragma unroll
    for (int r = 0; r < (kBoth ? 2 : 1); ++r)
      store_gate(gates[r], next[r], kBoth ? r : own_direction, int(threadIdx.x));
    if (item + 1 < items) {
      issue(item + 1);
#pragma unroll
      for (int r = 0; r < (kBoth ? 2 : 1); ++r) next[r] = gate(item + 1, kBoth ? r : own_direction);
    }
    __syncthreads();
    const bf16* values = stage(item);
#pragma unroll 1
    for (int n = 0; n < 2; ++n) {
      const int tile = n == 0 ? warp : w.tiles - 1 - warp;
      if (n == 0 ? 2 * warp >= w.tiles : tile <= warp) continue;
      uint32_t rows[kN / 16][4];
      if (kBoth || kLong) load_fragments<kN>(rows, a.q, w, own_direction, head / heads_of_group, tile * 16);
      float sum[8][4], den[2];
#pragma unroll 1
      for (int r = 0; r < (kBoth ? 2 : 1); ++r) {
        const int direction = kBoth ? r : own_direction;
        const TileGates& now = gates[r];
        if (!s.merge || r == 0) {
#pragma unroll
          for (int j = 0; j < 8; ++j)
#pragma unroll
            for (int k = 0; k < 4; ++k) sum[j][k] = 0;
          den[0] = den[1] = 0;
        }
        float row0 = exp2_fast(now.log_row[tile * 16 + g]), row1 = exp2_fast(now.log_row[tile * 16 + g + 8]);
        const int on = direction == 0 ? -1 : 1, end = direction == 0 ? -1 : w.tiles;
#pragma unroll 1
        for (int j = tile; j != end; j += on) {
          Tile p = j == tile ? diagonal_factors(now, tile, direction, s.merge && direction == 1)
                             : tile_factors(now, j, row0, row1);
          if (j != tile) row0 *= now.total[j], row1 *= now.total[j];
          if constexpr (kBoth) {
            Tile score;
            product_rows<kN>(score, rows, values + plan.step * kScanWidth, j * 16);
#pragma unroll
            for (int half = 0; half < 2; ++half)
#pragma unroll
              for (int k = 0; k < 4; ++k) p.v[half][k] *= score.v[half][k];
          } else {
            const uint4 packed = scores[score_at(tile, j)];
            const uint32_t two[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
            for (int k = 0; k < 4; ++k) {
              const float2 score = unpack_bf16(two[k]);
              p.v[k / 2][k % 2 * 2] *= score.x, p.v[k / 2][k % 2 * 2 + 1] *= score.y;
            }
          }
          den[0] += p.v[0][0] + p.v[0][1] + p.v[1][0] + p.v[1][1];
          den[1] += p.v[0][2] + p.v[0][3] + p.v[1][2] + p.v[1][3];
          uint32_t weights[4];
          fragment_a(weights, p.v[0], p.v[1]);
          product_columns<kScanWidth>(sum, weights, values, j * 16);
        }
        if constexpr (kLong) {  // row0 and row1 are now what is left of the state before the window
          const int64_t line = ((w.image * 2 + direction) * s.h + head) * plan.windows + window;
          const bf16* state = plan.states + line * kN * kScanWidth;
          const float* sums = plan.sums + line * kN;
#pragma unroll
          for (int k = 0; k < kN / 16; ++k) {
            uint32_t scaled[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              float2 x = unpack_bf16(rows[k][i]);
              const float row = i % 2 == 0 ? row0 : row1, *z = sums + k * 16 + i / 2 * 8 + 2 * q;
              x.x *= row, x.y *= row;
              den[i % 2] += x.x * z[0] + x.y * z[1];
              scaled[i] = pack_bf16(x.x, x.y);
            }
            product_transposed<kN>(sum, scaled, state, k);
          }
        }
        if (a.skip != nullptr) {
          const float skip = a.skip[direction * s.h + head];
#pragma unroll
          for (int j = 0; j < 8; ++j)
#pragma unroll
            for (int low = 0; low < 2; ++low) {
              const float2 v = unpack_bf16(*reinterpret_cast<const uint32_t*>(
                  values + swizzled_at<kScanWidth>(tile * 16 + g + low * 8, j) + 2 * q));
              sum[j][2 * low] += skip * v.x, sum[j][2 * low + 1] += skip * v.y;
            }
        }
        if (s.merge && r == 0) continue;
        const int64_t e = s.outputs(), out = s.merge ? 0 : direction, row = w.first + tile * 16;
        if (a.floor != nullptr)
#pragma unroll
          for (int low = 0; low < 2; ++low) {
            float d = den[low];
            d += __shfl_xor_sync(0xffffffffu, d, 1);
            d += __shfl_xor_sync(0xffffffffu, d, 2);
            float inverse = 0;
            if (tile * 16 + g + low * 8 < w.count) {
              const int64_t at = ((w.image * s.t + row + g + low * 8) * e + out) * s.h + head;
              if (q == 0) a.den[at] = d;
              inverse = 1 / max_(fabsf(d), a.floor[at]);
            }
#pragma unroll
            for (int j = 0; j < 8; ++j) sum[j][2 * low] *= inverse, sum[j][2 * low + 1] *= inverse;
          }
        store_rows(a.y + (((w.image * s.t + row) * s.h + head) * e + out) * kScanWidth, s.h * e * kScanWidth,
                   w.count - tile * 16, sum);
      }
    }
  }
}

template <int kN, bool kBoth, bool kLong>
void launch(const MatrixScanForward<bf16, float>& a, const WindowPlan& plan, void* stream) {
  auto* kernel = matrix_scan_fwd_window<kN, kBoth, kLong>;
  const int bytes = Layout<kN, kBoth>(int(plan.step)).bytes;
  allow_shared(kernel, "matrix_scan_fwd_window", bytes);
  const int64_t blocks = a.s.b * plan.windows * plan.parts * (kBoth ? 1 : 2 * a.s.g);
  const int threads = int(div_up<int64_t>(plan.step, 32)) * 32;
  kernel<<<grid_of_blocks(blocks), threads, size_t(bytes), as_stream(stream)>>>(a, plan);
  check_launch("matrix_scan_fwd_window", stream);
}

template <int kN, bool kBoth>
void launch(const MatrixScanForward<bf16, float>& a, WindowPlan plan, float* scratch, void* stream) {
  if (plan.windows == 1) return launch<kN, kBoth, false>(a, plan, stream);
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
  return plan.windows == 1 ? 0 : window_state_floats(a.s, plan);
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
