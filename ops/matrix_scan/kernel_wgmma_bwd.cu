// Backward of merged directions that read the same q, k and v, by Hopper's warpgroups: bf16, n = p = 64, one
// window of 129 to 208 tokens. A block has one head. A warpgroup has 64 columns j, whose gk and gv stay in
// its registers, and walks over the rows i, 32 at a time, with transposed weights [j][i]. The gradients of
// the scores of 32 rows meet in shared memory; the warpgroups take turns to make gq of them:
//   s' = k q'   gp' = v g'   gv += p' g   gk += r' q   gq' = k' r    (' transposes)
#include "core/cuda/reduce.cuh"
#include "core/cuda/wgmma.cuh"
#include "ops/matrix_scan/window_bwd.cuh"

namespace occam::kernels {

namespace {

constexpr int kGroupThreads = 128, kGroupTiles = 4, kGroups = (kScanTiles + kGroupTiles - 1) / kGroupTiles,
              kThreads = kGroups * kGroupThreads, kStep = 32;  // rows of a step

/// What a head has of each token and pair of tiles.
struct PairRows {
  float between[kScanTiles][16];                  // decays of the tiles between those of a column and a row
  float row[2][kScanWindow];                      // by direction: 2^log_row
  float scale[2][kScanWindow];                    // u
  float inverse[kScanWindow], gden[kScanWindow];  // as in TokenRows
  float column[2][kScanWindow];                   // sums of E over a column of a direction
  float own[kScanWindow];                         // what scale gets of a token's weight for itself
  float partial[kScanTiles][kScanWindow];         // sums of E over a row within each tile of columns; on the
                                                  // diagonal those of direction 0, here those of direction 1:
  float diagonal[kScanWindow];
  float net[2][kScanWindow];
  float decays[8][kThreads];  // a lane's of the tile on the diagonal of its warp
  float gskip[kThreads / 32];
};

/// Shared memory: k, v, q, gy, gradients of scores of two steps by warpgroup, gates by direction, rows.
constexpr int kTile = kScanWindow * kScanWidth * 2, kParts = 4 * kTile,
              kGates = kParts + 2 * kGroups * kStep * kScanWidth * 2,
              kRows = kGates + 2 * int(sizeof(TileGates)), kBytes = kRows + int(sizeof(PairRows));

#ifdef OCCAM_WARPGROUP

/// Barriers of the block where some only report and go on.
constexpr int kReady = 5,
              kFree = 7;  // and each + 1: in turn, since a warpgroup may be a step ahead of others

/// What a warp knows of its head: operands are row 0 of tiles, or of its warpgroup's own.
struct Work {
  const TileGates* gates;
  PairRows* rows;
  uint32_t own_k, own_v, k, q, gy, parts;
  bf16* own_part;       // [32 rows][64 columns]
  float own_weight[2];  // of a lane's two tokens for themselves, beside their products
  int group, tile, count;
  bool busy, normed;  // not busy: the warp only takes part in products
};

/// Sums over a lane's two columns of E / u, by direction.
struct ColumnSums {
  float x[2][2];
};

/// kCount rows from `row` on: their part of gk, gv and E, and of gq, when it is this warpgroup's turn, to
/// `gq` (of row 0 of the head; null: nobody asks for it).
template <int kCount>
__device__ __forceinline__ void meet(const Work& w, int row, float (&gk)[32], float (&gv)[32],
                                     ColumnSums& sums, bf16* gq, int64_t stride) {
  const int lane = int(threadIdx.x) % 32, g = lane / 4, q = lane % 4, warp = int(threadIdx.x) / 32 % 4;
  const uint32_t on = uint32_t(row / 16) * kStepAcross;
  float s[kCount / 2] = {}, p[kCount / 2] = {};
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k)
    wgmma<kCount, false, false>(s, w.own_k + k * kStepAlong, w.q + on + k * kStepAlong, k > 0);
#pragma unroll
  for (int k = 0; k < 4; ++k)
    wgmma<kCount, false, false>(p, w.own_v + k * kStepAlong, w.gy + on + k * kStepAlong, k > 0);
  wgmma_commit();
  wgmma_wait<0>();
  pin(s);
  pin(p);
  PairRows& rows = *w.rows;
  const int j = w.tile * 16 + g;
#pragma unroll
  for (int n = 0; n < kCount / 16; ++n) {
    const int tile = row / 16 + n;
    if (!w.busy) {
#pragma unroll
      for (int k = 0; k < 8; ++k) s[8 * n + k] = p[8 * n + k] = 0;
    } else if (tile == w.tile) {
      float across[2][2][2] = {}, x_own[2] = {}, own_gradient[2] = {};  // across by direction
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = tile * 16 + half * 8 + 2 * q;
        float2 by{1, 1}, gden{0, 0};
        if (w.normed) {
          by = *reinterpret_cast<const float2*>(rows.inverse + at);
          gden = *reinterpret_cast<const float2*>(rows.gden + at);
        }
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const int low = k / 2, after = half * 8 + 2 * q + k % 2 - (g + low * 8);
          float &of_s = s[8 * n + 4 * half + k], &of_p = p[8 * n + 4 * half + k];
          const float f = rows.decays[4 * half + k][threadIdx.x], inverse = k % 2 == 0 ? by.x : by.y;
          const float u = rows.scale[after < 0 ? 1 : 0][j + low * 8];
          if (after == 0) own_gradient[low] = of_p;
          const float decayed = (of_p * inverse + (k % 2 == 0 ? gden.x : gden.y)) * f, x = decayed * of_s;
          of_p = decayed * u;
          of_s = of_s * f * u * inverse + (after == 0 ? w.own_weight[low] : 0.0f);
          if (after == 0) x_own[low] = x;
          const float x0 = after > 0 ? x : 0.0f, x1 = after < 0 ? x : 0.0f;
          sums.x[0][low] += x0, sums.x[1][low] += x1;
          across[0][half][k % 2] += x0 * u, across[1][half][k % 2] += x1 * u;
        }
      }
      const float first = columns_sum(across[0]), second = columns_sum(across[1]);
      const int at = tile * 16 + (g & 1) * 8 + 2 * q + g / 2;
      if (g < 4) rows.partial[w.tile][at] = first, rows.diagonal[at] = second;
      if (q == g / 2) {  // the lane of both of its diagonal elements
        rows.own[j] = x_own[0], rows.own[j + 8] = x_own[1];
        rows.net[0][j] = own_gradient[0], rows.net[0][j + 8] = own_gradient[1];
      }
    } else {
      const int direction = tile > w.tile ? 0 : 1;
      const float between = rows.between[w.tile][tile];
      float across[2][2] = {}, x[2] = {}, left[2], u[2];
#pragma unroll
      for (int low = 0; low < 2; ++low)
        left[low] = w.gates[direction].column[j + low * 8] * between,
        u[low] = rows.scale[direction][j + low * 8];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = tile * 16 + half * 8 + 2 * q;
        const float2 r = *reinterpret_cast<const float2*>(rows.row[direction] + at);
        float2 by{1, 1}, gden{0, 0};
        if (w.normed) {
          by = *reinterpret_cast<const float2*>(rows.inverse + at);
          gden = *reinterpret_cast<const float2*>(rows.gden + at);
        }
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          float &of_s = s[8 * n + 4 * half + k], &of_p = p[8 * n + 4 * half + k];
          const float f = left[k / 2] * (k % 2 == 0 ? r.x : r.y), inverse = k % 2 == 0 ? by.x : by.y;
          const float decayed = (of_p * inverse + (k % 2 == 0 ? gden.x : gden.y)) * f;
          x[k / 2] += decayed * of_s;
          of_p = decayed * u[k / 2];
          across[half][k % 2] += of_p * of_s;
          of_s *= f * u[k / 2] * inverse;
        }
      }
#pragma unroll
      for (int low = 0; low < 2; ++low)
        if (direction == 0)
          sums.x[0][low] += x[low];
        else
          sums.x[1][low] += x[low];
      const float all = columns_sum(across);
      if (g < 4) rows.partial[w.tile][tile * 16 + (g & 1) * 8 + 2 * q + g / 2] = all;
    }
  }
  uint32_t a[kCount / 16][4], b[kCount / 16][4];
#pragma unroll
  for (int i = 0; i < kCount / 2; i += 2)
    a[i / 8][i % 8 / 2] = pack_bf16(s[i], s[i + 1]), b[i / 8][i % 8 / 2] = pack_bf16(p[i], p[i + 1]);
  pin(gv);
  pin(gk);
  wgmma_fence();
#pragma unroll
  for (int n = 0; n < kCount / 16; ++n) wgmma_registers(gv, a[n], w.gy + on + n * kStepAcross, true);
#pragma unroll
  for (int n = 0; n < kCount / 16; ++n) wgmma_registers(gk, b[n], w.q + on + n * kStepAcross, true);
  wgmma_commit();
  // The gradients of two steps have room, so that nobody waits for the products of the step before.
  const int step = row / kStep, turn = step % kGroups, buffer = step % 2;
  if (step >= 2 && (step - 2) % kGroups != w.group) named_sync(kFree + buffer, kThreads);
  bf16* part = w.own_part + buffer * kGroups * kStep * kScanWidth;
#pragma unroll
  for (int n = 0; n < kCount / 16; ++n)
    stmatrix_transposed(
        shared_address(part + tile_at(n * 16 + lane / 16 * 8 + lane % 8, warp * 2 + lane / 8 % 2)), b[n]);
  fence_async();
  wgmma_wait<0>();
  pin(gv);
  pin(gk);
  if (turn != w.group) return named_arrive(kReady + buffer, kThreads);
  named_sync(kReady + buffer, kThreads);
  float sum[kCount / 2] = {};
  constexpr uint32_t kPart = kStep * kScanWidth * 2 / 16;
  const uint32_t parts = w.parts + uint32_t(buffer * kGroups) * kPart;
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < kScanTiles; ++k)
    wgmma<kCount, true, false>(sum, w.k + k * kStepAcross, parts + k / 4 * kPart + k % 4 * kStepAlong, k > 0);
  wgmma_commit();
  wgmma_wait<0>();
  pin(sum);
  named_sync(w.group + 1, kGroupThreads);  // all of its warps have read the parts
  if (row + 2 * kStep < w.count) named_arrive(kFree + buffer, kThreads);  // else nobody waits
  if (gq == nullptr) return;
  bf16* to = gq + warp * 16 + q * 2;
#pragma unroll
  for (int i = 0; i < kCount / 2; i += 2) {
    uint32_t pair = pack_bf16(sum[i], sum[i + 1]);
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(pair) : "r"(pair));
    const int at = row + i / 4 * 8 + g;
    if (at < w.count) *reinterpret_cast<uint32_t*>(to + at * stride + i % 4 / 2 * 8) = pair;
  }
}

#endif

__global__ void __launch_bounds__(kThreads, 1)
    matrix_scan_bwd_warpgroups(MatrixScanBackward<bf16, float> a, WindowPlan plan) {
#ifdef OCCAM_WARPGROUP
  extern __shared__ __align__(1024) unsigned char memory[];
  const MatrixScanShape s = a.s;
  const int heads = int(s.h), head = int(blockIdx.x % s.h);
  const int64_t image = blockIdx.x / s.h;
  const ScanWindow w = window_of(s, plan.step, image, 0);
  const int warp = __shfl_sync(0xffffffffu, int(threadIdx.x) / 32, 0), lane = int(threadIdx.x) % 32,
            g = lane / 4, q = lane % 4;
  TileGates* gates = reinterpret_cast<TileGates*>(memory + kGates);
  PairRows& rows = *reinterpret_cast<PairRows*>(memory + kRows);
  bf16* tiles = reinterpret_cast<bf16*>(memory);
  auto at_tile = [&](int i) { return tiles + i * (kTile / 2); };
  if (w.count == 0) {
    if (a.gskip != nullptr && threadIdx.x < 2) a.gskip[(image * 2 + threadIdx.x) * heads + head] = 0;
    return;
  }
  const ScanView<bf16> gys = gy_view(a);
  {
    ScanWindow padded = w;
    padded.tiles = kScanTiles;
    copy_rows<kScanWidth>(at_tile(0), a.k, s, padded, 0, head);
    copy_rows<kScanWidth>(at_tile(1), a.v, s, padded, 0, head);
    copy_rows<kScanWidth>(at_tile(2), a.q, s, padded, 0, head);
    copy_rows<kScanWidth>(at_tile(3), gys, s, padded, 0, head);
    copies_commit();
  }
  constexpr int kTokens = (kScanWindow + 31) / 32 * 32;  // of whole warps
  static_assert(2 * kTokens <= kThreads);
  if (threadIdx.x < 2 * kTokens) {
    const int direction = int(threadIdx.x) / kTokens, token = int(threadIdx.x) % kTokens;
    store_gate(gates[direction], load_gate(a.log_decay, nullptr, heads, w, direction, head, token), direction,
               token);
    if (token < kScanWindow) {
      const bool there = token < w.count;
      rows.row[direction][token] = exp2_fast(gates[direction].log_row[token]);
      rows.scale[direction][token] = !there ? 0.0f
                                     : a.scale != nullptr
                                         ? a.scale[((w.row + token) * 2 + direction) * heads + head]
                                         : 1.0f;
      if (direction == 0) {
        OutcomeGradient change{there ? 1.0f : 0.0f, 0, 0};
        if (a.floor != nullptr && there) {
          change = outcome_gradient(a, w, 0, head, token);
          if (a.gfloor != nullptr) a.gfloor[(w.row + token) * heads + head] = change.floor;
        }
        rows.inverse[token] = change.inverse, rows.gden[token] = change.den;
      }
    }
  }
  copies_wait<0>();
  fence_async();
  __syncthreads();
  if (threadIdx.x < kScanTiles * kScanTiles) {
    const int from = int(threadIdx.x) / kScanTiles, to = int(threadIdx.x) % kScanTiles;
    float between = 1;
    for (int i = from + 1; i < to; ++i) between *= gates[0].total[i];
    for (int i = from - 1; i > to; --i) between *= gates[1].total[i];
    rows.between[from][to] = between;
  }
  __syncthreads();
  if (blockIdx.x + plan.at_once < gridDim.x) {  // what this multiprocessor is likely to work on next
    const int64_t later = blockIdx.x + plan.at_once;
    const ScanWindow there = window_of(s, plan.step, later / s.h, 0);
    prefetch_rows(rows_of(a.k, s, there, 0, later % s.h), a.k.t, there);
    prefetch_rows(rows_of(a.v, s, there, 0, later % s.h), a.v.t, there);
    prefetch_rows(rows_of(a.q, s, there, 0, later % s.h), a.q.t, there);
    prefetch_rows(rows_of(gys, s, there, 0, later % s.h), gys.t, there);
  }

  const int group = warp / 4, tile = warp;
  auto operand_of = [&](int i) { return operand(shared_address(at_tile(i))); };
  const uint32_t own = uint32_t(group * kGroupTiles) * kStepAcross;
  if (tile < w.tiles) {
    const Tile first = diagonal_decays<true>(gates[0], tile, 0, a.diagonal != nullptr),
               second = diagonal_decays<true>(gates[1], tile, 1, true);
#pragma unroll
    for (int k = 0; k < 8; ++k) rows.decays[k][threadIdx.x] = first.v[k / 4][k % 4] + second.v[k / 4][k % 4];
  }
  bf16* parts = reinterpret_cast<bf16*>(memory + kParts);
  Work work{.gates = gates,
            .rows = &rows,
            .own_k = operand_of(0) + own,
            .own_v = operand_of(1) + own,
            .k = operand_of(0),
            .q = operand_of(2),
            .gy = operand_of(3),
            .parts = operand(shared_address(parts)),
            .own_part = parts + group * kStep * kScanWidth,
            .own_weight = {},
            .group = group,
            .tile = tile,
            .count = w.count,
            .busy = tile < w.tiles,
            .normed = a.floor != nullptr};
#pragma unroll
  for (int low = 0; low < 2; ++low) {
    if (a.skip != nullptr) work.own_weight[low] = a.skip[head] + a.skip[heads + head];
    if (const int token = tile * 16 + g + low * 8; a.diagonal != nullptr && token < w.count)
      work.own_weight[low] = a.diagonal[(w.row + token) * heads + head];
  }
  float gk[32] = {}, gv[32] = {};
  ColumnSums sums = {};
  bf16* gq = a.gq == nullptr ? nullptr : a.gq + (w.row * heads + head) * kScanWidth;
  const int64_t stride = heads * kScanWidth;
  constexpr int kWhole = kScanWindow / kStep * kStep;
#pragma unroll 1
  for (int row = 0; row < kWhole && row < w.count; row += kStep)
    meet<kStep>(work, row, gk, gv, sums, gq, stride);
  if (kWhole < w.count) meet<kScanWindow - kWhole>(work, kWhole, gk, gv, sums, gq, stride);

  float own_gradients = 0;
  if (work.busy) {
    auto store = [&](bf16* to, const float(&from)[32]) {
      if (to == nullptr) return;
      float out[8][4];
#pragma unroll
      for (int i = 0; i < 32; ++i) out[i / 4][i % 4] = from[i];
      store_rows(to + ((w.row + tile * 16) * heads + head) * kScanWidth, stride, w.count - tile * 16, out);
    };
    store(a.gk, gk);
    store(a.gv, gv);
    __syncwarp();  // lanes have written what others read
#pragma unroll
    for (int low = 0; low < 2; ++low) {
      const int token = tile * 16 + g + low * 8;
      const float x[2] = {quad_sum(sums.x[0][low]), quad_sum(sums.x[1][low])};
      if (q != 0) continue;
      const float own_gradient = token < w.count ? rows.net[0][token] : 0;
      own_gradients += own_gradient;
      if (a.gdiagonal != nullptr && token < w.count)
        a.gdiagonal[(w.row + token) * heads + head] = own_gradient;
#pragma unroll
      for (int direction = 0; direction < 2; ++direction) {
        rows.column[direction][token] = x[direction] * rows.scale[direction][token];
        if (a.gscale != nullptr && token < w.count)
          a.gscale[((w.row + token) * 2 + direction) * heads + head] =
              x[direction] + (direction == 0 ? rows.own[token] : 0.0f);
      }
    }
  }
  if (a.gskip != nullptr) {
    own_gradients = warp_sum(own_gradients);
    if (lane == 0) rows.gskip[warp] = own_gradients;
  }
  __syncthreads();
  if (a.gskip != nullptr && threadIdx.x < 2) {
    float all = 0;
    for (int i = 0; i < kThreads / 32; ++i) all += rows.gskip[i];
    a.gskip[(image * 2 + threadIdx.x) * heads + head] = all;
  }
  if (a.glog_decay == nullptr) return;
  if (threadIdx.x < 2 * kTokens) {
    const int direction = int(threadIdx.x) / kTokens, token = int(threadIdx.x) % kTokens;
    if (token < w.tiles * 16) {
      float e = -rows.column[direction][token] + (direction == 1 ? rows.diagonal[token] : 0.0f);
      for (int i = direction == 0 ? 0 : token / 16 + 1; i < (direction == 0 ? token / 16 + 1 : w.tiles); ++i)
        e += rows.partial[i][token];
      rows.net[direction][token] = e;
    }
  }
  __syncthreads();
  if (warp < 2)
    store_decay_gradients(rows.net[warp], 0, w, warp, a.glog_decay + (w.row * 2 + warp) * heads + head,
                          2 * heads);
#endif
}

}  // namespace

bool fits_warpgroups_bwd(const MatrixScanBackward<bf16, float>& a, const WindowPlan& plan) {
  return has_warpgroups() && plan.both && a.s.merge && !plan.connected() && plan.step > 128 && a.s.g == a.s.h;
}

void window_bwd_warpgroups(const MatrixScanBackward<bf16, float>& a, const WindowPlan& plan, void* stream) {
  allow_shared(matrix_scan_bwd_warpgroups, "matrix_scan_bwd_warpgroups", kBytes);
  matrix_scan_bwd_warpgroups<<<grid_of_blocks(a.s.b * a.s.h), kThreads, size_t(kBytes), as_stream(stream)>>>(
      a, plan);
  check_launch("matrix_scan_bwd_warpgroups", stream);
}

}  // namespace occam::kernels
