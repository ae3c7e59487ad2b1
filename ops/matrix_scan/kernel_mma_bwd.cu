// Backward on the tensor cores for sequences of one window (208 tokens), bf16, p = 64. Everything is seen
// from the columns: a warp has two tiles of 16 columns j, and goes over the tiles of rows i with transposed
// tiles [j][i], so that what belongs to a column (gv, gscale) is summed in one warp. The gradients of q k^T
// are kept as bf16 tiles [j][i], summed over heads or directions, and multiplied with q and k at the end.
#include "ops/matrix_scan/tile.cuh"
#include "ops/matrix_scan/window.h"

namespace occam::kernels {

namespace {

constexpr int kMostWarps = (kScanTiles + 1) / 2;

/// What a head and direction has of each token beside its gates.
struct TokenRows {
  float row[kScanWindow];                  // 2^log_row
  float scale[kScanWindow];                // u
  float inverse[kScanWindow];              // 1 / max(|den|, floor): gradient of num = gy times this
  float gden[kScanWindow];                 // gradient of den
  float column[kScanWindow];               // sums of E over its column,
  float partial[kScanTiles][kScanWindow];  // and over a row within each tile of columns
  float gskip[8];
};

/// Shared memory in bytes. kBoth: q, k, v, gy of a head and all tiles. Else two stages of v and gy (q before
/// them, q and k behind them in time), and the tiles of scores and of their gradients on one side of the
/// diagonal.
template <int kN, bool kBoth>
struct Layout {
  int stage, scores, gradients, gates, bytes;
  OCCAM_HD explicit Layout(int tiles) {
    const int rows = tiles * 16, side = tiles * (tiles + 1) / 2 * 512;
    stage = 2 * rows * kScanWidth * 2;
    scores = kBoth                           ? stage + 2 * rows * kN * 2
             : 2 * stage > 2 * rows * kN * 2 ? 2 * stage
                                             : 2 * rows * kN * 2;
    gradients = scores + (kBoth ? 0 : side);
    gates = gradients + (kBoth ? tiles * tiles * 512 : side);
    bytes = gates + int(sizeof(TileGates) + sizeof(TokenRows));
  }
};

/// Gradients of decays from E: r - c summed over the tokens that a decay lies on the way of, a warp.
__device__ __forceinline__ void store_decay_gradients(const TokenRows& rows, const ScanWindow& w,
                                                      int direction, float* to, int64_t stride) {
  constexpr int kEach = 7;  // 32 * 7 > 208 neighbouring tokens a lane
  const int lane = int(threadIdx.x) % 32;
  float net[kEach], sum = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    // In the order of the sums: from the last token for direction 0, from the first for direction 1.
    const int step = lane * kEach + i, token = direction == 0 ? w.tiles * 16 - 1 - step : step;
    float e = 0;
    if (token >= 0 && token < w.tiles * 16) {
      const int tile = token / 16;
      for (int j = direction == 0 ? 0 : tile; j <= (direction == 0 ? tile : w.tiles - 1); ++j)
        e += rows.partial[j][token];
      e -= rows.column[token];
    }
    net[i] = sum += e;
  }
  float before = sum;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const float other = __shfl_up_sync(0xffffffffu, before, d);
    if (lane >= d) before += other;
  }
  before -= sum;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int step = lane * kEach + i, token = direction == 0 ? w.tiles * 16 - 1 - step : step;
    if (token >= 0 && token < w.count) to[token * stride] = before + net[i];
  }
}

template <int kN, bool kBoth>
__global__ void __launch_bounds__(kMostWarps * 32, 1)
    matrix_scan_bwd_window(MatrixScanBackward<bf16, float> a, WindowPlan plan) {
  extern __shared__ __align__(128) unsigned char memory[];
  const MatrixScanShape s = a.s;
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
  const int64_t heads_of_group = s.h / s.g, e = s.outputs();

  int64_t block = blockIdx.x;
  int64_t group = 0;
  int own_direction = 0;
  int first_head = 0, heads = int(heads_of_group);  // that share tiles of gradients
  if (kBoth) {
    first_head = int(block % s.h), block /= s.h, heads = 1;
    group = first_head / heads_of_group;
  } else {
    group = block % s.g, block /= s.g;
    own_direction = int(block % 2), block /= 2;
    first_head = int(group * heads_of_group);
  }
  const ScanWindow w = window_of(s.t, plan.step, block, 0);
  const Layout<kN, kBoth> layout(w.tiles);
  const int room = w.tiles * 16;
  uint4* scores = reinterpret_cast<uint4*>(memory + layout.scores);
  uint4* gradients = reinterpret_cast<uint4*>(memory + layout.gradients);
  TileGates& gates = *reinterpret_cast<TileGates*>(memory + layout.gates);
  TokenRows& rows = *reinterpret_cast<TokenRows*>(memory + layout.gates + sizeof(TileGates));
  // kBoth: v, gy, q, k. Else stages of v, gy; first q in their place, at last q and k.
  auto stage = [&](int n) { return reinterpret_cast<bf16*>(memory + (kBoth ? 0 : n % 2 * layout.stage)); };
  bf16* q_tile = reinterpret_cast<bf16*>(memory + (kBoth ? layout.stage : 0));
  bf16* k_tile = q_tile + room * kN;
  auto tile_at = [&](int j, int i) {  // of tiles [j][i]
    if (kBoth) return (j * w.tiles + i) * 32 + lane;
    if (own_direction == 0) j = w.tiles - 1 - j, i = w.tiles - 1 - i;
    return (j * (j + 1) / 2 + i) * 32 + lane;
  };
  auto my_tile = [&](int n) {  // -1: none
    const int other = w.tiles - 1 - warp;
    return n == 0 ? (warp <= other ? warp : -1) : (warp < other ? other : -1);
  };

  auto copy_gy = [&](int n, int head, int direction) {
    const int64_t out = s.merge ? 0 : direction;
    copy_rows<kScanWidth>(stage(n) + room * kScanWidth,
                          a.gy + (((w.image * s.t) * s.h + head) * e + out) * kScanWidth,
                          s.h * e * kScanWidth, w);
  };
  auto issue = [&](int n) {
    copy_rows<kScanWidth>(stage(n), a.v, w, own_direction, first_head + n);
    copy_gy(n, first_head + n, own_direction);
    copies_commit();
  };

  copy_rows<kN>(q_tile, a.q, w, own_direction, group);
  if (kBoth) copy_rows<kN>(k_tile, a.k, w, own_direction, group);
  copies_commit();
  if constexpr (!kBoth) {
    copies_wait<0>();
    __syncthreads();
#pragma unroll 1
    for (int n = 0; n < 2; ++n) {
      const int tile = my_tile(n);
      if (tile < 0) continue;
      uint32_t keys[kN / 16][4];
      load_fragments<kN>(keys, a.k, w, own_direction, group, tile * 16);
      const int end = own_direction == 0 ? w.tiles : tile + 1;
      for (int i = own_direction == 0 ? tile : 0; i < end; ++i) {
        Tile score;
        product_rows<kN>(score, keys, q_tile, i * 16);
        uint32_t packed[4];
        fragment_a(packed, score.v[0], score.v[1]);
        scores[tile_at(tile, i)] = make_uint4(packed[0], packed[1], packed[2], packed[3]);
      }
    }
    __syncthreads();
  }
  issue(0);

  // kBoth: both directions of the one head; else the heads of the group.
#pragma unroll 1
  for (int item = 0; item < (kBoth ? 2 : heads); ++item) {
    const int head = first_head + (kBoth ? 0 : item), direction = kBoth ? item : own_direction;
    const bool again = kBoth && s.merge && item == 1;  // gy and what follows from it are those of direction 0
    if (kBoth && item == 1 && !s.merge) {
      copy_gy(0, head, 1);
      copies_commit();
    }
    {
      const int token = int(threadIdx.x);
      store_gate(gates, load_gate(a.log_decay, nullptr, s.h, w, s.t, direction, head, token), direction,
                 token);
      __syncwarp();
      if (token < kScanWindow) {
        const bool there = token < w.count;
        const int64_t at = ((w.image * s.t + token) * 2 + direction) * s.h + head;
        rows.row[token] = exp2_fast(gates.log_row[token]);
        rows.scale[token] = !there ? 0.0f : a.scale != nullptr ? a.scale[at] : 1.0f;
        if (a.floor != nullptr && !again) {
          float inverse = 0, gden = 0;
          if (there) {
            const int64_t out = s.merge ? 0 : direction, line = (w.image * s.t + token) * e;
            const int64_t y = ((w.image * s.t + token) * s.h + head) * e + out;
            float product = 0;
            for (int i = 0; i < kScanWidth; i += 8) {
              const uint4 gy8 = *reinterpret_cast<const uint4*>(a.gy + y * kScanWidth + i),
                          y8 = *reinterpret_cast<const uint4*>(a.y + y * kScanWidth + i);
              const uint32_t gs[4] = {gy8.x, gy8.y, gy8.z, gy8.w}, ys[4] = {y8.x, y8.y, y8.z, y8.w};
#pragma unroll
              for (int k = 0; k < 4; ++k) {
                const float2 b = unpack_bf16(gs[k]), c = unpack_bf16(ys[k]);
                product += b.x * c.x + b.y * c.y;
              }
            }
            const float den = a.den[(line + out) * s.h + head], floor = a.floor[(line + out) * s.h + head];
            inverse = 1 / max_(fabsf(den), floor);
            const float change = -product * inverse;
            const bool by_floor = !(fabsf(den) > floor);
            gden = by_floor ? 0 : den > 0 ? change : -change;
            a.gfloor[(line + out) * s.h + head] = by_floor ? change : 0;
          }
          rows.inverse[token] = inverse, rows.gden[token] = gden;
        }
      }
    }
    copies_wait<0>();
    __syncthreads();
    if (!kBoth && item + 1 < heads) issue(item + 1);
    const bf16 *values = stage(item), *gy = values + room * kScanWidth;
    float gskip = 0;
#pragma unroll 1
    for (int n = 0; n < 2; ++n) {
      const int tile = my_tile(n);
      if (tile < 0) continue;
      uint32_t own[kScanWidth / 16][4], keys[kBoth ? kN / 16 : 1][4];
      load_fragments<kScanWidth>(own, values, tile * 16);
      if constexpr (kBoth) load_fragments<kN>(keys, k_tile, tile * 16);
      float sum[8][4] = {}, x_sum[2] = {}, x_off[2] = {};
      const float scale[2] = {rows.scale[tile * 16 + g], rows.scale[tile * 16 + g + 8]};
      float left[2] = {gates.column[tile * 16 + g], gates.column[tile * 16 + g + 8]};
      const int on = direction == 0 ? 1 : -1, end = direction == 0 ? w.tiles : -1;
#pragma unroll 1
      for (int i = tile; i != end; i += on) {
        Tile gt, st, f;
        product_rows<kScanWidth>(gt, own, gy, i * 16);
        if constexpr (kBoth) {
          product_rows<kN>(st, keys, q_tile, i * 16);
        } else {
          const uint4 packed = scores[tile_at(tile, i)];
          const uint32_t two[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            const float2 score = unpack_bf16(two[k]);
            st.v[k / 2][k % 2 * 2] = score.x, st.v[k / 2][k % 2 * 2 + 1] = score.y;
          }
        }
        if (i == tile) {
          const bool exclusive = s.merge && direction == 1;
#pragma unroll
          for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int k = 0; k < 4; ++k) {
              const int j = g + k / 2 * 8, row = half * 8 + 2 * q + k % 2,
                        before = direction == 0 ? row - j : j - row;
              if (before == 0) gskip += gt.v[half][k];
              f.v[half][k] = before > 0 || (before == 0 && !exclusive)
                                 ? exp2_fast(gates.log_row[tile * 16 + row] - gates.log_row[tile * 16 + j])
                                 : 0.0f;
            }
        } else {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const float2 r = *reinterpret_cast<const float2*>(rows.row + i * 16 + half * 8 + 2 * q);
#pragma unroll
            for (int low = 0; low < 2; ++low)
              f.v[half][2 * low] = left[low] * r.x, f.v[half][2 * low + 1] = left[low] * r.y;
          }
          left[0] *= gates.total[i], left[1] *= gates.total[i];
        }
        // Tiles of R (in gt), of weights (in st), and sums of X = R S / u over columns and rows.
        float across[2][2] = {};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float2 inverse{1, 1}, gden{0, 0};
          if (a.floor != nullptr) {
            inverse = *reinterpret_cast<const float2*>(rows.inverse + i * 16 + half * 8 + 2 * q);
            gden = *reinterpret_cast<const float2*>(rows.gden + i * 16 + half * 8 + 2 * q);
          }
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            const float by = k % 2 == 0 ? inverse.x : inverse.y;
            const float of = gt.v[half][k] * by + (k % 2 == 0 ? gden.x : gden.y);
            const float decayed = of * f.v[half][k], x = decayed * st.v[half][k];
            const bool diagonal = i == tile && g + k / 2 * 8 == half * 8 + 2 * q + k % 2;
            x_sum[k / 2] += x;
            if (!diagonal) x_off[k / 2] += x, across[half][k % 2] += x * scale[k / 2];
            gt.v[half][k] = decayed * scale[k / 2];
            st.v[half][k] *= f.v[half][k] * scale[k / 2] * by;
          }
        }
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            float sum_of = across[half][k];
#pragma unroll
            for (int mask = 4; mask < 32; mask *= 2) sum_of += __shfl_xor_sync(0xffffffffu, sum_of, mask);
            if (g == 0) rows.partial[tile][i * 16 + half * 8 + 2 * q + k] = sum_of;
          }
        uint4& kept = gradients[tile_at(tile, i)];
        if (kBoth ? item == 1 && i == tile : item > 0) {
          const uint4 packed = kept;
          const uint32_t two[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            const float2 before = unpack_bf16(two[k]);
            gt.v[k / 2][k % 2 * 2] += before.x, gt.v[k / 2][k % 2 * 2 + 1] += before.y;
          }
        }
        uint32_t fragment[4];
        fragment_a(fragment, gt.v[0], gt.v[1]);
        kept = make_uint4(fragment[0], fragment[1], fragment[2], fragment[3]);
        fragment_a(fragment, st.v[0], st.v[1]);
        product_columns<kScanWidth>(sum, fragment, gy, i * 16);
      }
#pragma unroll
      for (int low = 0; low < 2; ++low) {
        for (int mask = 1; mask < 4; mask *= 2) {
          x_sum[low] += __shfl_xor_sync(0xffffffffu, x_sum[low], mask);
          x_off[low] += __shfl_xor_sync(0xffffffffu, x_off[low], mask);
        }
        const int token = tile * 16 + g + low * 8;
        if (q == 0) {
          rows.column[token] = x_off[low] * scale[low];
          if (a.gscale != nullptr && token < w.count)
            a.gscale[((w.image * s.t + token) * 2 + direction) * s.h + head] = x_sum[low];
        }
      }
      const int64_t width = kBoth ? s.h : 2 * s.h;  // heads (and directions) of gv
      bf16* gv =
          a.gv + ((w.image * s.t + tile * 16) * width + (kBoth ? 0 : direction * s.h) + head) * kScanWidth;
      const float skip = a.skip != nullptr ? a.skip[direction * s.h + head] : 0.0f;
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int low = 0; low < 2; ++low) {
          if (a.skip != nullptr) {
            const float2 of = unpack_bf16(*reinterpret_cast<const uint32_t*>(
                gy + swizzled_at<kScanWidth>(tile * 16 + g + low * 8, j) + 2 * q));
            sum[j][2 * low] += skip * of.x, sum[j][2 * low + 1] += skip * of.y;
          }
          if (kBoth && item == 1 && tile * 16 + g + low * 8 < w.count) {
            const float2 of = unpack_bf16(
                *reinterpret_cast<const uint32_t*>(gv + (g + low * 8) * width * kScanWidth + j * 8 + 2 * q));
            sum[j][2 * low] += of.x, sum[j][2 * low + 1] += of.y;
          }
        }
      store_rows(gv, width * kScanWidth, w.count - tile * 16, sum);
      __syncwarp();
    }
    if (a.gskip != nullptr) {
      for (int mask = 1; mask < 32; mask *= 2) gskip += __shfl_xor_sync(0xffffffffu, gskip, mask);
      if (lane == 0) rows.gskip[warp] = gskip;
    }
    __syncthreads();
    if (warp == 0)
      store_decay_gradients(rows, w, direction, a.glog_decay + ((w.image * s.t) * 2 + direction) * s.h + head,
                            2 * s.h);
    if (a.gskip != nullptr && threadIdx.x == 0) {
      float all = 0;
      for (int i = 0; i < int(blockDim.x) / 32; ++i) all += rows.gskip[i];
      a.gskip[(w.image * 2 + direction) * s.h + head] = all;
    }
    __syncthreads();
  }

  // gk_j = sum over i of R_ij q_i;  gq_i = sum over j of R_ij k_j.
  if constexpr (!kBoth) {
    copy_rows<kN>(q_tile, a.q, w, own_direction, group);
    copy_rows<kN>(k_tile, a.k, w, own_direction, group);
    copies_commit();
    copies_wait<0>();
    __syncthreads();
  }
  const int64_t line = kBoth ? s.g : 2 * s.g;
#pragma unroll 1
  for (int job = 0; job < 4 * (kN / 64); ++job) {
    const int tile = my_tile(job % 2), column = job / 4 * 64;
    const bool rows_of_q = job / 2 % 2;
    if (tile < 0) continue;
    float sum[8][4] = {};
    // Columns have rows behind them in direction 0; rows have columns before them.
    const bool upward = kBoth || (own_direction == 0) != rows_of_q, downward = kBoth || !upward;
    for (int i = downward ? 0 : tile; i < (upward ? w.tiles : tile + 1); ++i) {
      const uint4 packed = gradients[rows_of_q ? tile_at(i, tile) : tile_at(tile, i)];
      uint32_t fragment[4] = {packed.x, packed.y, packed.z, packed.w};
      if (rows_of_q) transpose_operand(fragment);
      product_columns<kN>(sum, fragment, rows_of_q ? k_tile : q_tile, i * 16, column);
    }
    bf16* to = (rows_of_q ? a.gq : a.gk) +
               ((w.image * s.t + tile * 16) * line + (kBoth ? 0 : own_direction * s.g) + group) * kN + column;
    store_rows(to, line * kN, w.count - tile * 16, sum);
  }
}

template <int kN, bool kBoth>
void launch(const MatrixScanBackward<bf16, float>& a, const WindowPlan& plan, void* stream) {
  auto* kernel = matrix_scan_bwd_window<kN, kBoth>;
  const int tiles = int(plan.step) / 16, bytes = Layout<kN, kBoth>(tiles).bytes;
  allow_shared(kernel, "matrix_scan_bwd_window", bytes);
  const int64_t blocks = a.s.b * (kBoth ? a.s.h : 2 * a.s.g);
  kernel<<<grid_of_blocks(blocks), (tiles + 1) / 2 * 32, size_t(bytes), as_stream(stream)>>>(a, plan);
  check_launch("matrix_scan_bwd_window", stream);
}

}  // namespace

bool fits_window_bwd(const MatrixScanBackward<bf16, float>& a) {
  if (a.s.t > kScanWindow || !aligned16(a.y, a.gy) ||
      !fits_windows(MatrixScanForward<bf16, float>{a.s, a.q, a.k, a.v}))
    return false;
  // With both directions in a block its gradients of q and k are those of one head.
  return !reads_both(a) || a.s.g == a.s.h;
}

void window_bwd(const MatrixScanBackward<bf16, float>& a, void* stream) {
  const WindowPlan plan = window_plan(a.s, reads_both(a));
  if (plan.both)
    launch<64, true>(a, plan, stream);
  else if (a.s.n == 128)
    launch<128, false>(a, plan, stream);
  else
    launch<64, false>(a, plan, stream);
}

}  // namespace occam::kernels
