#include "ops/matrix_scan/window.h"

#include <algorithm>
#include <type_traits>

#include "ops/matrix_scan/outcome.cuh"
#include "ops/matrix_scan/tile.cuh"

namespace occam::kernels {

namespace {

using Forward = MatrixScanForward<bf16, float>;
using Backward = MatrixScanBackward<bf16, float>;

/// Shared memory: values and keys of a window, gates.
template <int kN>
struct Layout {
  static constexpr int kKeys = kScanLongWindow * kScanWidth * 2, kGates = kKeys + kScanLongWindow * kN * 2;
  static constexpr int kBytes = kGates + int(sizeof(TileGates));
};

/// The states that a line's windows begin with, transposed [p,n]: those before them, decayed, and the sums of
/// decayed u v k^T of their tokens; 16 rows and 64 columns a warp, in f32 registers from window to window.
/// And the same of v = 1. Backward: gradients of the states that windows end with, from sums of decayed g q^T
/// and h q (g, h: gradients of num and den) in the opposite order.
template <int kN, class Args>
__global__ void __launch_bounds__(kN * 2)
    matrix_scan_states(Args a, WindowPlan plan, bf16* states, float* sums) {
  constexpr bool kBackward = std::is_same_v<Args, Backward>;
  extern __shared__ __align__(1024) unsigned char memory[];
  bf16 *values = reinterpret_cast<bf16*>(memory), *keys = reinterpret_cast<bf16*>(memory + Layout<kN>::kKeys);
  TileGates& gates = *reinterpret_cast<TileGates*>(memory + Layout<kN>::kGates);
  float* of_sums = gates.scale;  // factors of k in the sums; those of v in gates.column
  const MatrixScanShape s = a.s;
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, q = lane % 4;
  const int row = warp % 4 * 16, column = warp / 4 * 64;
  const int64_t line = blockIdx.x, head = line % s.h, direction = line / s.h % 2, image = line / s.h / 2;
  const int64_t group = head / (s.h / s.g), used = div_up(s.length(image), plan.step);
  const bool upward = (direction == 0) != kBackward;
  float state[8][4] = {}, z = 0;
  for (int64_t n = 0; n < used; ++n) {
    const int64_t window = upward ? n : used - 1 - n, at = line * plan.windows + window;
    store_rows(states + (at * kScanWidth + row) * kN + column, kN, 16, state);
    if (sums != nullptr && threadIdx.x < kN) sums[at * kN + threadIdx.x] = z;
    if (n + 1 == used) break;
    const ScanWindow w = window_of(s, plan.step, image, window);
    __syncthreads();  // nobody reads the window before
    if constexpr (kBackward) {
      copy_rows<kScanWidth>(values, gy_view(a), s, w, direction, head);
      copy_rows<kN>(keys, a.q, s, w, direction, group);
    } else {
      copy_rows<kScanWidth>(values, a.v, s, w, direction, head);
      copy_rows<kN>(keys, a.k, s, w, direction, group);
    }
    copies_commit();
    const float* scale = nullptr;
    if constexpr (!kBackward) scale = a.scale;
    for (int token = int(threadIdx.x); token < round_up(w.tiles * 16, 32); token += kN * 2)  // whole warps
      store_gate(gates, load_gate(a.log_decay, scale, s.h, w, direction, head, token), int(direction), token);
    __syncthreads();
    float total = 1;
    for (int tile = 0; tile < w.tiles; ++tile) total *= gates.total[tile];
    for (int token = int(threadIdx.x); token < w.tiles * 16; token += kN * 2) {
      float left =
          1;  // by the tiles between the token's own and the window's end, or its begin on the way back
      if (upward)
        for (int tile = w.tiles - 1; tile > token / 16; --tile) left *= gates.total[tile];
      else
        for (int tile = 0; tile < token / 16; ++tile) left *= gates.total[tile];
      if constexpr (kBackward) {
        left *= exp2_fast(gates.log_row[token]);
        OutcomeGradient change{token < w.count ? 1.0f : 0.0f, 0, 0};
        if (a.floor != nullptr && token < w.count) change = outcome_gradient(a, w, direction, head, token);
        gates.column[token] = left * change.inverse, of_sums[token] = left * change.den;
      } else {
        of_sums[token] = gates.column[token] *= left;
      }
    }
    copies_wait<0>();
    __syncthreads();
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int k = 0; k < 4; ++k) state[j][k] *= total;
    for (int tile = 0; tile < w.tiles; ++tile) {
      uint32_t v[4];
      ldmatrix_transposed_at(
          v, piece_address<kScanWidth>(values, tile * 16, lane % 8 + lane / 16 * 8, row / 8 + lane / 8 % 2));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 x = unpack_bf16(v[i]),
                     c = *reinterpret_cast<const float2*>(gates.column + tile * 16 + i / 2 * 8 + 2 * q);
        v[i] = pack_bf16(x.x * c.x, x.y * c.y);
      }
      product_columns<kN>(state, v, keys, tile * 16, column);
    }
    if (sums != nullptr && threadIdx.x < kN) {
      const int n = int(threadIdx.x);
      z *= total;
      for (int token = 0; token < w.tiles * 16; ++token)
        z += of_sums[token] * to_acc(keys[swizzled_at<kN>(token, n / 8) + n % 8]);
    }
  }
}

template <int kN, class Args>
void launch_states(const Args& a, const WindowPlan& plan, bf16* states, float* sums, void* stream) {
  constexpr int bytes = Layout<kN>::kBytes;
  auto* kernel = matrix_scan_states<kN, Args>;
  allow_shared(kernel, "matrix_scan_states", bytes);
  kernel<<<grid_of_blocks(a.s.b * 2 * a.s.h), kN * 2, size_t(bytes), as_stream(stream)>>>(a, plan, states,
                                                                                          sums);
  check_launch("matrix_scan_states", stream);
}

int64_t state_floats(const MatrixScanShape& s, const WindowPlan& plan) {
  return s.b * 2 * s.h * plan.windows * (s.n * s.p / 2 + s.n);
}

template <class Args>
WindowStates make_states(const Args& a, const WindowPlan& plan, float* scratch, void* stream) {
  auto* states = reinterpret_cast<bf16*>(scratch);
  float* sums = a.floor == nullptr ? nullptr : scratch + a.s.b * 2 * a.s.h * plan.windows * a.s.n * a.s.p / 2;
  if (a.s.n == 128)
    launch_states<128>(a, plan, states, sums, stream);
  else
    launch_states<64>(a, plan, states, sums, stream);
  return {states, sums};
}

}  // namespace

WindowPlan window_plan(const MatrixScanShape& s, bool both) {
  WindowPlan plan;
  plan.both = both, plan.at_once = device_limits().sm_count;
  const int64_t most = s.t <= kScanWindow ? kScanWindow : kScanLongWindow;
  plan.step = round_up<int64_t>(div_up<int64_t>(s.t, div_up<int64_t>(s.t, most)), 16);
  plan.windows = div_up(s.t, plan.step);
  // All heads of a block share what is loaded once; few images are spread over more blocks.
  const int64_t heads = s.h / s.g, blocks = s.b * plan.windows * s.outputs() * s.g;
  plan.parts = std::clamp<int64_t>(2 * int64_t(device_limits().sm_count) / blocks, 1, heads);
  plan.heads = div_up(heads, plan.parts), plan.parts = div_up(heads, plan.heads);
  return plan;
}

int64_t window_state_floats(const MatrixScanShape& s, const WindowPlan& plan, bool backward) {
  return plan.connected() ? (backward ? 2 : 1) * state_floats(s, plan) : 0;
}

void window_states(const Forward& a, WindowPlan& plan, float* scratch, void* stream) {
  plan.before = make_states(a, plan, scratch, stream);
}

void window_states(const Backward& a, WindowPlan& plan, float* scratch, void* stream) {
  Forward forward{a.s, a.q, a.k, a.v, a.log_decay, a.scale};
  forward.floor = a.floor;
  plan.before = make_states(forward, plan, scratch, stream);
  plan.after = make_states(a, plan, scratch + state_floats(a.s, plan), stream);
}

}  // namespace occam::kernels
