#pragma once
// The matrix form of a window of up to 208 tokens on the tensor cores, in tiles of 16 x 16, bf16 with f32
// sums. Tokens stay in their natural order: direction 0 has the tiles on and below the diagonal, direction 1
// those on and above it.
//
// A weight of row i and column j in another tile is s_ij row_i between col_j: the decay of j within its tile
// (and u_j), of the tiles between, and of i within its own: products of factors <= 1, from sums over at most
// 16 tokens. On the diagonal it is exp of a difference of such sums.
#include "ops/matrix_scan/kernel.h"
#include "ops/matrix_scan/operand.cuh"

namespace occam::kernels {

constexpr int kScanTiles = 13, kScanWindow = kScanTiles * 16;
/// A window that is one of several leaves room for states.
constexpr int kScanLongWindow = 176;

/// What a window does not tell itself: where it lies.
struct ScanWindow {
  int64_t image, first, row;  // first token of its sequence, and its row in tensors of all tokens
  int count, tiles;           // tokens, and tiles that hold them; a shorter sequence may have none here
};
__device__ __forceinline__ ScanWindow window_of(const SequenceRows& s, int64_t step, int64_t image,
                                                int64_t window) {
  const int64_t first = window * step, left = s.length(image) - first;
  const int count = int(left < 0 ? 0 : left < step ? left : step);
  return {image, first, s.begin(image) + first, count, (count + 15) / 16};
}
/// Row 0 of a window of [token][width] of a direction and head or group.
__device__ __forceinline__ const bf16* rows_of(const ScanView<bf16>& x, const SequenceRows& s,
                                               const ScanWindow& w, int64_t direction, int64_t which) {
  return x.of(s, w.image) + w.first * x.t + direction * x.r + which * x.h;
}

/// Decays of one head and direction of a window, in shared memory.
struct TileGates {
  float log_row[kScanWindow];  // log2 of what i keeps of what came into its tile
  float column[kScanWindow];   // u_j times what is left of it at the end of its tile; 0 behind the last token
  float scale[kScanWindow];    // u_j
  float total[16];             // of a tile
};

/// Starts copies of a window's rows [token][kWide], `stride` apart, into a tile; rows behind the last are
/// zero.
template <int kWide>
__device__ __forceinline__ void copy_rows(bf16* to, const bf16* from, int64_t stride, const ScanWindow& w) {
  constexpr int kPieces = kWide / 8, kRows = 32 / kPieces;  // a warp's at once
  const int lane = int(threadIdx.x) % 32, piece = lane % kPieces, first = lane / kPieces;
  const int warps = int(blockDim.x) / 32;
  for (int tile = int(threadIdx.x) / 32; tile < w.tiles; tile += warps) {
    int row = tile * 16 + first;
    const bf16* at = from + row * stride + piece * 8;
    const uint32_t lane_at = piece_address<kWide>(to, tile * 16, first, piece);
#pragma unroll
    for (int i = 0; i < 16; i += kRows, row += kRows, at += kRows * stride)
      copy_async16_at((lane_at ^ (i & 7) * 16) + i * kWide * 2, row < w.count ? at : from, row < w.count);
  }
}
/// Has the rows [token][64] brought closer, by the first threads of a block.
__device__ __forceinline__ void prefetch_rows(const bf16* from, int64_t stride, const ScanWindow& w) {
  if (int(threadIdx.x) < w.count)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from + int(threadIdx.x) * stride) : "memory");
}
template <int kWide>
__device__ __forceinline__ void copy_rows(bf16* to, const ScanView<bf16>& x, const SequenceRows& s,
                                          const ScanWindow& w, int64_t direction, int64_t which) {
  copy_rows<kWide>(to, rows_of(x, s, w, direction, which), x.t, w);
}

/// The same for a state [64][kN] of a line's window.
template <int kN>
__device__ __forceinline__ void copy_state(bf16* to, const bf16* states, int64_t line) {
  const bf16* state = states + line * kScanWidth * kN;
  for (int i = int(threadIdx.x); i < kScanWidth * (kN / 8); i += int(blockDim.x))
    copy_async16(to + swizzled_at<kN>(i / (kN / 8), i % (kN / 8)), state + i * 8, true);
}

/// A lane's log2 decay and scale of its token; a half warp has a tile. 0 behind the last token.
struct TokenGate {
  float log_decay = 0, scale = 0;
};
__device__ __forceinline__ TokenGate make_gate(float log_decay, float scale) {
  // Below 2^-150 a decay is 0 in f32: sums of such terms need not be larger.
  return {fmaxf(log_decay * 1.44269504f, -150.0f), scale};
}
__device__ __forceinline__ TokenGate load_gate(const float* log_decay, const float* scale, int64_t h,
                                               const ScanWindow& w, int64_t direction, int64_t head,
                                               int token) {
  if (token >= w.count) return {};
  const int64_t at = ((w.row + token) * 2 + direction) * h + head;
  return make_gate(log_decay[at], scale != nullptr ? scale[at] : 1.0f);
}
/// Writes the gates of token `at`; all lanes of a warp, whose halves have a tile each.
__device__ __forceinline__ void store_gate(TileGates& gates, const TokenGate& gate, int direction, int at) {
  const int lane = at % 16;
  float up = gate.log_decay,
        down = gate.log_decay;  // sums from the tile's start to here, from here to its end
#pragma unroll
  for (int d = 1; d < 16; d *= 2) {
    const float a = __shfl_up_sync(0xffffffffu, up, d, 16), b = __shfl_down_sync(0xffffffffu, down, d, 16);
    if (lane >= d) up += a;
    if (lane + d < 16) down += b;
  }
  const float later = __shfl_down_sync(0xffffffffu, down, 1, 16),
              earlier = __shfl_up_sync(0xffffffffu, up, 1, 16);
  float after = direction == 0 ? later : earlier;
  if (lane == (direction == 0 ? 15 : 0)) after = 0;
  if (at >= kScanWindow) return;
  gates.log_row[at] = direction == 0 ? up : down;
  gates.column[at] = exp2_fast(after) * gate.scale;
  gates.scale[at] = gate.scale;
  if (lane == 15) gates.total[at / 16] = exp2_fast(up);
}

/// What the gates of an item on its way are made of.
struct NextGates {
  float log_decay[kScanWindow], scale[kScanWindow];
};
/// Starts copies of a thread's token.
__device__ __forceinline__ void copy_gate(NextGates& to, const float* log_decay, const float* scale,
                                          int64_t h, const ScanWindow& w, int64_t direction, int64_t head,
                                          int token) {
  if (token >= w.count) return;
  const int64_t at = ((w.row + token) * 2 + direction) * h + head;
  copy_async4(to.log_decay + token, log_decay + at, true);
  if (scale != nullptr) copy_async4(to.scale + token, scale + at, true);
}
/// The same thread's, when they have come.
__device__ __forceinline__ TokenGate next_gate(const NextGates& from, bool scaled, const ScanWindow& w,
                                               int token) {
  if (token >= w.count) return {};
  return make_gate(from.log_decay[token], scaled ? from.scale[token] : 1.0f);
}

/// Factors of a tile away from the diagonal: row factors times the gates' columns.
__device__ __forceinline__ Tile tile_factors(const TileGates& gates, int column_tile, float row0,
                                             float row1) {
  const int q = int(threadIdx.x) % 4;
  Tile f;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float2 c = *reinterpret_cast<const float2*>(gates.column + column_tile * 16 + half * 8 + 2 * q);
    f.v[half][0] = row0 * c.x, f.v[half][1] = row0 * c.y, f.v[half][2] = row1 * c.x,
    f.v[half][3] = row1 * c.y;
  }
  return f;
}
/// Decays of a tile on the diagonal; with `exclusive` a token has no weight for itself. Transposed: rows are
/// j and columns i.
template <bool kTransposed>
__device__ __forceinline__ Tile diagonal_decays(const TileGates& gates, int tile, int direction,
                                                bool exclusive) {
  const int lane = int(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
  const float *log_row = gates.log_row + tile * 16, row[2] = {log_row[g], log_row[g + 8]};
  Tile f;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float2 column = *reinterpret_cast<const float2*>(log_row + half * 8 + 2 * q);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int behind = g + k / 2 * 8 - (half * 8 + 2 * q + k % 2);
      const int before = (direction == 0) == kTransposed ? -behind : behind;  // of j before i in the scan
      const float change = row[k / 2] - (k % 2 == 0 ? column.x : column.y);
      f.v[half][k] =
          before > 0 || (before == 0 && !exclusive) ? exp2_fast(kTransposed ? -change : change) : 0;
    }
  }
  return f;
}

/// Decays of a tile on the diagonal times u.
__device__ __forceinline__ Tile diagonal_factors(const TileGates& gates, int tile, int direction,
                                                 bool exclusive) {
  Tile f = diagonal_decays<false>(gates, tile, direction, exclusive);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float2 u =
        *reinterpret_cast<const float2*>(gates.scale + tile * 16 + half * 8 + int(threadIdx.x) % 4 * 2);
#pragma unroll
    for (int k = 0; k < 4; ++k) f.v[half][k] *= k % 2 == 0 ? u.x : u.y;
  }
  return f;
}

}  // namespace occam::kernels
