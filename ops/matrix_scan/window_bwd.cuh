#pragma once
// Parts of the backward pass of a window (kernel_mma_bwd.cu) that are of tokens rather than of tiles.
#include "ops/matrix_scan/outcome.cuh"
#include "ops/matrix_scan/tile.cuh"
#include "ops/matrix_scan/window.h"

namespace occam::kernels {

/// What a head and direction has of each token beside its gates.
struct TokenRows {
  float row[kScanWindow];      // 2^log_row
  float scale[kScanWindow];    // u
  float inverse[kScanWindow];  // 1 / max(|den|, floor): gradient of num = gy times this
  float gden[kScanWindow];     // gradient of den
  float column[kScanWindow];   // sums of E over its column, with what leaves the window less what enters
  float partial[kScanTiles][kScanWindow];  // sums of E over a row within each tile of columns
  float gskip[8], leaving[8];              // a warp's sum; leaving: over columns, and <S, S'_g>
  float net[kScanWindow], all_leaving;     // of the item before, for the gradients of its decays
};

/// Shared memory in bytes. kBoth: q, k, v, gy of a head and all tiles. Else two stages of v and gy (q before
/// them, q and k behind them in time), and the tiles of scores and of their gradients on one side of the
/// diagonal. Connected: also a state and the gradient of one.
template <int kN, bool kBoth>
struct BackwardLayout {
  int stage, scores, gradients, gates, states, bytes;
  OCCAM_HD BackwardLayout(int tiles, bool connected) {
    const int rows = tiles * 16, side = tiles * (tiles + 1) / 2 * 512;
    stage = 2 * rows * kScanWidth * 2;
    scores = kBoth                           ? stage + 2 * rows * kN * 2
             : 2 * stage > 2 * rows * kN * 2 ? 2 * stage
                                             : 2 * rows * kN * 2;
    gradients = scores + (kBoth ? 0 : side);
    gates = gradients + (kBoth ? tiles * tiles * 512 : side);
    states = gates + (int(sizeof(TileGates) + sizeof(TokenRows) + sizeof(NextGates)) + 255) / 256 * 256;
    bytes = states + (connected ? 2 * kScanWidth * kN * 2 : 0);
  }
};

/// What a token's decay has in its gradient that earlier ones of the scan do not have.
__device__ __forceinline__ void store_net(TokenRows& rows, const ScanWindow& w, int direction, int token) {
  if (token >= w.tiles * 16) return;
  const int tile = token / 16, end = direction == 0 ? tile + 1 : w.tiles;
  float e = -rows.column[token];
  for (int j = direction == 0 ? 0 : tile; j < end; ++j) e += rows.partial[j][token];
  rows.net[token] = e;
  if (token > 0) return;
  float leaving = 0;
  for (int i = 0; i < int(blockDim.x) / 32; ++i) leaving += rows.leaving[i];
  rows.all_leaving = leaving;
}
/// Gradients of decays: those summed over the tokens that a decay lies on the way of, and what leaves the
/// window; a warp. `net_of`: of each token.
__device__ __forceinline__ void store_decay_gradients(const float* net_of, float leaving, const ScanWindow& w,
                                                      int direction, float* to, int64_t stride) {
  constexpr int kEach = 7;  // 32 * 7 > 208 neighbouring tokens a lane
  const int lane = int(threadIdx.x) % 32;
  // In the order of the sums: from the last token for direction 0, from the first for direction 1.
  auto token_of = [&](int i) {
    const int step = lane * kEach + i;
    return step >= w.tiles * 16 ? -1 : direction == 0 ? w.tiles * 16 - 1 - step : step;
  };
  float net[kEach], sum = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int token = token_of(i);
    net[i] = sum += token < 0 ? 0.0f : net_of[token];
  }
  float before = sum;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const float other = __shfl_up_sync(0xffffffffu, before, d);
    if (lane >= d) before += other;
  }
  before += leaving - sum;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int token = token_of(i);
    if (token >= 0 && token < w.count) to[token * stride] = before + net[i];
  }
}

/// Sums over the 8 lanes of a column of a tile's rows 2 q, 2 q + 1 and those + 8; a lane gets one, that of
/// row g % 2 * 8 + 2 q + g / 2 % 2.
__device__ __forceinline__ float columns_sum(const float (&x)[2][2]) {
  const int g = int(threadIdx.x) % 32 / 4;
  const bool low = g & 1, second = g & 2;
  const float a = (low ? x[1][0] : x[0][0]) + __shfl_xor_sync(0xffffffffu, low ? x[0][0] : x[1][0], 4);
  const float b = (low ? x[1][1] : x[0][1]) + __shfl_xor_sync(0xffffffffu, low ? x[0][1] : x[1][1], 4);
  const float sum = (second ? b : a) + __shfl_xor_sync(0xffffffffu, second ? a : b, 8);
  return sum + __shfl_xor_sync(0xffffffffu, sum, 16);
}

/// A thread's part of total (<S, S'_g> + the same of den).
template <int kN>
__device__ __forceinline__ float through_of(const bf16* before, const bf16* after, const TileGates& gates,
                                            const ScanWindow& w, const WindowPlan& plan, int64_t line) {
  float sum = 0, total = 1;
  for (int i = int(threadIdx.x); i < kScanWidth * kN / 2; i += int(blockDim.x)) {
    const float2 x = unpack_bf16(reinterpret_cast<const uint32_t*>(before)[i]),
                 y = unpack_bf16(reinterpret_cast<const uint32_t*>(after)[i]);
    sum += x.x * y.x + x.y * y.y;
  }
  if (plan.before.sums != nullptr)
    for (int i = int(threadIdx.x); i < kN; i += int(blockDim.x))
      sum += plan.before.sums[line * kN + i] * plan.after.sums[line * kN + i];
  for (int tile = 0; tile < w.tiles; ++tile) total *= gates.total[tile];
  return total * sum;
}

/// What a block works on, and where it lies. kBoth: both directions of a head are its items; else the heads
/// of a group in one direction.
template <int kN, bool kBoth>
struct BackwardBlock {
  ScanWindow w;
  int64_t windows, window_at;  // of an image; this one among those of all images
  int heads_in_all, group, own_direction = 0, first_head, items, room, stage_bytes;
  unsigned char* memory;
  uint4 *scores, *gradients;
  TileGates* gates;
  TokenRows* rows;
  NextGates* next;
  bf16 *q_tile, *k_tile, *before, *after;
  float*
      factors;  // what rows have of the state before and columns of the one behind, of all items: for the end

  __device__ __forceinline__ BackwardBlock(const MatrixScanBackward<bf16, float>& a, const WindowPlan& plan,
                                           unsigned char* shared, float* scratch)
      : windows(plan.windows), heads_in_all(int(a.s.h)), memory(shared) {
    const int heads = int(a.s.h / a.s.g);
    int64_t block = blockIdx.x;
    if (kBoth) {
      first_head = int(block % a.s.h), block /= a.s.h, group = first_head / heads, items = 2;
    } else {
      group = int(block % a.s.g), block /= a.s.g;
      if (!a.s.merge) own_direction = int(block % 2), block /= 2;
      first_head = group * heads, items = heads;
    }
    window_at = block;
    w = window_of(a.s, plan.step, block / windows, block % windows);
    const int tiles = int(plan.step) / 16;
    const BackwardLayout<kN, kBoth> layout(tiles, plan.connected());
    room = tiles * 16, stage_bytes = layout.stage;
    scores = reinterpret_cast<uint4*>(memory + layout.scores);
    gradients = reinterpret_cast<uint4*>(memory + layout.gradients);
    gates = reinterpret_cast<TileGates*>(memory + layout.gates);
    rows = reinterpret_cast<TokenRows*>(gates + 1), next = reinterpret_cast<NextGates*>(rows + 1);
    q_tile = reinterpret_cast<bf16*>(memory + (kBoth ? layout.stage : 0)), k_tile = q_tile + room * kN;
    before = reinterpret_cast<bf16*>(memory + layout.states), after = before + kScanWidth * kN;
    factors = scratch + int64_t(blockIdx.x) * items * 3 * room;
  }
  __device__ int head_of(int item) const { return first_head + (kBoth ? 0 : item); }
  __device__ int direction_of(int item) const { return kBoth ? item : own_direction; }
  /// Of an item's window among states.
  __device__ int64_t line(int item) const {
    return ((w.image * 2 + direction_of(item)) * heads_in_all + head_of(item)) * windows +
           window_at % windows;
  }
  __device__ int64_t of_skip(int item) const {
    return (window_at * 2 + direction_of(item)) * heads_in_all + head_of(item);
  }
  /// kBoth: v, gy, and behind them q, k. Else stages of v, gy; first q in their place, at last q and k.
  __device__ bf16* stage(int n) const {
    return reinterpret_cast<bf16*>(memory + (kBoth ? 0 : n % 2 * stage_bytes));
  }
  /// Of a lane in tiles [j][i].
  __device__ int tile_at(int j, int i) const {
    const int lane = int(threadIdx.x) % 32;
    if (kBoth) return (j * w.tiles + i) * 32 + lane;
    if (own_direction == 0) j = w.tiles - 1 - j, i = w.tiles - 1 - i;
    return (j * (j + 1) / 2 + i) * 32 + lane;
  }
  /// A warp's tiles, n = 0 or 1; -1: none.
  __device__ int my_tile(int n) const {
    const int warp = int(threadIdx.x) / 32, other = w.tiles - 1 - warp;
    return n == 0 ? (warp <= other ? warp : -1) : (warp < other ? other : -1);
  }
};

}  // namespace occam::kernels
