#pragma once
// The end of the backward pass of a window: gradients of q and k from the tiles of gradients of q k^T.
#include "ops/matrix_scan/window_bwd.cuh"

namespace occam::kernels {

/// gk_j = sum over i of R_ij q_i;  gq_i = sum over j of R_ij k_j. With connected windows also the sums over
/// items of u out S'_g v_j and of in S g_i (and, for dens, of the columns of ones).
template <int kN, bool kBoth>
__device__ __forceinline__ void store_key_gradients(const MatrixScanBackward<bf16, float>& a,
                                                    const WindowPlan& plan,
                                                    const BackwardBlock<kN, kBoth>& b) {
  const MatrixScanShape& s = a.s;
  const ScanWindow& w = b.w;
  const ScanView<bf16> gys = gy_view(a);
  const int lane = int(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
  const int64_t width = kBoth ? s.g : 2 * s.g;
#pragma unroll 1
  for (int job = 0; job < 2 * (kN / 64); ++job) {
    const int column = job / 2 * 64;
    const bool rows_of_q = job % 2;
    bf16* to = rows_of_q ? a.gq : a.gk;
    if (to == nullptr) continue;
    float sum[2][8][4] = {};
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int tile = b.my_tile(n);
      if (tile < 0) continue;
      // Columns have rows behind them in direction 0; rows have columns b.before them.
      const bool upward = kBoth || (b.own_direction == 0) != rows_of_q, downward = kBoth || !upward;
      for (int i = downward ? 0 : tile; i < (upward ? w.tiles : tile + 1); ++i) {
        const uint4 packed = b.gradients[rows_of_q ? b.tile_at(i, tile) : b.tile_at(tile, i)];
        uint32_t fragment[4] = {packed.x, packed.y, packed.z, packed.w};
        if (rows_of_q) transpose_operand(fragment);
        product_columns<kN>(sum[n], fragment, rows_of_q ? b.k_tile : b.q_tile, i * 16, column);
      }
    }
    if (plan.connected()) {
      const WindowStates states = rows_of_q ? plan.before : plan.after;
      const ScanView<bf16> view = rows_of_q ? gys : a.v;
      auto fetch = [&](int item) {  // states of an item, b.before and b.after in turn
        copy_state<kN>(item % 2 == 0 ? b.before : b.after, states.states, b.line(item));
        copies_commit();
      };
      __syncthreads();  // nobody reads states of the job b.before
      fetch(0);
#pragma unroll 1
      for (int item = 0; item < b.items; ++item) {
        const bf16* from = rows_of(view, s, w, b.direction_of(item), b.head_of(item));
        uint32_t fragments[2][kScanWidth / 16][4];
        float each[2][2], of_den[2][2];
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const int tile = max(b.my_tile(n), 0);
          const float* factor = b.factors + item * 3 * b.room + tile * 16 + g;
          const float *by = factor + (rows_of_q ? 0 : 2 * b.room),
                      *by_den = factor + (rows_of_q ? b.room : 2 * b.room);
          each[n][0] = by[0], each[n][1] = by[8], of_den[n][0] = by_den[0], of_den[n][1] = by_den[8];
          load_fragments<kScanWidth>(fragments[n], from, view.t, w.count, tile * 16);
        }
        copies_wait<0>();
        __syncthreads();
        if (item + 1 < b.items) fetch(item + 1);
        const float* z = a.floor == nullptr ? nullptr : states.sums + b.line(item) * kN + column + 2 * q;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
#pragma unroll
          for (int k = 0; k < kScanWidth / 16; ++k) {
            scale_rows(fragments[n][k], each[n]);
            product_columns<kN>(sum[n], fragments[n][k], item % 2 == 0 ? b.before : b.after, k * 16, column);
          }
          if (z != nullptr)
#pragma unroll
            for (int j = 0; j < 8; ++j)
#pragma unroll
              for (int k = 0; k < 4; ++k) sum[n][j][k] += of_den[n][k / 2] * z[j * 8 + k % 2];
        }
      }
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int tile = b.my_tile(n);
      if (tile < 0) continue;
      bf16* rows_to =
          to + ((w.row + tile * 16) * width + (kBoth ? 0 : b.own_direction * s.g) + b.group) * kN + column;
      store_rows(rows_to, width * kN, w.count - tile * 16, sum[n]);
    }
  }
}

}  // namespace occam::kernels
