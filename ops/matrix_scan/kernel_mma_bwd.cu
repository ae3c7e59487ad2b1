// Backward on the tensor cores, bf16, p = 64, in windows of tokens as forward. Everything is seen from the
// columns: a warp has two tiles of 16 columns j, and goes over the tiles of rows i with transposed
// tiles [j][i], so that what belongs to a column (gv, gscale) is summed in one warp. The gradients of q k^T
// are kept as bf16 tiles [j][i], summed over heads or directions, and multiplied with q and k at the end.
// Connected windows begin with states and end with gradients of states (window.cu); what these add to
// gradients of q and k is summed over heads or directions at the end as well.
#include "core/cuda/reduce.cuh"
#include "ops/matrix_scan/window_bwd_keys.cuh"

namespace occam::kernels {

namespace {

constexpr int kMostWarps = (kScanTiles + 1) / 2;

/// Tiles that are worked on side by side.
template <int kCount, bool kDiagonal>
struct Side {};

template <int kN, bool kBoth>
__global__ void __launch_bounds__(kMostWarps * 32, 1)
    matrix_scan_bwd_window(MatrixScanBackward<bf16, float> a, WindowPlan plan, float* scratch) {
  extern __shared__ __align__(1024) unsigned char memory[];
  BackwardBlock<kN, kBoth> b(a, plan, memory, scratch);
  const MatrixScanShape s = a.s;
  const ScanWindow& w = b.w;
  const ScanView<bf16> gys = gy_view(a);
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
  const int group = b.group, items = b.items, room = b.room;
  const bool connected = plan.connected();
  // Merged directions of a block follow one another.
  const int end_direction = !kBoth && s.merge ? 2 : b.own_direction + 1;
  const bool sums_values = kBoth || (s.merge && a.v.r == 0);
  if (w.count == 0) {
    for (; a.gskip != nullptr && b.own_direction < end_direction; ++b.own_direction)
      for (int i = int(threadIdx.x); i < items; i += int(blockDim.x)) a.gskip[b.of_skip(i)] = 0;
    return;
  }
  uint4 *scores = b.scores, *gradients = b.gradients;
  TileGates& gates = *b.gates;
  TokenRows& rows = *b.rows;
  NextGates& next = *b.next;
  bf16 *q_tile = b.q_tile, *k_tile = b.k_tile, *before = b.before, *after = b.after;
  auto copy_gy = [&](int n, int head, int direction) {
    copy_rows<kScanWidth>(b.stage(n) + room * kScanWidth, gys, s, w, direction, head);
  };
  auto issue = [&](int n) {
    copy_rows<kScanWidth>(b.stage(n), a.v, s, w, b.own_direction, b.first_head + n);
    copy_gy(n, b.first_head + n, b.own_direction);
    copies_commit();
  };

  const int token = int(threadIdx.x);  // that gates are made of by this thread
  auto copy_gates = [&](int item) {
    copy_gate(next, a.log_decay, a.scale, s.h, w, b.direction_of(item), b.head_of(item), token);
    copies_commit();
  };
  auto finish_decays = [&](int item) {
    if (warp == 0 && item >= 0 && a.glog_decay != nullptr)
      store_decay_gradients(rows.net, rows.all_leaving, w, b.direction_of(item),
                            a.glog_decay + (w.row * 2 + b.direction_of(item)) * s.h + b.head_of(item),
                            2 * s.h);
  };

#pragma unroll 1
  for (; b.own_direction < end_direction; ++b.own_direction) {
    if (!kBoth && b.own_direction == 1) __syncthreads();  // nobody reads the direction before
    copy_rows<kN>(q_tile, a.q, s, w, b.own_direction, group);
    if (kBoth) copy_rows<kN>(k_tile, a.k, s, w, b.own_direction, group);
    copy_gates(0);
    if constexpr (!kBoth) {
      copies_wait<0>();
      __syncthreads();
#pragma unroll 1
      for (int n = 0; n < 2; ++n) {
        const int tile = b.my_tile(n);
        if (tile < 0) continue;
        uint32_t keys[kN / 16][4];
        load_fragments<kN>(keys, rows_of(a.k, s, w, b.own_direction, group), a.k.t, w.count, tile * 16);
        const int end = b.own_direction == 0 ? w.tiles : tile + 1;
        for (int i = b.own_direction == 0 ? tile : 0; i < end; ++i) {
          Tile score;
          product_rows<kN>(score, keys, q_tile, i * 16);
          uint32_t packed[4];
          fragment_a(packed, score.v[0], score.v[1]);
          scores[b.tile_at(tile, i)] = make_uint4(packed[0], packed[1], packed[2], packed[3]);
        }
      }
      __syncthreads();
    }
    issue(0);

    // kBoth: both directions of the one head; else the heads of the group.
#pragma unroll 1
    for (int item = 0; item < items; ++item) {
      const int head = b.head_of(item), direction = b.direction_of(item);
      const bool again =
          kBoth && s.merge && item == 1;  // gy and what follows from it are those of direction 0
      if (kBoth && item == 1 && !s.merge) copy_gy(0, head, 1);
      if (connected) {
        copy_state<kN>(before, plan.before.states, b.line(item));
        copy_state<kN>(after, plan.after.states, b.line(item));
      }
      copies_commit();
      copies_wait<0>();
      store_gate(gates, next_gate(next, false, w, token), direction, token);
      __syncwarp();
      if (token < kScanWindow) {
        const bool there = token < w.count;
        rows.row[token] = exp2_fast(gates.log_row[token]);
        rows.scale[token] = !there ? 0.0f : a.scale != nullptr ? next.scale[token] : 1.0f;
        if (a.floor != nullptr && !again) {
          OutcomeGradient change{};
          if (there) {
            change = outcome_gradient(a, w, direction, head, token);
            if (a.gfloor != nullptr)
              a.gfloor[((w.row + token) * s.outputs() + (s.merge ? 0 : direction)) * s.h + head] =
                  change.floor;
          }
          rows.inverse[token] = change.inverse, rows.gden[token] = change.den;
        }
      }
      __syncthreads();
      if (item + 1 < items) {
        if (!kBoth) issue(item + 1);
        copy_gates(item + 1);
      }
      if (kBoth && item == 0 && blockIdx.x + plan.at_once < gridDim.x) {
        // What this multiprocessor is likely to work on next, as far as L2.
        const int64_t later = blockIdx.x + plan.at_once, of_window = later / s.h;
        const int later_head = int(later % s.h);
        const ScanWindow there = window_of(s, plan.step, of_window / plan.windows, of_window % plan.windows);
        prefetch_rows(rows_of(a.q, s, there, 0, later_head), a.q.t, there);
        prefetch_rows(rows_of(a.k, s, there, 0, later_head), a.k.t, there);
        prefetch_rows(rows_of(a.v, s, there, 0, later_head), a.v.t, there);
        prefetch_rows(rows_of(gys, s, there, 0, later_head), gys.t, there);
      }
      finish_decays(item - 1);
      const bf16 *values = b.stage(item), *gy = values + room * kScanWidth;
      float gskip = 0, leaving = 0;
#pragma unroll 1
      for (int n = 0; n < 2; ++n) {
        const int tile = b.my_tile(n);
        if (tile < 0) continue;
        uint32_t own[kScanWidth / 16][4], keys[kN / 16][4];
        load_fragments<kScanWidth>(own, values, tile * 16);
        if constexpr (kBoth) load_fragments<kN>(keys, k_tile, tile * 16);
        float own_gradient[2] = {};                          // of a token's weight for itself
        float sum[8][4] = {}, x_off[2] = {}, x_own[2] = {};  // X = R S / u over columns, and on the diagonal
        const float scale[2] = {rows.scale[tile * 16 + g], rows.scale[tile * 16 + g + 8]};
        float left[2] = {gates.column[tile * 16 + g], gates.column[tile * 16 + g + 8]};
        const int on = direction == 0 ? 1 : -1;
        const bool exclusive = a.diagonal != nullptr || (s.merge && direction == 1);
        // Tiles i, i + on, .. of rows, kCount side by side, to keep a warp busy.
        auto go = [&]<int kCount, bool kDiagonal>(Side<kCount, kDiagonal>, int i) {
          Tile gt[kCount], st[kCount], f[kCount];
#pragma unroll
          for (int c = 0; c < kCount; ++c) {
            product_rows<kScanWidth>(gt[c], own, gy, (i + c * on) * 16);
            if constexpr (kBoth)
              product_rows<kN>(st[c], keys, q_tile, (i + c * on) * 16);
            else
              st[c] = unpack_tile(scores[b.tile_at(tile, i + c * on)]);
          }
#pragma unroll
          for (int c = 0; c < kCount; ++c) {
            if constexpr (kDiagonal) {
              f[c] = diagonal_decays<true>(gates, tile, direction, exclusive);
            } else {
#pragma unroll
              for (int half = 0; half < 2; ++half) {
                const float2 r =
                    *reinterpret_cast<const float2*>(rows.row + (i + c * on) * 16 + half * 8 + 2 * q);
#pragma unroll
                for (int low = 0; low < 2; ++low)
                  f[c].v[half][2 * low] = left[low] * r.x, f[c].v[half][2 * low + 1] = left[low] * r.y;
              }
              const float total = gates.total[i + c * on];
              left[0] *= total, left[1] *= total;
            }
          }
          float across[kCount][2][2];
#pragma unroll
          for (int c = 0; c < kCount; ++c)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              float2 inverse{1, 1}, gden{0, 0};
              if (a.floor != nullptr) {
                const int at = (i + c * on) * 16 + half * 8 + 2 * q;
                inverse = *reinterpret_cast<const float2*>(rows.inverse + at);
                gden = *reinterpret_cast<const float2*>(rows.gden + at);
              }
              across[c][half][0] = across[c][half][1] = 0;
#pragma unroll
              for (int k = 0; k < 4; ++k) {
                float &of_g = gt[c].v[half][k], &of_s = st[c].v[half][k];
                const bool diagonal = kDiagonal && g + k / 2 * 8 == half * 8 + 2 * q + k % 2;
                if (diagonal) gskip += of_g, own_gradient[k / 2] += of_g;
                const float by = k % 2 == 0 ? inverse.x : inverse.y;
                const float decayed = (of_g * by + (k % 2 == 0 ? gden.x : gden.y)) * f[c].v[half][k];
                of_g = decayed * scale[k / 2];
                if (diagonal)
                  x_own[k / 2] += decayed * of_s;
                else
                  x_off[k / 2] += decayed * of_s, across[c][half][k % 2] += of_g * of_s;
                of_s *= f[c].v[half][k] * scale[k / 2] * by;
              }
            }
          if (a.glog_decay != nullptr) {
#pragma unroll
            for (int c = 0; c < kCount; ++c) {
              const float all = columns_sum(across[c]);
              if (g < 4) rows.partial[tile][(i + c * on) * 16 + (g & 1) * 8 + 2 * q + g / 2] = all;
            }
          }
#pragma unroll
          for (int c = 0; c < kCount; ++c) {
            uint4& kept = gradients[b.tile_at(tile, i + c * on)];
            if (kBoth ? kDiagonal && item == 1 : item > 0) {
              const Tile before = unpack_tile(kept);
#pragma unroll
              for (int half = 0; half < 2; ++half)
#pragma unroll
                for (int k = 0; k < 4; ++k) gt[c].v[half][k] += before.v[half][k];
            }
            uint32_t fragment[4];
            fragment_a(fragment, gt[c].v[0], gt[c].v[1]);
            kept = make_uint4(fragment[0], fragment[1], fragment[2], fragment[3]);
            fragment_a(fragment, st[c].v[0], st[c].v[1]);
            product_columns<kScanWidth>(sum, fragment, gy, (i + c * on) * 16);
          }
        };
        go(Side<1, true>{}, tile);
        if (a.gdiagonal != nullptr && direction == 0 && q == g / 2)
#pragma unroll
          for (int low = 0; low < 2; ++low)
            if (const int token = tile * 16 + g + low * 8; token < w.count)
              a.gdiagonal[(w.row + token) * s.h + head] = own_gradient[low];
        int behind = direction == 0 ? w.tiles - 1 - tile : tile, i = tile + on;
#pragma unroll 1
        for (; behind >= 2; behind -= 2, i += 2 * on) go(Side<2, false>{}, i);
        if (behind > 0) go(Side<1, false>{}, i);
        float passing[2] = {};
        if (connected) {
          const float after_this[2] = {left[0] * scale[0], left[1] * scale[1]};  // u_j out_j
          float entry = 1;
          for (int i = direction == 0 ? 0 : w.tiles - 1; i != tile; i += on) entry *= gates.total[i];
          float* factor = b.factors + item * 3 * room;
          // gv += u out S'_g^T k; what leaves: u out (v . S'_g^T k + k . (S'_g of den)).
          float part[8][4] = {}, dots[2] = {};
          uint32_t queries[kN / 16][4];
          if constexpr (kBoth) {
            load_fragments<kN>(queries, q_tile, tile * 16);
          } else {
            load_fragments<kN>(keys, rows_of(a.k, s, w, b.own_direction, group), a.k.t, w.count, tile * 16);
            load_fragments<kN>(queries, rows_of(a.q, s, w, b.own_direction, group), a.q.t, w.count,
                               tile * 16);
          }
#pragma unroll
          for (int k = 0; k < kN / 16; ++k) {
            product_transposed<kN>(part, keys[k], after, k);
            if (a.floor != nullptr) dot_rows(dots, keys[k], plan.after.sums + b.line(item) * kN + k * 16);
          }
#pragma unroll
          for (int k = 0; k < 4; ++k) dot_rows(dots, own[k], part[2 * k], part[2 * k + 1]);
#pragma unroll
          for (int low = 0; low < 2; ++low) {
            passing[low] = quad_sum(dots[low]) * after_this[low];
            x_own[low] += left[low] * dots[low];  // summed over the quad below
            if (q == 0) leaving += passing[low], factor[2 * room + tile * 16 + g + low * 8] = after_this[low];
          }
#pragma unroll
          for (int j = 0; j < 8; ++j)
#pragma unroll
            for (int k = 0; k < 4; ++k) sum[j][k] += after_this[k / 2] * part[j][k], part[j][k] = 0;
          // What enters: in (g . S^T q + h q . (S of den)).
          float of_den[2] = {};
          dots[0] = dots[1] = 0;
#pragma unroll
          for (int k = 0; k < kN / 16; ++k) {
            product_transposed<kN>(part, queries[k], before, k);
            if (a.floor != nullptr)
              dot_rows(of_den, queries[k], plan.before.sums + b.line(item) * kN + k * 16);
          }
          load_fragments<kScanWidth>(own, gy, tile * 16);
#pragma unroll
          for (int k = 0; k < 4; ++k) dot_rows(dots, own[k], part[2 * k], part[2 * k + 1]);
#pragma unroll
          for (int low = 0; low < 2; ++low) {
            const int token = tile * 16 + g + low * 8;
            float by = rows.row[token] * entry, by_den = 0;
            if (a.floor != nullptr) by_den = by * rows.gden[token], by *= rows.inverse[token];
            passing[low] -= quad_sum(by * dots[low] + by_den * of_den[low]);
            if (q == 0) factor[token] = by, factor[room + token] = by_den;
          }
        }
#pragma unroll
        for (int low = 0; low < 2; ++low) {
          x_off[low] = quad_sum(x_off[low]), x_own[low] = quad_sum(x_own[low]);
          const int token = tile * 16 + g + low * 8;
          if (q == 0) {
            rows.column[token] = x_off[low] * scale[low] + passing[low];
            if (a.gscale != nullptr && token < w.count)
              a.gscale[((w.row + token) * 2 + direction) * s.h + head] = x_off[low] + x_own[low];
          }
        }
        const int64_t width = sums_values ? s.h : 2 * s.h;  // heads (and directions) of gv
        if (a.gv == nullptr) continue;
        bf16* gv =
            a.gv + ((w.row + tile * 16) * width + (sums_values ? 0 : direction * s.h) + head) * kScanWidth;
        float own_weight[2] = {};
#pragma unroll
        for (int low = 0; low < 2; ++low) {
          const int token = tile * 16 + g + low * 8;
          if (a.skip != nullptr) own_weight[low] = a.skip[direction * s.h + head];
          if (a.diagonal != nullptr && direction == 0 && token < w.count)
            own_weight[low] = a.diagonal[(w.row + token) * s.h + head];
        }
#pragma unroll
        for (int j = 0; j < 8; ++j)
#pragma unroll
          for (int low = 0; low < 2; ++low) {
            if (a.skip != nullptr || a.diagonal != nullptr) {
              const float2 of = unpack_bf16(*reinterpret_cast<const uint32_t*>(
                  gy + swizzled_at<kScanWidth>(tile * 16 + g + low * 8, j) + 2 * q));
              sum[j][2 * low] += own_weight[low] * of.x, sum[j][2 * low + 1] += own_weight[low] * of.y;
            }
          }
        if (sums_values && direction == 1) add_rows(sum, gv, width * kScanWidth, w.count - tile * 16);
        store_rows(gv, width * kScanWidth, w.count - tile * 16, sum);
        __syncwarp();
      }
      if (a.gskip != nullptr) {
        gskip = warp_sum(gskip);
        if (lane == 0) rows.gskip[warp] = gskip;
      }
      if (connected) leaving += through_of<kN>(before, after, gates, w, plan, b.line(item));
      leaving = warp_sum(leaving);
      if (lane == 0) rows.leaving[warp] = leaving;
      __syncthreads();
      if (a.glog_decay != nullptr) store_net(rows, w, direction, token);
      if (a.gskip != nullptr && threadIdx.x == 0) {
        float all = 0;
        for (int i = 0; i < int(blockDim.x) / 32; ++i) all += rows.gskip[i];
        a.gskip[b.of_skip(item)] = all;
      }
    }
    __syncthreads();
    finish_decays(items - 1);
    if (a.gq == nullptr && a.gk == nullptr) continue;

    // gk_j = sum over i of R_ij q_i;  gq_i = sum over j of R_ij k_j. With connected windows also the sums
    // over items of u out S'_g v_j and of in S g_i (and, for dens, of the columns of ones).
    if constexpr (!kBoth) {
      copy_rows<kN>(q_tile, a.q, s, w, b.own_direction, group);
      copy_rows<kN>(k_tile, a.k, s, w, b.own_direction, group);
      copies_commit();
      copies_wait<0>();
      __syncthreads();
    }
    store_key_gradients(a, plan, b);
  }
}

template <int kN, bool kBoth>
void launch(const MatrixScanBackward<bf16, float>& a, const WindowPlan& plan, float* scratch, void* stream) {
  auto* kernel = matrix_scan_bwd_window<kN, kBoth>;
  const int tiles = int(plan.step) / 16, bytes = BackwardLayout<kN, kBoth>(tiles, plan.connected()).bytes;
  allow_shared(kernel, "matrix_scan_bwd_window", bytes);
  const int64_t blocks = a.s.b * plan.windows * (kBoth ? a.s.h : a.s.outputs() * a.s.g);
  kernel<<<grid_of_blocks(blocks), (tiles + 1) / 2 * 32, size_t(bytes), as_stream(stream)>>>(a, plan,
                                                                                             scratch);
  check_launch("matrix_scan_bwd_window", stream);
}

}  // namespace

bool fits_window_bwd(const MatrixScanBackward<bf16, float>& a) {
  MatrixScanForward<bf16, float> forward{a.s, a.q, a.k, a.v};
  forward.floor = a.floor;
  if (!aligned16(a.y, a.gy) || !fits_windows(forward)) return false;
  // With both directions in a block its gradients of q and k are those of one head.
  return !reads_both(a) || a.s.g == a.s.h;
}

int64_t window_bwd_scratch(const MatrixScanBackward<bf16, float>& a) {
  const WindowPlan plan = window_plan(a.s, reads_both(a));
  // States, and three factors of every token, head and direction.
  return plan.connected()
             ? window_state_floats(a.s, plan, true) + a.s.b * 2 * a.s.h * plan.windows * plan.step * 3
             : 0;
}

int64_t window_bwd_skips(const MatrixScanBackward<bf16, float>& a) {
  return a.s.b * window_plan(a.s, reads_both(a)).windows;
}

void window_bwd(const MatrixScanBackward<bf16, float>& a, float* scratch, void* stream) {
  WindowPlan plan = window_plan(a.s, reads_both(a));
  if (plan.connected()) window_states(a, plan, scratch, stream);
  if (fits_warpgroups_bwd(a, plan)) return window_bwd_warpgroups(a, plan, stream);
  float* factors = scratch + window_state_floats(a.s, plan, true);
  if (plan.both)
    launch<64, true>(a, plan, factors, stream);
  else if (a.s.n == 128)
    launch<128, false>(a, plan, factors, stream);
  else
    launch<64, false>(a, plan, factors, stream);
}

}  // namespace occam::kernels
