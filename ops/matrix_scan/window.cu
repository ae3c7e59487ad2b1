#include "ops/matrix_scan/window.h"

#include <algorithm>

#include "ops/matrix_scan/tile.cuh"

namespace occam::kernels {

namespace {

struct States {
  float *local, *total, *local_sums;  // [lines,windows,p,n], [lines,windows], [lines,windows,n]
  bf16* in;
  float* sums;
};

/// What a window adds to the state, transposed: sum of decayed u v k^T, 16 rows and 64 columns of it a warp,
/// and the sum of decayed u k.
template <int kN>
__global__ void __launch_bounds__(kN * 2)
    matrix_scan_states(MatrixScanForward<bf16, float> a, WindowPlan plan, States to) {
  extern __shared__ __align__(128) unsigned char memory[];
  bf16 *values = reinterpret_cast<bf16*>(memory), *keys = values + kScanWindow * kScanWidth;
  TileGates& gates = *reinterpret_cast<TileGates*>(keys + kScanWindow * kN);
  const MatrixScanShape s = a.s;
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
  const int64_t line = blockIdx.x / plan.windows, window = blockIdx.x % plan.windows;
  const int64_t head = line % s.h, direction = line / s.h % 2;
  const ScanWindow w = window_of(s.t, plan.step, line / s.h / 2, window);
  copy_rows<kScanWidth>(values, a.v, w, direction, head);
  copy_rows<kN>(keys, a.k, w, direction, head / (s.h / s.g));
  copies_commit();
  for (int token = int(threadIdx.x); token < kScanWindow + 16; token += kN * 2)  // whole warps
    store_gate(gates, load_gate(a.log_decay, a.scale, s.h, w, s.t, direction, head, token), int(direction),
               token);
  __syncthreads();
  for (int token = int(threadIdx.x); token < w.tiles * 16; token += kN * 2) {
    float left = 1;  // by the tiles behind the token's own
    if (direction == 0)
      for (int tile = w.tiles - 1; tile > token / 16; --tile) left *= gates.total[tile];
    else
      for (int tile = 0; tile < token / 16; ++tile) left *= gates.total[tile];
    gates.column[token] *= left;
  }
  copies_wait<0>();
  __syncthreads();
  const int row = warp % 4 * 16, column = warp / 4 * 64;
  float sum[8][4] = {};
  for (int tile = 0; tile < w.tiles; ++tile) {
    uint32_t v[4];
    ldmatrix_transposed(
        v, values + swizzled_at<kScanWidth>(tile * 16 + lane % 8 + lane / 16 * 8, row / 8 + lane / 8 % 2));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 x = unpack_bf16(v[i]),
                   c = *reinterpret_cast<const float2*>(gates.column + tile * 16 + i / 2 * 8 + 2 * q);
      v[i] = pack_bf16(x.x * c.x, x.y * c.y);
    }
    product_columns<kN>(sum, v, keys, tile * 16, column);
  }
#pragma unroll
  for (int low = 0; low < 2; ++low) {
    float* out = to.local + (int64_t(blockIdx.x) * kScanWidth + row + g + low * 8) * kN + column + 2 * q;
#pragma unroll
    for (int j = 0; j < 8; ++j)
      *reinterpret_cast<float2*>(out + 8 * j) = make_float2(sum[j][2 * low], sum[j][2 * low + 1]);
  }
  if (threadIdx.x < kN) {
    const int n = int(threadIdx.x);
    float z = 0;
    for (int token = 0; token < w.tiles * 16; ++token)
      z += gates.column[token] * to_acc(keys[swizzled_at<kN>(token, n / 8) + n % 8]);
    to.local_sums[int64_t(blockIdx.x) * kN + n] = z;
  }
  if (threadIdx.x == 0) {
    float total = 1;
    for (int tile = 0; tile < w.tiles; ++tile) total *= gates.total[tile];
    to.total[blockIdx.x] = total;
  }
}

/// Carries states through the windows in the order of the direction; a thread an element.
__global__ void matrix_scan_carry(MatrixScanShape s, int64_t windows, States to) {
  const int64_t width = s.n * (s.p + 1), all = s.b * 2 * s.h * width;
  OCCAM_GRID_LOOP(i, all) {
    const int64_t line = i / width, element = i % width, states = s.n * s.p;
    float carried = 0;
    for (int64_t n = 0; n < windows; ++n) {
      const int64_t window = line * windows + (line / s.h % 2 == 0 ? n : windows - 1 - n);
      float added;
      if (element < states) {
        to.in[window * states + element] = from_acc<bf16>(carried);
        added = to.local[window * states + element];
      } else {
        to.sums[window * s.n + element - states] = carried;
        added = to.local_sums[window * s.n + element - states];
      }
      carried = to.total[window] * carried + added;
    }
  }
}

template <int kN>
void launch_states(const MatrixScanForward<bf16, float>& a, const WindowPlan& plan, const States& to,
                   void* stream) {
  const int64_t bytes = kScanWindow * (kN + kScanWidth) * 2 + int64_t(sizeof(TileGates));
  allow_shared(matrix_scan_states<kN>, "matrix_scan_states", bytes);
  matrix_scan_states<kN>
      <<<grid_of_blocks(a.s.b * 2 * a.s.h * plan.windows), kN * 2, size_t(bytes), as_stream(stream)>>>(
          a, plan, to);
  check_launch("matrix_scan_states", stream);
}

}  // namespace

WindowPlan window_plan(const MatrixScanShape& s, bool both) {
  WindowPlan plan;
  plan.both = both;
  plan.step = round_up<int64_t>(div_up<int64_t>(s.t, div_up<int64_t>(s.t, kScanWindow)), 16);
  plan.windows = div_up(s.t, plan.step);
  // All heads of a block share what is loaded once; few images are spread over more blocks.
  const int64_t heads = both ? s.h : s.h / s.g, blocks = s.b * plan.windows * (both ? 1 : 2 * s.g);
  plan.parts = std::clamp<int64_t>(2 * int64_t(device_limits().sm_count) / blocks, 1, heads);
  plan.heads = div_up(heads, plan.parts), plan.parts = div_up(heads, plan.heads);
  return plan;
}

int64_t window_state_floats(const MatrixScanShape& s, const WindowPlan& plan) {
  const int64_t lines = s.b * 2 * s.h * plan.windows;
  return lines * (s.n * s.p + s.n * s.p / 2 + 2 * s.n + 1);
}

void window_states(const MatrixScanForward<bf16, float>& a, WindowPlan& plan, float* scratch, void* stream) {
  const MatrixScanShape& s = a.s;
  const int64_t lines = s.b * 2 * s.h * plan.windows, state = s.n * s.p;
  States to;
  to.local = scratch, to.in = reinterpret_cast<bf16*>(to.local + lines * state);
  to.sums = to.local + lines * (state + state / 2), to.local_sums = to.sums + lines * s.n;
  to.total = to.local_sums + lines * s.n;
  plan.states = to.in, plan.sums = to.sums;
  s.n == 128 ? launch_states<128>(a, plan, to, stream) : launch_states<64>(a, plan, to, stream);
  matrix_scan_carry<<<grid_for(s.b * 2 * s.h * s.n * (s.p + 1), 256), 256, 0, as_stream(stream)>>>(
      s, plan.windows, to);
  check_launch("matrix_scan_carry", stream);
}

}  // namespace occam::kernels
